"""A policy whose estimators fail, or work in company that would change what they give, goes on as trained."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_annotated import DOMAINS, MODALITIES, RGB, VIEWS, alike, raw, seen, stored
from tiny_policy import SIDE

from multismolvla.health import Cause
from multismolvla.modalities import MODALITIES as ALL_MODALITIES
from multismolvla.modalities import padding_mask_key


def test_autocast_around_the_policy_changes_no_id(policy_of, annotated):
    """Mixed precision of whoever calls the policy; the recipe says what the estimators compute in."""
    policy, pre = policy_of()
    with torch.autocast("cpu", torch.bfloat16):
        found = seen(policy, pre, raw(annotated, [0]))
    for modality in MODALITIES:
        assert torch.equal(found[modality], stored(annotated, [0], modality))


def raising(error: BaseException):
    def estimate(rgb: torch.Tensor) -> torch.Tensor:
        raise error

    return estimate


FAILURES = {
    "nan": lambda rgb: torch.full((len(rgb), 1, SIDE, SIDE), torch.nan),
    "no channel": lambda rgb: torch.ones(len(rgb), SIDE, SIDE),
    "three channels": lambda rgb: torch.ones(len(rgb), 3, SIDE, SIDE),
    "another size": lambda rgb: torch.ones(len(rgb), 1, SIDE // 2, SIDE // 2),
    "another unit": lambda rgb: torch.full((len(rgb), 1, SIDE, SIDE), 5e5),
    **{
        error.__name__: raising(error("of some library"))
        for error in (
            RuntimeError, TypeError, IndexError, KeyError, AttributeError, MemoryError, AssertionError,
            OSError, ZeroDivisionError,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("modality", ["depth", "seg"])
def test_an_estimator_that_fails_makes_its_stream_absent_and_the_run_goes_on(
    modality, policy_of, annotated, caplog
):
    policy, pre = policy_of()
    policy.reset()
    batch = pre(raw(annotated, [0]))
    sound = policy._derived._loaded[modality]
    key = {"depth": "observation.images.image_depth", "seg": "observation.images.image_seg"}[modality]
    there = policy.availability(batch)
    failures = FAILURES if modality == "depth" else {"KeyError": FAILURES["KeyError"]}
    for name, estimate in failures.items():
        policy._derived._loaded[modality] = SimpleNamespace(estimate=estimate, recipe=sound.recipe)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                made, _ = policy._derived.complete(policy.config, batch, there)
        empty = name == "another unit"  # no depth within reach: a picture without a valid pixel
        assert (key in made and not made[f"{key}_valid"].any()) if empty else key not in made, name
        assert caplog.text.count(f"No {modality} can be estimated") == (0 if empty else 1), name
        policy._derived._loaded[modality] = sound
        policy._derived.complete(policy.config, batch, there)
    found = seen(policy, pre, raw(annotated, [0]))
    for sense in MODALITIES:
        assert torch.equal(found[sense], stored(annotated, [0], sense))


def test_what_goes_with_its_rgb_is_said_to_go_with_it(policy_of, annotated, tmp_path):
    diary = tmp_path / "health.jsonl"
    policy, pre = policy_of(health_log=str(diary))
    policy.reset()
    policy.predict_action_chunk(pre(raw(annotated, [0])))
    black = torch.zeros_like(raw(annotated, [1])[RGB[0]])
    policy.predict_action_chunk(pre(raw(annotated, [1], **{RGB[0]: black})))
    said = [json.loads(line) for line in diary.read_text().splitlines()]
    lost = {line["stream"]: line["cause"] for line in said if line["event"] == "lost"}
    assert lost == {"image.rgb": "zero"} | {f"image.{m}": "no rgb" for m in MODALITIES}
    causes = policy.last_look().health.cause.unflatten(1, (len(VIEWS), -1))
    assert [c.item() for c in causes.flatten() if c] == [Cause.ZERO]  # they themselves are not judged


@pytest.mark.parametrize("how", ["nan", "raises"])
def test_a_row_that_fails_takes_no_other_row_along(how, policy_of, annotated):
    policy, pre = policy_of(refresh={"depth": 2})
    policy.reset()
    sound = policy._derived._loaded["depth"]

    def estimate(rgb: torch.Tensor) -> torch.Tensor:
        made, bad = sound.estimate(rgb), (rgb[..., :8, :] == 1).flatten(1).all(1)
        if how == "raises" and bad.any():
            raise IndexError("a picture that this network cannot take")
        return torch.where(bad[:, None, None, None], torch.nan, made)

    policy._derived._loaded["depth"] = SimpleNamespace(estimate=estimate, recipe=sound.recipe)
    front = raw(annotated, [0, 1, 2])[RGB[0]]
    front[1, :, :8] = 1
    found = seen(policy, pre, raw(annotated, [0, 1, 2], **{RGB[0]: front}))
    wanted = stored(annotated, [0, 1, 2], "depth")
    assert (found["depth"][1, 0] == -1).all()
    assert alike(found["depth"][[0, 2], 0], wanted[[0, 2], 0])
    assert alike(found["depth"][:, 1], wanted[:, 1])
    ages = policy.last_look().derived["observation.derived_age"]
    assert ages[:, 0].tolist() == [0, -1, 0]  # its turn comes again at the next look


def test_what_becomes_of_estimates_is_in_the_verdict_and_the_diary(policy_of, annotated, tmp_path):
    file = tmp_path / "health.jsonl"
    policy, pre = policy_of(health_log=str(file), refresh={"thermal": 2})
    policy.reset()
    sound = policy._derived._loaded["depth"]
    broken = SimpleNamespace(estimate=raising(KeyError("of some library")), recipe=sound.recipe)
    causes = []
    for row, estimator in enumerate([sound, broken, sound]):
        policy._derived._loaded["depth"] = estimator
        policy.predict_action_chunk(pre(raw(annotated, [row])))
        front = policy.last_look().health.cause.unflatten(1, (len(VIEWS), -1))[0, 0].tolist()
        causes.append([Cause(front[ALL_MODALITIES.index(m)]) for m in ("rgb", *MODALITIES)])
    fit = [Cause.FIT] * 4
    assert causes == [fit, [Cause.FIT, Cause.NO_ESTIMATE, Cause.FIT, Cause.NOT_DUE], fit]
    start, *rest = map(json.loads, file.read_text().splitlines())
    assert start["streams"] == {
        f"{view}.{m}": "there" if m == "rgb" else "estimated" for view in VIEWS for m in ("rgb", *MODALITIES)
    }
    assert [(line["event"], line["stream"], line["cause"]) for line in rest] == [
        ("lost", "image.depth", "no estimate"), ("lost", "image2.depth", "no estimate"),
        ("back", "image.depth", None), ("back", "image2.depth", None),
    ]  # fmt: skip


def test_in_a_servers_batch_a_network_always_sees_as_many_pictures(policy_of, annotated):
    """Else how an estimate is rounded would tell what the other episodes of the batch need."""
    from multismolvla_eval.policies.lerobot import LeRobotPolicy

    policy, pre = policy_of(refresh={"thermal": 2}, health="off")
    LeRobotPolicy.keep_shapes(SimpleNamespace(policy=policy))
    policy.reset()
    counts: dict[str, list[int]] = {m: [] for m in MODALITIES}
    grey = [0]
    for modality, sound in list(policy._derived._loaded.items()):

        def estimate(rgb, sound=sound, counted=counts[modality]):
            counted.append(len(rgb))
            grey[0] += int((rgb == 0.5).flatten(1).all(1).sum())
            return sound.estimate(rgb)

        policy._derived._loaded[modality] = SimpleNamespace(estimate=estimate, recipe=sound.recipe)
    lost = {padding_mask_key(RGB[0]): torch.tensor([True, False, True])}
    found = seen(policy, pre, raw(annotated, [0, 1, 2], **lost))
    for modality in MODALITIES:
        wanted = stored(annotated, [0, 1, 2], modality)
        assert (found[modality][1, 0] == -1).all()
        assert alike(found[modality][[0, 2], 0], wanted[[0, 2], 0])
        assert alike(found[modality][:, 1], wanted[:, 1])
    policy.predict_action_chunk(pre(raw(annotated, [0, 1, 2])))  # thermal is due where there was no RGB
    inputs, thermal = policy.last_look().inputs, DOMAINS["thermal"]
    there = inputs.present[thermal].reshape(3, len(VIEWS), -1)
    assert there.any(-1).tolist() == [[False, False], [True, False], [False, False]]
    ids = inputs.values[thermal].reshape(3, len(VIEWS), -1)
    assert alike(ids[1, 0], stored(annotated, [1], "thermal")[0, 0])
    assert counts == {"depth": [3] * 4, "seg": [3] * 4, "thermal": [3] * 3}
    assert grey == [1 + 1 + 1 + 2]  # what is not due is left out
