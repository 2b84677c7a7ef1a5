"""Pictures that are not fit to be used: what one says by itself, and what several looks say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multismolvla.health import (
    MARKS,
    MOVED,
    Cause,
    Marker,
    Picture,
    StreamStatistics,
    fit_motion,
    fit_states,
    fit_statistics,
    inspect,
    judge,
    memory_size,
    patience,
)


def scene(rows=1, channels=3, side=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, channels, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")


def causes(image, modality="rgb", valid=None):
    return [Cause(c) for c in inspect([Picture(image, modality, valid)]).cause[:, 0].tolist()]


def mark(image, modality, statistics, valid=None):
    """Marks (B, MARKS) of one stream."""
    return Marker([modality], [statistics])(inspect([Picture(image, modality, valid)]))[:, 0]


# -- one picture ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 64, 480])
@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, Cause.ZERO), (0.5, Cause.CONSTANT), (1.0, Cause.CONSTANT)]
)
def test_a_picture_without_structure_is_not_fit(value, expected, side):
    assert causes(torch.full((2, 3, side, side), value)) == [expected] * 2
    assert causes(torch.full((2, 1, side, side), value), "thermal") == [expected] * 2


def test_a_black_picture_with_sensor_noise_is_constant_and_a_dim_scene_is_not():
    noise = torch.rand(1, 3, 64, 64) * 0.02
    assert causes(noise) == [Cause.CONSTANT]
    assert causes(scene() * 0.2) == [Cause.FIT]


def test_depth_needs_a_valid_pixel_and_a_wall_is_no_fault():
    wall = torch.full((2, 1, 32, 32), 0.7)
    valid = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    valid[1] = True
    assert causes(wall, "depth", valid) == [Cause.NO_DEPTH, Cause.FIT]


def test_an_empty_segmentation_picture_is_no_fault_by_itself():
    assert causes(torch.zeros(1, 1, 32, 32, dtype=torch.int64), "seg") == [Cause.FIT]


def test_pictures_of_a_batch_do_not_concern_each_other():
    batch = torch.cat([scene(), torch.zeros(1, 3, 48, 48), scene(seed=1)])
    assert causes(batch) == [Cause.FIT, Cause.ZERO, Cause.FIT]


def test_streams_of_any_size_are_looked_at_together_as_one_by_one():
    valid = torch.rand(2, 1, 60, 90) > 0.3
    pictures = [
        Picture(scene(2, side=48), "rgb"),
        Picture(torch.rand(2, 1, 60, 90) * 2, "depth", valid),
        Picture(torch.randint(0, 9, (2, 1, 130, 70)), "seg"),
        Picture(torch.zeros(2, 1, 64, 64), "thermal"),
    ]
    modalities, fitted = [p.modality for p in pictures], [statistics(), None, None, statistics()]
    together = Marker(modalities, fitted)(inspect(pictures))
    assert together.shape == (2, 4, MARKS)
    for number, picture in enumerate(pictures):
        alone = mark(picture.image, picture.modality, fitted[number], picture.valid)
        torch.testing.assert_close(together[:, number], alone)
    assert together[:, 3, 0].tolist() == [Cause.ZERO] * 2


def test_depth_is_measured_where_it_is_valid():
    depth, valid = torch.full((1, 1, 64, 64), 0.5), torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    depth[..., :32], valid[..., 40:] = 9.0, True
    seen = inspect([Picture(depth, "depth", valid)])
    assert seen.features[0, 0, :2].tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert seen.features[0, 0, 5].item() == pytest.approx(24 / 64)


# -- statistics ----------------------------------------------------------------------------------------------


def statistics(modality="rgb", factor=1.0):
    valid = torch.ones(60, 1, 48, 48, dtype=torch.bool)
    seen = inspect([Picture(scene(60) * factor, modality, valid)])
    parts = list(seen.features[:, 0].split(20))
    return fit_statistics(parts[:2], parts[2:], torch.tensor([0.2, 0.1]), 0.5)


def test_no_held_out_picture_exceeds_the_threshold():
    fitted = statistics()
    held_out = inspect([Picture(scene(60), "rgb")]).features[40:, 0]
    assert fitted.distance(held_out).max() <= 1


def test_a_covered_lens_is_farther_than_any_picture_of_the_data():
    dark = torch.rand(1, 3, 48, 48) * 0.08
    made = mark(dark, "rgb", statistics())
    assert made[0, 0] == Cause.FIT  # it is not constant
    assert made[0, 1] > 1


def test_depth_in_another_unit_is_recognised():
    fitted = statistics("depth", factor=2.0)
    valid = torch.ones(3, 1, 48, 48, dtype=torch.bool)
    depth = scene(3, 1, seed=7) * 2.0 * torch.tensor([1.0, 10.0, 0.1])[:, None, None, None]
    made = mark(depth, "depth", fitted, valid)
    assert made[:, 0].tolist() == [Cause.FIT, Cause.DEPTH_SCALE, Cause.DEPTH_SCALE]


def test_statistics_survive_a_file_and_damaged_ones_are_refused():
    fitted = statistics()
    again = StreamStatistics.from_tensor(fitted.to_tensor())
    assert torch.equal(again.to_tensor(), fitted.to_tensor())
    with pytest.raises(ValueError, match="multismolvla-health fit"):
        StreamStatistics.from_tensor(fitted.to_tensor()[:-1])
    with pytest.raises(ValueError, match="multismolvla-health fit"):
        StreamStatistics.from_tensor(fitted.to_tensor() * torch.nan)


def test_statistics_need_held_out_episodes():
    with pytest.raises(ValueError, match="0 held out"):
        fit_statistics([inspect([Picture(scene(), "rgb")]).features[:, 0]], [], torch.tensor([]), 0.5)


# -- several looks -------------------------------------------------------------------------------------------


def marks_of(images, fitted=None):
    return mark(images, "rgb", fitted)[:, None]  # (B, 1, MARKS)


def watch(looks, fitted=None, step=1.0, places=None, longest=None, apart=None):
    """Causes of one stream over looks, ``apart`` steps after the one before.

    The robot moves by ``step`` between them, or is at ``places``.
    """
    memory, found = None, []
    for number, image in enumerate(looks):
        state = torch.full((1, 2), float(number * step if places is None else places[number]))
        verdict = judge(marks_of(image, fitted), state, memory, longest, apart[number] if apart else 1)
        memory = verdict.memory
        found.append(Cause(int(verdict.cause)))
    return found


def test_the_same_picture_while_the_robot_moves_is_frozen_from_its_second_look_on():
    frozen = scene(seed=3)
    looks = [scene(), frozen, frozen, frozen, scene(seed=4)]
    assert watch(looks) == [Cause.FIT, Cause.FIT, Cause.FROZEN, Cause.FROZEN, Cause.FIT]


def test_a_picture_that_stays_while_the_robot_is_where_no_demonstration_was_is_no_fault():
    """An arm out of the picture's sight moves, and nothing in the picture does."""
    states = fit_states(torch.tensor([[0.0, -1.0], [10.0, 1.0]]))
    assert torch.allclose(states, torch.tensor([[-1.0, -1.2], [11.0, 1.2]]))
    still = fit_states(torch.tensor([[0.0, 7.0], [10.0, 7.0]]))  # its second number never changes
    assert still[:, 1].tolist() == [-torch.inf, torch.inf]
    seen, marker = inspect([Picture(scene(), "rgb")]), Marker(["rgb"], [statistics()], states)

    def causes_at(places):
        memory, found = None, []
        for place in places:
            state = torch.tensor([[place, 0.0]])
            verdict = judge(marker(seen, state=state), state, memory)
            memory = verdict.memory
            found.append(Cause(int(verdict.cause)))
        return found

    assert causes_at([12.0, 13.0, 14.0, 15.0]) == [Cause.FIT] * 4
    assert causes_at([3.0, 4.0, 12.0, 5.0]) == [Cause.FIT, *[Cause.FROZEN] * 3]  # once found, it stays so


