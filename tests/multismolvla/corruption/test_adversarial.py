"""Attacks: inside the ball, never weaker than nothing, and without a trace in what was attacked."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from multismolvla.corruption.adversarial import (
    METHODS,
    Attack,
    NoGradientError,
    attack,
    checkpoints,
    random_signs,
    token_shift,
    velocity_error,
)

ULP = 2.0**-23
SIZES = {"front": (6, 8), "wrist": (5, 5)}


def pictures(batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two cameras of different sizes, black and white among the values."""
    g = torch.Generator().manual_seed(seed)
    return {k: (1.4 * torch.rand(batch, 3, *s, generator=g) - 0.2).clamp(0, 1) for k, s in SIZES.items()}


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Model(nn.Module):
    """A small network with everything that an attack could disturb."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(8, 1)

    def forward(self, cameras: dict[str, torch.Tensor]) -> torch.Tensor:
        seen = [self.layers(x).tanh().mean((2, 3)) for x in cameras.values()]
        return self.head(torch.cat(seen, 1))[:, 0]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model().eval()


@settings(max_examples=30, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    radius=st.floats(1e-4, 1.0),
    steps=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_what_comes_out_lies_in_the_ball_and_is_a_picture(method, radius, steps, seed):
    clean, model = pictures(seed=seed), Model().eval()
    found = attack(clean, model, Attack(radius, method, steps), generator(seed))
    for name, x in found.pictures.items():
        assert x.dtype == torch.float32
        assert (x - clean[name]).abs().max() <= radius + ULP
        assert x.min() >= 0
        assert x.max() <= 1
    assert (found.reached >= found.clean).all()
    with torch.no_grad():
        assert torch.allclose(model(found.pictures), found.reached), "the value belongs to the pictures"
    assert found.gradient.shape[1] == 3
    assert len(found.gradient) >= steps
    assert (found.gradient > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_radius_zero_is_the_same_picture_and_draws_nothing(method, model):
    clean, own = pictures(), generator()
    before, state = torch.get_rng_state(), own.get_state()
    found = attack(clean, model, Attack(0.0, method), own)
    signs = random_signs(clean, 0.0, own)
    for name in clean:
        assert torch.equal(found.pictures[name], clean[name])
        assert torch.equal(signs[name], clean[name])
    assert torch.equal(found.clean, found.reached)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(own.get_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_objective_is_raised_to_its_maximum(method):
    """Whose pictures are known: each value as far as it may go in the direction of its weight."""
    clean = pictures()
    g = generator(7)
    weights = {k: torch.randn(x.shape, generator=g) for k, x in clean.items()}
    found = attack(
        clean,
        lambda x: sum((weights[k] * x[k]).sum((1, 2, 3)) for k in x),
        Attack(8 / 255, method, 20),
        generator(),
    )
    for name, x in found.pictures.items():
        best = (clean[name] + 8 / 255 * weights[name].sign()).clamp(0, 1)
        assert torch.allclose(x, best, atol=1e-6)


def test_apgd_finds_a_maximum_inside_the_ball_because_its_steps_become_smaller():
    radius, clean = 0.1, {"front": torch.full((2, 3, 4, 4), 0.5)}
    peak = clean["front"] + radius * (torch.rand(2, 3, 4, 4, generator=generator(3)) - 0.5)

    def objective(x):
        return -(x["front"] - peak).abs().mean((1, 2, 3))

    apgd, pgd = (attack(clean, objective, Attack(radius, m, 100), generator()) for m in ("apgd", "pgd"))
    assert (apgd.reached > -0.01 * radius).all()
    assert (pgd.reached < -0.05 * radius).all(), "whose steps keep their size"


@pytest.mark.parametrize("method", METHODS)
def test_an_attack_leaves_no_trace(method, model):
    """Parameters, their gradients, modes, statistics, and generators, though the objective draws numbers."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    clean = pictures()
    kept = {k: x.clone() for k, x in clean.items()}
    state = torch.get_rng_state()
    attack(clean, lambda x: model(x) + 1e-9 * torch.rand(()), Attack(4 / 255, method, 3), generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(clean[k], x) for k, x in kept.items())
    model.zero_grad()


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_the_start_and_all_that_follows(method, model):
    how = Attack(8 / 255, method, 3)
    first, again, other = (attack(pictures(), model, how, generator(s)) for s in (1, 1, 2))
    assert all(torch.equal(first.pictures[k], again.pictures[k]) for k in SIZES)
    assert torch.equal(first.gradient, again.gradient)
    assert not (first.gradient[0] == other.gradient[0]).any(), "the slopes where the searches began"
    signs = [random_signs(pictures(), 0.1, generator(s))["front"] for s in (1, 1, 2)]
    assert torch.equal(signs[0], signs[1])
    assert not torch.equal(signs[0], signs[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_that_is_not_available_is_neither_attacked_nor_counted(method, model):
    clean = pictures()
    available = {"front": torch.tensor([True, False, True]), "wrist": torch.tensor([False, False, True])}
    found = attack(clean, model, Attack(8 / 255, method, 3), generator(), available)
    signs = random_signs(clean, 8 / 255, generator(), available)
    for changed in (found.pictures, signs):
        for name, rows in available.items():
            assert [not torch.equal(a, b) for a, b in zip(changed[name], clean[name], strict=True)] == (
                rows.tolist()
            )
    assert (found.gradient[:, [0, 2]] > 0).all()
    assert (found.gradient[:, 1] == 0).all()
    assert found.reached[1] == found.clean[1]
    nothing = {k: torch.zeros(3, dtype=torch.bool) for k in clean}
    idle = attack(clean, lambda x: torch.zeros(3), Attack(0.1, method), generator(), nothing)
    assert all(torch.equal(idle.pictures[k], clean[k]) for k in clean)


def test_more_steps_of_pgd_are_never_weaker_and_it_beats_random_signs(model):
    """With one start the longer search begins with the shorter one."""
    reached = [
        attack(pictures(), model, Attack(8 / 255, "pgd", n), generator()).reached for n in (1, 2, 5, 20)
    ]
    for fewer, more in zip(reached, reached[1:], strict=False):
        assert (more >= fewer).all()
    with torch.no_grad():
        control = model(random_signs(pictures(), 8 / 255, generator()))
    assert (reached[-1] > control).all()
    apgd = attack(pictures(), model, Attack(8 / 255, "apgd", 100), generator()).reached
    assert (apgd >= reached[-1] - 1e-6).all()


def test_random_signs_move_every_value_by_the_radius_unless_it_would_leave_the_range():
    clean, radius = pictures(), 4 / 255
    for name, x in random_signs(clean, radius, generator()).items():
        moved = (x - clean[name]).abs()
        inside = (clean[name] >= radius) & (clean[name] <= 1 - radius)
        assert torch.allclose(moved[inside], torch.tensor(radius), atol=ULP)
        assert ((x - clean[name])[inside] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
        assert x.min() >= 0
        assert x.max() <= 1


def test_apgd_looks_at_its_step_at_the_papers_iterations():
    """Section 3 of the paper: shares 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of the steps."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == []


def test_evaluation_under_inference_mode_can_attack(model):
    with torch.inference_mode():
        clean = pictures()
        found = attack(clean, model, Attack(4 / 255, "pgd", 2), generator())
    assert (found.reached > found.clean).all()
    assert not found.pictures["front"].is_inference()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 4.0}, "4/255"),
        ({"radius": -0.1}, "expected 0 to 1"),
        ({"radius": float("nan")}, "expected 0 to 1"),
        ({"radius": 0.1, "method": "fgsm"}, "'fgsm'. Known: .'pgd', 'apgd'"),
        ({"radius": 0.1, "steps": 0}, "at least 1 step"),
    ],
)
def test_an_attack_that_makes_no_sense_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Attack(**options)


def test_what_cannot_be_attacked_is_named(model):
    how = Attack(0.1, "pgd", 2)
    whole = {"front": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}
    with pytest.raises(ValueError, match="front is torch.uint8 .*divide uint8"):
        attack(whole, model, how, generator())
    with pytest.raises(ValueError, match="front ranges from -1 to 1.*before they are normalised"):
        attack({"front": torch.tensor([-1.0, 1.0, 0.0]).view(1, 3, 1, 1)}, model, how, generator())
    with pytest.raises(ValueError, match="no picture"):
        attack({}, model, how, generator())
    with pytest.raises(ValueError, match=r"shape \(\); expected one number per sample, \(3,\)"):
        attack(pictures(), lambda x: x["front"].sum(), how, generator())
    with pytest.raises(NoGradientError, match="no gradient towards front, which is available"):
        attack(pictures(), lambda x: x["front"].round().detach().sum((1, 2, 3)), how, generator())
    with pytest.raises(NoGradientError, match="no gradient towards wrist"):
        attack(pictures(), lambda x: x["front"].sum((1, 2, 3)), how, generator())
    with pytest.raises(FloatingPointError, match="objective is not finite"):
        attack(pictures(), lambda x: x["front"].sum((1, 2, 3)) / 0, how, generator())
    with pytest.raises(FloatingPointError, match="gradient"):
        attack(pictures(), lambda x: sum(0 * (0 * v).sqrt().sum((1, 2, 3)) for v in x.values()), how,
               generator())  # fmt: skip


def test_a_policy_that_takes_the_attacked_picture_for_bad_stops_no_attack():
    """Its health may drop a camera that it used before: then there is no slope, and no error either."""
    clean = pictures()

    def objective(x):
        bad = any((x[k] - clean[k]).abs().max() > 0.05 for k in x)
        return sum(v.mean((1, 2, 3)) for v in x.values()) * (torch.zeros(()) if bad else 1)

    def dropped(x):
        return objective(x).detach() if (x["front"] - clean["front"]).abs().max() > 0.05 else objective(x)

    for function in (objective, dropped):
        found = attack(clean, function, Attack(0.5, "pgd", 2), generator())
        assert (found.gradient == 0).all(), "which says that nothing was searched"
        assert torch.equal(found.reached, found.clean)


def test_token_shift_counts_what_is_there():
    clean = [torch.zeros(2, 4, 3), torch.zeros(2, 1, 3)]
    moved = [torch.full((2, 4, 3), 2.0), torch.full((2, 1, 3), 4.0)]
    there = [torch.tensor([True, True]), torch.tensor([True, False])]
    assert token_shift(moved, clean, there).tolist() == [10.0, 4.0]
    gone = [torch.zeros(2, dtype=torch.bool)] * 2
    assert token_shift(moved, clean, gone).tolist() == [0.0, 0.0]


def test_velocity_error_counts_the_executed_actions():
    target = torch.zeros(2, 3, 4, 5)
    velocity = target.clone()
    velocity[1, :, :2], velocity[:, :, 2:] = 3.0, 100.0
    assert velocity_error(velocity, target, 2).tolist() == [0.0, 9.0]
