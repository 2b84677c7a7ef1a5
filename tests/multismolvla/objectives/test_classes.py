"""Labels, anchors, running statistics, and the options by themselves."""

from __future__ import annotations

import pytest
import torch

from multismolvla.objectives.classes import (
    cosines,
    instruction_anchors,
    known_task_loss,
    labelled_episodes,
)
from multismolvla.objectives.options import ObjectivesOptions, RlbindOptions, RobultOptions, check_objectives
from multismolvla.objectives.registry import OBJECTIVES, modules_to_save, objective_of
from multismolvla.objectives.statistics import RunningStatistics

#: Three tasks of 40, 20 and 1 episodes, in no order.
EPISODES = {n: ("a", "b", "a")[n % 3] for n in reversed(range(60))} | {60: "c"}


@pytest.mark.parametrize(("fraction", "expected"), [(0.05, (2, 1, 1)), (0.1, (4, 2, 1)), (1.0, (40, 20, 1))])
def test_of_each_task_the_fraction_is_labelled_and_at_least_one_episode(fraction, expected):
    chosen = labelled_episodes(EPISODES, fraction, 0)
    assert chosen == sorted(set(chosen))
    assert tuple(sum(EPISODES[n] == task for n in chosen) for task in "abc") == expected


def test_the_seed_decides_and_a_larger_fraction_takes_no_label_back():
    some = labelled_episodes(EPISODES, 0.1, seed=3)
    assert labelled_episodes(dict(sorted(EPISODES.items())), 0.1, seed=3) == some
    assert set(some) < set(labelled_episodes(EPISODES, 0.3, seed=3))
    assert labelled_episodes(EPISODES, 0.1, seed=4) != some


def test_anchors_are_unit_vectors_and_equal_for_equal_instructions():
    embeddings = 5 + torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    embeddings[3] = embeddings[1]
    anchors = instruction_anchors(embeddings.requires_grad_(), 32)
    assert anchors.norm(dim=1).tolist() == pytest.approx([1] * 4)
    assert torch.equal(anchors[3], anchors[1])
    assert torch.equal(anchors, instruction_anchors(embeddings, 32))
    assert not anchors.requires_grad
    assert cosines(embeddings, embeddings).min() > 0.9  # nearly alike; their anchors are not
    assert cosines(anchors, anchors)[0, 1] < 0.5


@pytest.mark.parametrize("width", [8, 48, 200])
def test_a_single_instruction_has_an_anchor_of_any_width(width):
    anchors = instruction_anchors(torch.randn(1, 48), width)
    assert anchors.shape == (1, width)
    assert anchors.norm().item() == pytest.approx(1)


def test_samples_without_a_task_do_not_count():
    logits = torch.randn(4, 3, requires_grad=True)
    task, there = torch.tensor([0, -1, 2, 1]), torch.tensor([True, True, False, True])
    found = known_task_loss(logits, task, there)
    assert found.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits[[0, 3]], task[[0, 3]]).item()
    )
    nothing = known_task_loss(logits, torch.full((4,), -1), there)
    nothing.backward()
    assert nothing.item() == 0


def test_statistics_are_those_of_all_rows_at_first():
    statistics = RunningStatistics(3)
    rows = 4 + 2 * torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(0))
    for batch in rows:
        statistics.update(batch, torch.ones(16, dtype=torch.bool))
    every = rows.flatten(0, 1)
    assert torch.allclose(statistics.mean, every.mean(0), atol=1e-5)
    assert torch.allclose(statistics.variance, every.var(0, unbiased=False), atol=1e-4)
    standardised = statistics.standardised(every)
    assert standardised.mean(0).abs().max() < 1e-4
    assert standardised.std(0, unbiased=False).tolist() == pytest.approx([1] * 3, rel=1e-3)


def test_rows_that_do_not_count_leave_the_statistics():
    one, other = RunningStatistics(3), RunningStatistics(3)
    rows, counted = torch.randn(4, 3), torch.tensor([True, False, True, False])
    one.update(rows, counted)
    other.update(rows[counted], torch.ones(2, dtype=torch.bool))
    assert torch.allclose(one.mean, other.mean)
    before = {k: v.clone() for k, v in one.state_dict().items()}
    one.update(torch.full((4, 3), torch.nan), ~torch.ones(4).bool())
    assert all(torch.equal(v, before[k]) for k, v in one.state_dict().items())


def test_old_batches_fade():
    statistics = RunningStatistics(1, momentum=0.5)
    for value in (0.0, 0.0, 1.0, 1.0):
        statistics.update(torch.full((2, 1), value), torch.ones(2, dtype=torch.bool))
    assert statistics.mean.item() == pytest.approx(0.75)


# -- options and registry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ObjectivesOptions(label_fraction=0.0), r"label_fraction=0.0 must lie in \(0, 1\]"),
        (ObjectivesOptions(label_fraction=1.5), "label_fraction=1.5"),
        (ObjectivesOptions(robult=RobultOptions(weight=-1.0)), "objectives.robult.weight=-1.0"),
        (ObjectivesOptions(robult=RobultOptions(weight=float("nan"))), "objectives.robult.weight=nan"),
        (ObjectivesOptions(robult=RobultOptions(temperature=0.0)), "objectives.robult.temperature=0"),
        (ObjectivesOptions(robult=RobultOptions(width=0)), "objectives.robult.width=0.*at least 1"),
        (ObjectivesOptions(robult=RobultOptions(posterior_ramp=0.0)), "robult.posterior_ramp=0.0"),
        (ObjectivesOptions(rlbind=RlbindOptions(anchor=float("inf"))), "objectives.rlbind.anchor=inf"),
        (ObjectivesOptions(rlbind=RlbindOptions(radius=0.0)), "objectives.rlbind.radius=0.0"),
        (ObjectivesOptions(rlbind=RlbindOptions(attack_steps=0)), "rlbind.attack_steps=0.*at least 1"),
        (ObjectivesOptions(rlbind=RlbindOptions(attack_ramp=0.0)), "objectives.rlbind.attack_ramp=0.0"),
        (ObjectivesOptions(rlbind=RlbindOptions(attack_clean=1.0)), "attack_clean=1.0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=f"--policy.*{message}"):
        check_objectives(options)


def test_everything_is_off_by_default():
    options = ObjectivesOptions()
    check_objectives(options)
    assert options.robult.weight == options.rlbind.weight == 0
    assert options.label_fraction == 1


def test_a_weight_belongs_to_the_objective_that_its_key_names():
    assert objective_of("model.objectives.robult.projection.weight") == "robult"
    assert objective_of("model.bridge.connector.gain") is None
    assert modules_to_save(OBJECTIVES) == ["objectives.robult", "objectives.rlbind"]
