"""RLBind's losses against their definitions, and the objective on a made-up step."""

from __future__ import annotations

import math

import pytest
import torch
from made_up_step import DIM, TASKS, LinearBridge, MadeUpStep

from multismolvla.connector import GridConnector, VisualBridge
from multismolvla.fusion import GatedFusion
from multismolvla.objectives.interface import Start
from multismolvla.objectives.options import RlbindOptions
from multismolvla.objectives.rlbind import (
    Rlbind,
    class_distribution_loss,
    displacement_loss,
    frozen_copy,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- displacement --------------------------------------------------------------------------------------------


def test_a_token_that_is_replaced_by_the_mean_one_is_moved_by_one():
    target = random(8, 2, 16, 5)
    spread = target.flatten(0, 2).var(0, unbiased=False).sum()
    mean = target.mean((0, 1, 2)).expand_as(target)
    whole = torch.ones(8, 2, dtype=torch.bool)
    assert displacement_loss(mean, target, whole, spread).item() == pytest.approx(1, rel=1e-5)
    assert displacement_loss(target, target, whole, spread) == 0


def test_cameras_without_rgb_do_not_count():
    tokens, target = random(3, 2, 4, 5).requires_grad_(), random(3, 2, 4, 5, seed=1)
    counted = torch.tensor([[True, False], [False, False], [True, True]])
    found = displacement_loss(tokens, target, counted, torch.tensor(1.0))
    found.backward()
    assert found.item() == pytest.approx((tokens - target)[counted].square().sum(-1).mean().item())
    assert torch.equal(tokens.grad.abs().sum((2, 3)) > 0, counted)
    assert displacement_loss(tokens, target, ~torch.ones(3, 2).bool(), torch.tensor(1.0)) == 0


# -- agreement of the distributions --------------------------------------------------------------------------


def distributions(seed: int, number: int = 7) -> torch.Tensor:
    return (2 * random(number, TASKS, seed=seed)).softmax(1)


def test_branches_that_agree_on_average_cost_nothing():
    task, there = torch.tensor([0, 0, 1, 1, 1, 2, -1]), torch.ones(7, dtype=torch.bool)
    reference = distributions(0)
    assert class_distribution_loss(reference, reference, task, there).item() == pytest.approx(0, abs=1e-6)
    swapped = reference[[1, 0, 3, 4, 2, 5, 6]]  # within the tasks
    assert class_distribution_loss(reference, swapped, task, there).item() == pytest.approx(0, abs=1e-6)


def test_it_is_the_mean_kl_of_the_tasks_that_have_two_samples():
    task, there = torch.tensor([0, 0, 1, 1, 1, 2, -1]), torch.ones(7, dtype=torch.bool)
    there[2] = False
    reference, branch = distributions(0), distributions(1).requires_grad_()
    found = class_distribution_loss(reference, branch, task, there)
    expected = [
        torch.distributions.kl_divergence(
            *(torch.distributions.Categorical(p[list(rows)].mean(0)) for p in (reference, branch))
        )
        for rows in ((0, 1), (3, 4))
    ]
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    found.backward()
    assert (branch.grad.abs().sum(1) > 0).tolist() == [True, True, False, True, True, False, False]


def test_the_order_of_the_samples_means_nothing():
    task, there = torch.tensor([0, 0, 1, 1, 1, 2, -1]), torch.ones(7, dtype=torch.bool)
    reference, branch, order = distributions(0), distributions(1), torch.randperm(7)
    found = class_distribution_loss(reference, branch, task, there)
    again = class_distribution_loss(reference[order], branch[order], task[order], there)
    assert again.item() == pytest.approx(found.item(), rel=1e-5)


def test_without_a_task_of_two_samples_it_is_zero_with_a_way_for_gradients():
    branch = distributions(1, 3).requires_grad_()
    found = class_distribution_loss(
        distributions(0, 3), branch, torch.tensor([0, 1, -1]), torch.ones(3).bool()
    )
    found.backward()
    assert found.item() == 0
    assert branch.grad.abs().max() == 0


# -- the frozen copy -----------------------------------------------------------------------------------------


def test_a_frozen_copy_answers_alike_and_cannot_be_trained():
    fusion = GatedFusion(8, ("rgb", "depth"), 4)
    bridge = VisualBridge(fusion, GridConnector(8, DIM, 4, 2, 16), ("image", "wrist.cam"))
    copied = frozen_copy(bridge)
    tokens = {m: random(4, 4, 4, 8, seed=n) for n, m in enumerate(("rgb", "depth"))}
    present = {m: torch.ones(4, 4, 4, dtype=torch.bool) for m in tokens}
    assert torch.equal(copied(tokens, present).tokens, bridge(tokens, present).tokens)
    assert not list(copied.parameters())
    assert list(copied.state_dict()) == list(bridge.state_dict())
    copied.requires_grad_(True)  # as PEFT does it
    assert not copied(tokens, present).tokens.requires_grad
    with torch.no_grad():
        bridge.connector.gain.mul_(2)
    assert not torch.equal(copied(tokens, present).tokens, bridge(tokens, present).tokens)


# -- the objective -------------------------------------------------------------------------------------------


def rlbind(**options) -> tuple[Rlbind, LinearBridge]:
    """The objective, and the policy's connector some training later."""
    torch.manual_seed(0)
    bridge = LinearBridge()
    module = Rlbind(RlbindOptions(weight=1.0, width=8, **options), bridge, DIM, TASKS)
    module.begin(Start(torch.randn(TASKS, 7), bridge))
    with torch.no_grad():
        bridge.map.weight.add_(0.1)
    return module, bridge


def test_the_connector_learns_and_its_copy_does_not():
    module, bridge = rlbind()
    before = {k: v.clone() for k, v in module.state_dict().items() if k.startswith("reference.")}
    term = module(MadeUpStep(bridge=bridge))
    term.loss.backward()
    assert bridge.map.weight.grad.abs().max() > 0
    assert module.projection.weight.grad.abs().max() > 0
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())
    assert set(dict(module.named_parameters())) == {"projection.weight"}


