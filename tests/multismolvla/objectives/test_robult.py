"""Robult's losses against their definitions, and the objective on a made-up step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from made_up_step import DIM, ENCODED, TASKS, MadeUpStep

from multismolvla.objectives.interface import Start
from multismolvla.objectives.options import RobultOptions
from multismolvla.objectives.robult import (
    Robult,
    frames_of,
    near_frames,
    orthogonality_loss,
    pu_contrastive_loss,
    reconstruction_loss,
    target_weights,
)

TAU = 0.2


def rows(seed: int, number: int = 6, width: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(number, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def no_guess(number: int = 6, tasks: int = 3) -> torch.Tensor:
    return torch.zeros(number, tasks)


def loss_of(anchors, candidates, task, posterior, **options) -> torch.Tensor:
    return pu_contrastive_loss(anchors, candidates, task, posterior, temperature=TAU, **options)


def nll(anchors, candidates) -> torch.Tensor:
    """-log softmax, pair by pair, written out."""
    similar = torch.exp(anchors @ candidates.T / TAU)
    return -torch.log(similar / similar.sum(1, keepdim=True))


def test_nothing_labelled_is_infonce_across_the_branches():
    a, c = rows(0), rows(1)
    found = loss_of(a, c, torch.full((6,), -1), no_guess())
    assert found.item() == pytest.approx(nll(a, c).diagonal().mean().item(), rel=1e-5)


@pytest.mark.parametrize("prior", [0.3, 1.0])
def test_one_known_task_with_a_constant_posterior_is_the_blend_of_punce(prior):
    a, c = rows(0), rows(1)
    task = torch.tensor([0, 0, 0, -1, -1, -1])
    pairs, positives = nll(a, c), [0, 1, 2]
    expected = [pairs[k, positives].mean() for k in positives]
    expected += [(prior * pairs[k, positives].mean() + pairs[k, k]) / (1 + prior) for k in (3, 4, 5)]
    found = loss_of(a, c, task, torch.full((6, 1), prior))
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_everything_labelled_is_supervised_contrast_with_the_frame_itself():
    a, c = rows(0), rows(1)
    task = torch.tensor([0, 1, 0, 2, 1, 0])
    pairs = nll(a, c)
    expected = torch.stack([pairs[k, task == task[k]].mean() for k in range(6)]).mean()
    assert loss_of(a, c, task, torch.rand(6, 3)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_more_samples_of_a_task_leave_its_weight():
    guess = torch.tensor([[0.5, 0.2, 0.3]])
    few = target_weights(torch.tensor([-1, 0, 1]), guess.expand(3, 3))
    many = target_weights(torch.tensor([-1, 0, 1, 0, 0, 0]), guess.expand(6, 3))
    assert few[0].tolist() == pytest.approx([1, 0.5, 0.2])
    assert many[0, 2] == few[0, 2]
    assert many[0, [1, 3, 4, 5]].sum().item() == pytest.approx(0.5)


def test_order_and_length_of_the_rows_mean_nothing():
    a, c, task, guess = rows(0), rows(1), torch.tensor([0, -1, 1, 0, -1, 1]), torch.rand(6, 2)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    found = loss_of(a, c, task, guess)
    assert loss_of(a[order], c[order], task[order], guess[order]).item() == pytest.approx(found.item())
    lengths = torch.rand(6, 1) + 0.5
    assert loss_of(a * lengths, c * 7, task, guess).item() == pytest.approx(found.item(), rel=1e-5)


def test_nearly_equal_frames_are_no_negatives_of_unlabelled_anchors():
    a, c, task = rows(0), rows(1), torch.tensor([-1, -1, -1, 0, -1, -1])
    near = near_frames(torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([4, 5, 9, 6, 4, 90]), within=3)
    assert near.int().tolist()[0] == [1, 1, 0, 1, 0, 0]
    guess = torch.full((6, 1), 0.4)
    pairs = torch.exp(a @ c.T / TAU)
    kept = pairs[0, [0, 2, 3, 4, 5]].sum()  # without frame 1; the labelled one carries weight and stays
    expected = (-(pairs[0, 0] / kept).log() - 0.4 * (pairs[0, 3] / kept).log()) / 1.4
    only = [loss_of(a, c, task, guess, near=near & (torch.arange(6) == k)[:, None]) for k in (0, 3)]
    without = loss_of(a, c, task, guess)
    whole = pairs[0].sum()
    before = (-(pairs[0, 0] / whole).log() - 0.4 * (pairs[0, 3] / whole).log()) / 1.4
    assert (without - only[0]).item() * 6 == pytest.approx((before - expected).item(), rel=1e-4)
    assert only[1] == without  # a labelled anchor hides nothing


def test_half_precision_computes_the_softmax_in_full():
    a, c, task, guess = rows(0), rows(1), torch.tensor([0, -1, 1, 0, -1, 1]), torch.rand(6, 2)
    expected = loss_of(a.bfloat16().float(), c.bfloat16().float(), task, guess)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(a.bfloat16(), c.bfloat16(), task, guess)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("task", [[0], [-1], []])
def test_one_sample_or_none_is_finite(task):
    a = rows(0, len(task)).requires_grad_()
    found = loss_of(a, rows(1, len(task)), torch.tensor(task, dtype=torch.int64), no_guess(len(task)))
    found.backward()
    assert found.item() == 0
    assert a.grad.isfinite().all()


# -- reconstruction ------------------------------------------------------------------------------------------


def test_an_exact_decoder_costs_nothing_and_the_target_learns_nothing():
    target = rows(0).requires_grad_()
    rebuilt = target.detach().clone().requires_grad_()
    assert reconstruction_loss(rebuilt, target, torch.ones(6, dtype=torch.bool)) == 0
    reconstruction_loss(rebuilt + 1, target, torch.ones(6, dtype=torch.bool)).backward()
    assert target.grad is None
    assert rebuilt.grad.abs().min() > 0


@pytest.mark.parametrize("loss", [reconstruction_loss, orthogonality_loss])
def test_rows_that_are_not_there_change_nothing(loss):
    one, other = rows(0).requires_grad_(), rows(1)
    there = torch.tensor([True, False, True, True, False, True])
    found = loss(one, other, there)
    found.backward()
    assert found.item() == pytest.approx(loss(one[there], other[there], torch.ones(4).bool()).item())
    assert (one.grad.abs().sum(1) > 0).tolist() == there.tolist()
    assert loss(one, other, ~torch.ones(6).bool()).item() == 0


def test_orthogonality_is_the_squared_cosine():
    whole = torch.ones(2, dtype=torch.bool)
    unique = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert orthogonality_loss(unique, unique, whole).item() == pytest.approx(1)
    assert orthogonality_loss(unique, unique.flip(0), whole).item() == pytest.approx(0)


# -- the objective -------------------------------------------------------------------------------------------


def robult(**options) -> Robult:
    torch.manual_seed(0)
    module = Robult(RobultOptions(weight=1.0, width=8, **options), DIM, ENCODED, ("rgb", "depth"), TASKS)
    module.begin(Start(torch.randn(TASKS, 7), torch.nn.Identity()))
    return module


def test_frames_of_the_second_data_set_are_unlabelled_frames_of_none_of_the_batchs_episodes():
    more = MadeUpStep(task=[1, 2], there=[True, False], seed=1)
    step = MadeUpStep(further=more)
    whole = MadeUpStep(task=[0, 1, 0, 2, -1, -1], there=[True] * 5 + [False])
    with torch.no_grad():
        for name in ("fused", "single", "encoded"):
            getattr(whole, name).copy_(torch.cat([getattr(step, name), getattr(more, name)]))
    term = robult()(step)
    assert term.loss.item() == pytest.approx(robult()(whole).loss.item())
    assert term.logs["robult_labelled"] == pytest.approx(4 / 6)
    term.loss.backward()
    assert (more.fused.grad.abs().sum(1) > 0).tolist() == [True, False]
    # frame 0 of episode 0 of the batch is another one than that of the second data set
    assert frames_of(step).episode.tolist() == [0, 1, 2, 3, -1, -2]


def test_the_contrast_is_the_mean_of_both_directions_and_knows_near_frames():
    step = MadeUpStep(task=[-1, -1, 0, 2])
    step.episode, step.index = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 10, 30])
    module = robult(temperature=0.4)
    found = module(step).logs["robult_contrastive"]
    with torch.no_grad():
        fused, single = (
            torch.nn.functional.normalize(module.projection(x), dim=1) for x in (step.fused, step.single)
        )
        guess = torch.nn.functional.normalize(module.posterior(fused), dim=1)
        guess = (guess @ torch.nn.functional.normalize(module.anchors, dim=1).T / 0.1).softmax(1)
        near = torch.eye(4, dtype=torch.bool)
        near[0, 1] = near[1, 0] = True
        one, other = (
            pu_contrastive_loss(a, c, step.task, guess, temperature=0.4, near=near).item()
            for a, c in ((single, fused), (fused, single))
        )
        far = pu_contrastive_loss(single, fused, step.task, guess, temperature=0.4).item()
    assert abs(one - other) > 1e-3
    assert abs(one - far) > 1e-3
    assert found == pytest.approx((one + other) / 2, rel=1e-4)


def test_an_absent_modality_gets_no_gradient_and_changes_nothing():
    step = MadeUpStep(there=[True, True, False, True])
    term = robult()(step)
    term.loss.backward()
    for features in (step.fused, step.single):
        assert (features.grad.abs().sum(1) > 0).tolist() == [True, True, False, True]
    other = MadeUpStep(there=[True, True, False, True])
    with torch.no_grad():
        other.single[2] += 3
        other.encoded[2] += 3
    assert robult()(other).loss == term.loss


@pytest.mark.parametrize("task", [[0, 0, 0, 0], [-1, -1, -1, -1], [0, 1, 2, -1]])
@pytest.mark.parametrize("there", [[True] * 4, [False] * 4, [True, False, False, False]])
def test_any_batch_gives_a_finite_term_and_finite_gradients(task, there):
    step = MadeUpStep(task=task, there=there)
    module = robult()
    term = module(step)
    term.loss.backward()
    assert term.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    assert all(math.isfinite(number) for number in term.logs.values())


def test_guessing_moves_the_posterior_alone():
    step = MadeUpStep()
    module = robult(reconstruction=0.0, temperature=1e9)  # the contrast is flat
    module(step).loss.backward()
    assert module.posterior.weight.grad.abs().max() > 1e-3
    for other in (module.projection.weight, step.fused, step.single):
        assert other.grad.abs().max() < 1e-6


def test_the_posterior_begins_uniform_and_counts_in_full_after_its_ramp():
    """Unlabelled frames whose task is guessed: at step 0 the guess says nothing."""
    task = [0, 1, 2, -1]
    at = {n: MadeUpStep(task=task, number=n, total=100) for n in (0, 10, 20, 90)}
    found = {n: robult()(step).logs["robult_contrastive"] for n, step in at.items()}
    assert len({found[0], found[10], found[20]}) == 3
    assert found[20] == found[90]


def test_the_drawn_modality_alone_is_rebuilt():
    step = MadeUpStep(modality="depth")
    module = robult()
    module(step).loss.backward()
    moved = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any(n.startswith("decoder.depth") for n in moved)
    assert not any(".rgb." in n for n in moved)
    assert module.statistics["depth"].batches == 1
    assert module.statistics["rgb"].batches == 0


def test_saved_between_two_steps_it_goes_on_as_if_it_had_not_been():
    whole = robult()
    whole(MadeUpStep(seed=1))
    torn = robult()
    torn.load_state_dict(whole.state_dict())
    assert torch.equal(torn(MadeUpStep(seed=2)).loss, whole(MadeUpStep(seed=2)).loss)
    fresh = robult()
    assert not torch.equal(fresh(MadeUpStep(seed=2)).loss, torn(MadeUpStep(seed=2)).loss)