def test_the_same_picture_of_a_resting_robot_is_fit():
    assert set(watch([scene()] * 4, step=0.0)) == {Cause.FIT}


@pytest.mark.parametrize(
    ("modality", "steps", "looks"),
    [("rgb", 1, 6), ("rgb", 4, 2), ("depth", 50, 1), ("thermal", 8, 4), ("thermal", 50, 1)],
)
def test_a_slow_camera_and_a_shutter_are_borne(modality, steps, looks):
    """A camera at a quarter of the loop's rate, and a thermal one that shows nothing new for a second."""
    causes = watch([scene()] * (looks + 1), longest=patience([modality]), apart=[steps] * (looks + 1))
    assert causes == [Cause.FIT] * looks + [Cause.FROZEN]


@pytest.mark.parametrize(
    "apart", [(1, 1, 3, 1), (3, 2, 1), (4, 1, 4), (2, 2, 2)], ids=["often", "in between", "seldom", "evenly"]
)
def test_what_counts_is_how_long_the_picture_stays_however_far_looks_are_apart(apart):
    """A camera at a quarter of the loop's rate, a little late, shows the same for five steps."""
    causes = watch([scene()] * (len(apart) + 1), longest=patience(["rgb"]), apart=[1, *apart])
    assert sum(apart[:-1]) <= 5 < sum(apart)
    assert causes == [Cause.FIT] * len(apart) + [Cause.FROZEN]