def test_the_untouched_connector_is_not_displaced_where_nothing_is_attacked():
    module, bridge = rlbind()
    module.reference.load_state_dict(bridge.state_dict())
    logs = module(MadeUpStep(bridge=bridge)).logs
    assert logs["rlbind_clean"] == 0
    assert logs["rlbind_adversarial"] > 0


def test_the_term_is_the_sum_of_its_definitions():
    module, bridge = rlbind(anchor=0.3, distribution=0.7, clean=2.0, adversarial=0.5, temperature=0.5)
    step = MadeUpStep(task=[0, 0, 1, 1], bridge=bridge)
    found = module(step)
    complete = step.complete()
    radius = module.options.radius / 255 * 50 / 60  # at half of the stage; it rises over six tenths
    attacked = step.attacked(lambda t: t.sum(), radius, 0, 0)
    target = module.reference({"rgb": step.grid}, {}).tokens.unflatten(0, step.rgb.shape)
    spread = target.flatten(0, 2).var(0, unbiased=False).sum()

    def log_shares(look) -> torch.Tensor:
        z = torch.nn.functional.normalize(module.projection(look.features), dim=1)
        return (z @ torch.nn.functional.normalize(module.anchors, dim=1).T / 0.5).log_softmax(1)

    whole, alone, moved = map(log_shares, (complete.look, step.unimodal().look, attacked.look))
    anchor = torch.stack(
        [
            torch.nn.functional.nll_loss(shares, step.task)
            for shares in (whole, log_shares(step.seen()), moved)
        ]
    ).mean()
    by_task = [
        torch.stack([shares.exp()[:2].mean(0), shares.exp()[2:].mean(0)]) for shares in (whole, alone, moved)
    ]
    apart = [(by_task[0] * (by_task[0] / other).log()).sum(1).mean() for other in by_task[1:]]
    expected = (
        2.0 * (complete.tokens - target).square().sum(-1).mean() / spread
        + 0.5 * (attacked.tokens - target).square().sum(-1).mean() / spread
        + 0.3 * anchor
        + 0.7 * torch.stack(apart).mean()
    )
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert found.logs["rlbind_anchor"] == pytest.approx(anchor.item(), rel=1e-4)


def test_the_branches_come_to_the_clean_distributions_and_not_these_to_them():
    module, bridge = rlbind(clean=0.0, adversarial=0.0, anchor=0.0)
    step = MadeUpStep(task=[0, 0, 1, 1], bridge=bridge)
    whole = step.complete()
    leaf = whole.look.features.detach().requires_grad_()
    step.complete = lambda: whole._replace(look=whole.look._replace(features=leaf))
    module(step).loss.backward()
    assert leaf.grad is None or not leaf.grad.any()
    assert (step.single.grad.abs().sum(1) > 0).all()


def test_the_radius_rises_and_the_last_share_is_not_attacked():
    module, bridge = rlbind(radius=4.0, attack_steps=3)
    for number, radius in ((0, 0.0), (30, 2.0), (60, 4.0), (89, 4.0), (90, 0.0), (99, 0.0)):
        step = MadeUpStep(number=number, bridge=bridge)
        assert module(step).logs["rlbind_radius"] == pytest.approx(radius)
        asked = [(radius / 255, radius / 255 / 4, 3)] if radius else []
        assert step.asked == [pytest.approx(a) for a in asked]


def test_stage_one_of_the_method_asks_for_no_labels():
    module, bridge = rlbind(anchor=0.0, distribution=0.0)
    step = MadeUpStep(bridge=bridge)
    del step.task
    term = module(step)
    term.loss.backward()
    assert module.projection.weight.grad is None
    assert set(term.logs) == {"rlbind_clean", "rlbind_adversarial", "rlbind_radius"}


def test_unlabelled_samples_align_with_no_anchor():
    module, bridge = rlbind(clean=0.0, adversarial=0.0, distribution=0.0)
    step = MadeUpStep(task=[0, -1, 2, -1], bridge=bridge)
    module(step).loss.backward()
    assert (step.fused.grad.abs().sum(1) > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("task", [[0, 0, 0, 0], [-1, -1, -1, -1], [0], [-1]])
@pytest.mark.parametrize("there", [True, False])
def test_any_batch_gives_a_finite_term_and_finite_gradients(task, there):
    module, bridge = rlbind()
    size = len(task)
    rgb = torch.full((size, 2), there)
    step = MadeUpStep(task=task, there=[there] * size, bridge=bridge, rgb=rgb)
    term = module(step)
    term.loss.backward()
    assert term.loss.isfinite()
    assert bridge.map.weight.grad.isfinite().all()
    assert all(math.isfinite(number) for number in term.logs.values())


def test_saved_between_two_steps_it_goes_on_as_if_it_had_not_been():
    whole, bridge = rlbind()
    whole(MadeUpStep(seed=1, bridge=bridge))
    torn, _ = rlbind()
    torn.load_state_dict(whole.state_dict())
    again = MadeUpStep(seed=2, bridge=bridge)
    assert torch.equal(torn(again).loss, whole(again).loss)
    fresh, _ = rlbind()
    assert not torch.equal(fresh(MadeUpStep(seed=2, bridge=bridge)).loss, torn(again).loss)
