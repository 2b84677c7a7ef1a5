"""Rule 6: the curriculum's probability at its corner points, and what a draw of masks must keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multismolvla.dropout import check_shares, dropout_probability, sample_presence, step_generator

# -- p(step) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, 0.5 / 600),
        (300, 0.25),
        (599, 0.5 * 599 / 600),
        (600, 0.5),  # the end of the ramp
        (601, 0.5),
        (899, 0.5),  # the last step before the clean tenth
        (900, 0.0),  # its first
        (999, 0.0),
        (5000, 0.0),  # trained on beyond the stage: still clean
    ],
)
def test_linear_at_its_corner_points(step, expected):
    assert dropout_probability(step, 1000, mode="linear", p_max=0.5, ramp=0.6, clean=0.1) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(("step", "expected"), [(0, 0.3), (899, 0.3), (900, 0.0), (1000, 0.0)])
def test_fixed_is_flat_until_the_clean_tenth(step, expected):
    assert dropout_probability(step, 1000, mode="fixed", p_max=0.3) == expected


@given(step=st.integers(0, 2000))
def test_none_never_drops(step):
    assert dropout_probability(step, 1000, mode="none", p_max=0.9) == 0.0


@pytest.mark.parametrize(
    ("total", "first_clean"), [(10, 9), (100, 90), (1000, 900), (30, 27), (70, 63), (25_000, 22_500)]
)
def test_the_clean_tenth_begins_on_the_exact_step(total, first_clean):
    # 0.9 * 1000 is not 900 in binary; one step too many or too few would go unseen otherwise
    assert dropout_probability(first_clean - 1, total, mode="fixed") == 0.5
    assert dropout_probability(first_clean, total, mode="fixed") == 0.0


def test_rounding_does_not_eat_a_clean_step():
    assert 0.29 * 100 < 29  # in binary
    assert dropout_probability(70, 100, mode="fixed", clean=0.29) == 0.5
    assert dropout_probability(71, 100, mode="fixed", clean=0.29) == 0.0


def test_without_a_clean_phase_it_stays_up_to_the_last_step():
    assert dropout_probability(99, 100, clean=0.0) == 0.5
    assert dropout_probability(100, 100, clean=0.0) == 0.0


@given(
    total=st.integers(1, 5000),
    share=st.floats(0, 1.5),
    p_max=st.floats(0, 0.99),
    ramp=st.floats(0.01, 1),
    clean=st.floats(0, 0.9),
)
def test_it_rises_up_to_the_clean_phase_and_stays_in_range(total, share, p_max, ramp, clean):
    step = int(share * total)
    p, later = (dropout_probability(s, total, p_max=p_max, ramp=ramp, clean=clean) for s in (step, step + 1))
    assert 0 <= p <= p_max
    assert later >= p or later == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "cosine"}, "dropout_mode='cosine'.*linear"),
        ({"p_max": 1.0}, r"dropout_p_max=1.0 must lie in \[0, 1\)"),
        ({"p_max": -0.1}, "dropout_p_max=-0.1"),
        ({"ramp": 0.0}, r"dropout_ramp=0.0 must lie in \(0, 1\]"),
        ({"ramp": 1.1}, "dropout_ramp=1.1"),
        ({"clean": 1.0}, r"dropout_clean=1.0 in \[0, 1\)"),
        ({"total_steps": 0}, "--policy.curriculum_steps=0.*--steps"),
    ],
)
def test_wrong_values_are_named(change, message):
    arguments = {"step": 0, "total_steps": 10} | change
    with pytest.raises(ValueError, match=message):
        dropout_probability(**arguments)


def test_a_wrong_probability_is_named():
    with pytest.raises(ValueError, match=r"1.0 must lie in \[0, 1\)"):
        sample_presence(torch.ones(1, 1, 1, dtype=torch.bool), 1.0, step_generator(0, 0))


# -- the draw ------------------------------------------------------------------------------------------------


def draw(available: torch.Tensor, p: float, step: int = 3, **options) -> torch.Tensor:
    return sample_presence(available, p, step_generator(11, step), **options)


def all_there(batch: int, views: int = 2, modalities: int = 4) -> torch.Tensor:
    return torch.ones(batch, views, modalities, dtype=torch.bool)


def test_zero_is_the_identity_and_a_copy():
    available = all_there(3)
    presence = draw(available, 0.0)
    presence[0] = False
    assert available.all()


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4)),
    p=st.floats(0.01, 0.95),
    there=st.floats(0.1, 1),
)
def test_something_is_always_left_and_nothing_is_invented(seed, shape, p, there):
    available = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < there
    presence = sample_presence(available, p, step_generator(seed, 0))
    assert not (presence & ~available).any()
    assert torch.equal(presence.flatten(1).any(1), available.flatten(1).any(1))


def test_sample_view_and_modality_are_lost_independently_with_p():
    p, n = 0.3, 20_000
    lost = ~draw(all_there(n), p, complete_share=0.0)
    # conditioned on something being left: P(all eight lost) = 0.3^8 < 1e-4, below the tolerance
    assert torch.allclose(lost.float().mean(0), torch.full((2, 4), p), atol=0.012)
    flat = lost.flatten(1).float()  # (n, 8)
    correlation = torch.corrcoef(flat.T) - torch.eye(8)
    assert correlation.abs().max() < 0.03  # three standard errors of 1 / sqrt(20000) are 0.021
    # samples do not depend on their neighbours in the batch either
    neighbours = torch.stack([flat[:-1].flatten(), flat[1:].flatten()])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.02


def test_the_masks_are_a_function_of_seed_step_and_rank():
    def masks(seed: int, step: int, rank: int) -> torch.Tensor:
        return sample_presence(all_there(16), 0.5, step_generator(seed, step, rank))

    torch.manual_seed(0)
    first = masks(1, 7, 0)
    torch.rand(100)  # the global generator has no part in it
    assert torch.equal(masks(1, 7, 0), first)
    for other in [(2, 7, 0), (1, 8, 0), (1, 7, 1), (7, 1, 0), (1, 0, 7)]:
        assert not torch.equal(masks(*other), first), other


def test_a_resumed_run_draws_what_an_uninterrupted_one_would_have():
    whole = [draw(all_there(8), 0.5, step=s) for s in range(10)]
    resumed = [draw(all_there(8), 0.5, step=s) for s in range(6, 10)]
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], resumed, strict=True))
    assert len({tuple(m.flatten().tolist()) for m in whole}) == 10


@pytest.mark.parametrize(
    ("batch", "share", "at_least"), [(10, 0.1, 1), (40, 0.25, 10), (8, 0.5, 4), (8, 1.0, 8)]
)
def test_a_share_of_the_batch_stays_complete(batch, share, at_least):
    presence = draw(all_there(batch), 0.9, complete_share=share)
    assert presence[:at_least].all()
    assert presence[at_least:].numel() == 0 or not presence[at_least:].all()


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_complete_share_holds_for_small_batches_on_average(batch):
    # with one sample per rank, "at least one complete" would switch the curriculum off altogether
    masks = torch.cat([draw(all_there(batch), 0.5, step=s, complete_share=0.1) for s in range(2000 // batch)])
    complete = masks.flatten(1).all(1).float().mean().item()
    by_chance = 0.9 * 0.5**8
    assert complete == pytest.approx(0.1 + by_chance, abs=0.025)


def test_a_sample_without_sensors_stays_without():
    available = all_there(3)
    available[1] = False
    presence = draw(available, 0.9, complete_share=0.0)
    assert not presence[1].any()
    assert presence[[0, 2]].flatten(1).any(1).all()


# -- patterns ------------------------------------------------------------------------------------------------


def drawn(shares, p=0.5, batch=6000, deployment=None, seed=0):
    available = torch.ones(batch, 2, 4, dtype=torch.bool)
    generator = step_generator(seed, 0)
    return sample_presence(available, p, generator, shares=shares, deployment=deployment, complete_share=0.0)


def by_camera(presence):
    """Rows in which every view is there as a whole or not at all."""
    return (presence == presence[:, :, :1]).flatten(1).all(1)


def by_modality(presence):
    return (presence == presence[:, :1]).flatten(1).all(1)


def test_a_camera_is_lost_with_all_that_it_delivers():
    presence = drawn({"cameras": 1.0})
    assert by_camera(presence).all()
    # both views are never lost, so of the draws that remain one view is lost with 2 p q / (1 - p p)
    lost = (~presence[:, :, 0]).float().sum(1)
    assert lost.mean().item() == pytest.approx(2 / 3, abs=0.03)
    assert lost.max() == 1


def test_a_modality_is_lost_in_all_views_at_once():
    presence = drawn({"modalities": 1.0})
    assert by_modality(presence).all()
    assert presence.flatten(1).any(1).all()


@given(cameras=st.floats(0.05, 0.5), modalities=st.floats(0.05, 0.45), seed=st.integers(0, 99))
def test_patterns_come_in_their_shares(cameras, modalities, seed):
    shares = {"independent": 1 - cameras - modalities, "cameras": cameras, "modalities": modalities}
    presence = drawn(shares, seed=seed)
    damaged = ~presence.flatten(1).all(1)
    # 2 of 3 camera draws that leave something lose one; independent ones look so once in 255 draws
    found = (by_camera(presence) & damaged).float().mean().item()
    assert found == pytest.approx(cameras * 2 / 3 + shares["independent"] * 2 / 255, abs=0.03)
    found = (by_modality(presence) & damaged).float().mean().item()
    assert found == pytest.approx(modalities * 14 / 15 + shares["independent"] * 14 / 255, abs=0.03)


def test_the_deployment_pattern_leaves_what_the_robot_has():
    robot = torch.zeros(2, 4, dtype=torch.bool)
    robot[:, 0] = True
    presence = drawn({"deployment": 1.0}, p=0.25, deployment=robot)
    alone = (presence == robot).flatten(1).all(1)
    assert (alone | presence.flatten(1).all(1)).all()
    assert alone.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_without_shares_every_modality_of_every_view_is_drawn_by_itself():
    presence = drawn(None)
    assert (~presence).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert by_camera(presence).float().mean() < 0.03


@pytest.mark.parametrize(
    ("shares", "named"),
    [
        ({"camera": 1.0}, "'camera'.*cameras"),
        ({"cameras": 1.2, "independent": -0.2}, "-0.2"),
        ({"cameras": 0.5}, "0.5.* 1"),
        ({"deployment": 1.0}, "--policy.deployment"),
    ],
)
def test_shares_that_cannot_be_drawn_from_are_named(shares, named):
    with pytest.raises(ValueError, match=named):
        check_shares(shares, has_deployment=False)