def noisy(seed):
    return (scene() + torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(seed)) * 0.02).clip(
        0, 1
    )


def test_what_counts_as_moving_is_what_nearly_all_looks_of_the_data_did():
    ways = torch.cat([torch.zeros(50), torch.linspace(1.0, 2.0, 101)])  # half of it pauses
    assert fit_motion(ways) == pytest.approx(1.05)
    assert fit_motion(torch.zeros(9)) == MOVED


def test_pictures_of_an_arm_that_hovers_hardly_change():
    """It moves less than in the data, where healthy thumbnails change by 0.1 between looks."""
    fitted = statistics()
    assert set(watch([noisy(i) for i in range(6)], fitted, step=0.3)) == {Cause.FIT}
    exact = [Cause.FIT, *[Cause.FROZEN] * 3]
    assert watch([scene()] * 4, fitted, step=0.3) == exact, "no noise at all is no healthy sensor"


def test_a_pause_neither_counts_nor_clears():
    found = watch([noisy(i) for i in range(5)], statistics(), places=[0.0, 1.0, 1.0, 1.0, 2.0])
    assert found == [*[Cause.FIT] * 4, Cause.FROZEN]


def test_a_freeze_with_sensor_noise_is_found_at_the_third_look():
    fitted = statistics()  # healthy thumbnails change by 0.1 between looks
    assert watch([noisy(i) for i in range(4)], fitted) == [Cause.FIT, Cause.FIT, Cause.FROZEN, Cause.FROZEN]
    assert set(watch([noisy(i) for i in range(4)])) == {Cause.FIT}  # nothing is known of healthy changes


def test_an_unusual_picture_is_out_after_two_looks_and_back_after_three():
    dark = [torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(i)) * 0.08 for i in range(3)]
    good = [scene(seed=0) for _ in range(4)]
    looks = [good[0], dark[0], good[1], dark[1], dark[2], *good]
    wide = replace(statistics(), threshold=6.0)  # so that the dark pictures lie between one and two
    found = watch(looks, wide, step=0.0)
    usual, odd = Cause.FIT, Cause.UNUSUAL
    assert found == [usual, usual, usual, usual, odd, odd, odd, usual, usual]


def test_black_pictures_do_not_make_those_after_them_unusual():
    black, dark = torch.zeros(1, 3, 48, 48), torch.rand(1, 3, 48, 48) * 0.08
    healthy = [scene(seed=number) for number in range(3)]
    zero, fit, odd = Cause.ZERO, Cause.FIT, Cause.UNUSUAL
    assert watch([*healthy, *[black] * 4, *healthy], statistics()) == [*[fit] * 3, *[zero] * 4, *[fit] * 3]
    # nor usual ones
    looks = [dark, *[black] * 4, *healthy]
    assert watch(looks, statistics()) == [odd, *[zero] * 4, odd, odd, fit]


def test_a_clearly_unusual_picture_is_out_at_once():
    dark = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 0.08
    assert watch([scene(), dark], statistics(), step=0.0) == [Cause.FIT, Cause.UNUSUAL]


def test_a_stream_without_marks_is_never_frozen():
    nothing = torch.zeros(1, 1, MARKS)
    nothing[..., 0] = -1
    memory = None
    for number in range(4):
        verdict = judge(nothing, torch.full((1, 2), float(number)), memory)
        memory = verdict.memory
        assert verdict.cause.item() == Cause.FIT


@settings(deadline=None)
@given(data=st.data())
def test_rows_may_come_in_any_company(data):
    """A server that stacks the rows of several robots gives each what it would get alone."""
    seeds = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=2, max_size=4))
    alone = [watch([scene(seed=s) for s in row]) for row in seeds]
    memory = torch.zeros(len(seeds), memory_size(1, 2))
    for look in range(4):
        images = torch.cat([scene(seed=row[look]) for row in seeds])
        order = data.draw(st.permutations(range(len(seeds))))
        verdict = judge(marks_of(images)[order], torch.full((len(seeds), 2), float(look)), memory[order])
        memory[order] = verdict.memory
        assert [verdict.cause[order.index(i)].item() for i in range(len(seeds))] == [
            row[look] for row in alone
        ]
