"""The live view shows what the policy gets, beside what is there, and changes nothing."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multismolvla_eval.config import check_view
from multismolvla_eval.evaluate import main, parse
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import EpisodeRow, SuiteFacts
from multismolvla_eval.rollout.recorders import Recorders

pytest.importorskip("rerun")
from multismolvla_eval.rollout.rerun_log import LiveView  # noqa: E402


def logged(path) -> dict[tuple[str, str], list]:
    """All values by entity and component, with rerun's own reader."""
    from rerun.experimental import RrdReader

    content = defaultdict(list)
    for chunk in RrdReader(path).stream().to_chunks():
        for name, values in chunk.to_record_batch().to_pydict().items():
            entity = chunk.entity_path.lstrip("/").replace("\\", "")
            content[entity, name].extend(v for v in values if v)
    return content


def batch(step: int, **changes) -> dict:
    pictures = {
        "observation.images.image": torch.full((1, 3, 8, 8), step / 10),
        "observation.images.image_depth": torch.full((1, 1, 8, 8), 1.5),
        "observation.images.image_seg": torch.full((1, 3, 8, 8), 2 / 255),
        "observation.images.image_thermal": torch.full((1, 3, 8, 8), 0.25),
        "observation.state": torch.zeros(1, 8),
    }
    return {**pictures, **changes}


class CleanEnv:
    unwrapped = property(lambda self: self)

    def clean_rgb(self):
        return {"image": np.zeros((8, 8, 3), np.uint8)[::-1]}


def showing(view: LiveView, episode: EpisodeSpec, labels: list[str]) -> LiveView:
    """The view at the beginning of an episode of a source with one camera."""
    facts = SuiteFacts(type="t", tasks={episode.task_id: "push the plate"}, max_steps=9, labels=labels)
    view.begin(episode, SimpleNamespace(cameras=("image",), facts=lambda: facts))
    return view


def row_of(episode: EpisodeSpec, **changes) -> EpisodeRow:
    return EpisodeRow(
        run="r", policy=episode.policy, checkpoint="c", suite=episode.suite, suite_hash="w",
        task_id=episode.task_id, condition=episode.condition, episode=episode.episode, repeat=0, init_state=0,
        **changes,
    )  # fmt: skip


def test_every_step_and_stream_is_in_the_recording(tmp_path):
    view = LiveView(str(tmp_path / "a.rrd"), "test")
    episode = EpisodeSpec("ours", "libero_goal", 3, "C1:-depth", 4)
    showing(view, episode, ["a", "b", "c"])
    for step in range(5):
        gone = {"observation.images.image_depth_padding_mask": torch.tensor([step < 2])}
        assert view.wants(step)
        view.frame(CleanEnv(), batch(step, **gone), step)
        view.acted(np.arange(7.0), step)
    view.frame(CleanEnv(), None, 5)
    view.finish(row_of(episode, success=False, cause="time_out", steps=5))
    del view
    content = logged(tmp_path / "a.rrd")

    def count(stream: str, component: str) -> int:
        return len(content[f"observation.images.{stream}", component])

    assert count("image", "EncodedImage:blob") == count("image_thermal", "EncodedImage:blob") == 5
    assert count("image_seg", "SegmentationImage:buffer") == 5
    assert count("image_depth", "DepthImage:buffer") == 2
    assert count("image", "Clear:is_recursive") == 1  # of the episode before
    assert count("image_depth", "Clear:is_recursive") == 2  # and when the sensor goes
    assert len(content["clean/observation.images.image", "EncodedImage:blob"]) == 5
    assert (
        len(content["action", "Scalars:scalars"]) == len(content["observation.state", "Scalars:scalars"]) == 5
    )
    said = [text for (text,) in content["log", "TextLog:text"]]
    assert [any(word in text for text in said) for word in ("begins", "announced as absent", "time_out")] == [
        True
    ] * 3
    assert len(said) == 3
    assert len(content["episode", "TextDocument:text"]) == 2


def test_values_arrive_in_their_units(tmp_path):
    view = LiveView(str(tmp_path / "a.rrd"), "test")
    episode = EpisodeSpec("ours", "toy", 0, "C0", 0)
    showing(view, episode, ["a", "b", "mug"])
    view.frame(CleanEnv(), batch(1), 0)
    view.finish(row_of(episode, success=True, steps=1))
    del view
    content = logged(tmp_path / "a.rrd")
    depth = bytes(content["observation.images.image_depth", "DepthImage:buffer"][0][0])
    assert (np.frombuffer(depth, np.uint16) == 1500).all()
    assert content["observation.images.image_depth", "DepthImage:meter"][0] == [1000.0]
    ids = content["observation.images.image_seg", "SegmentationImage:buffer"][0][0]
    assert set(ids) == {2}
    assert "mug" in str(content["observation.images.image_seg", "AnnotationContext:context"])
    assert not any(path.startswith("clean") for path, _ in content), (
        "a clean episode needs no clean picture beside it"
    )


def test_a_run_with_a_view_gives_the_same_results(make_config, tmp_path):
    from multismolvla_eval.evaluate import evaluate
    from multismolvla_eval.records.store import read_run

    actions = {}
    for name, view in (("plain", None), ("seen", str(tmp_path / "run.rrd"))):
        evaluate(make_config(output=tmp_path / name, view=view))
        actions[name] = {
            (r.policy, r.task_id, r.condition, r.episode): (
                r.actions,
                r.success,
                r.start,
            )
            for r in read_run(tmp_path / name)[1]
        }
    assert actions["plain"] == actions["seen"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # rerun's, that the file has no table of contents
        content = logged(tmp_path / "run.rrd")
    assert len(content["episode", "TextDocument:text"]) == 2 * len(actions["seen"])
    seen, clean = (
        content["observation.images.image", "EncodedImage:blob"],
        content["clean/world", "EncodedImage:blob"],
    )
    assert len(seen) > len(clean) > 0


def test_a_second_recording_gets_a_name_of_its_own(tmp_path):
    paths = [LiveView(str(tmp_path / "a.rrd"), "test").path for _ in range(3)]
    assert [p.name for p in paths] == ["a.rrd", "a-2.rrd", "a-3.rrd"]


def test_several_recorders_are_asked_each_for_itself():
    class Keeper:
        def __init__(self, stride):
            self.stride, self.seen, self.actions = stride, [], 0

        def wants(self, step):
            return step % self.stride == 0

        def frame(self, env, batch, step):
            self.seen.append(step)

        def acted(self, action, step):
            self.actions += 1

    often, seldom = Keeper(1), Keeper(3)
    both = Recorders([often, seldom])
    for step in range(4):
        if both.wants(step):
            both.frame(None, {}, step)
        both.acted(np.zeros(7), step)
    both.frame(None, None, 4)
    assert (often.seen, seldom.seen, often.actions) == ([0, 1, 2, 3, 4], [0, 3, 4], 4)
    assert not Recorders([]).wants(0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--view"], "viewer"),
        (["--view", "--clips=0"], "viewer"),
        (["--view=a.rrd"], "a.rrd"),
        (["--view", "a.rrd"], "a.rrd"),
        ([], None),
    ],
)
def test_option_with_and_without_a_value(given, expected):
    assert parse(given).view == expected


def test_targets_that_cannot_work_are_named(monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match="no display"):
        check_view("viewer")
    with pytest.raises(ValueError, match=r"ending in \.rrd"):
        check_view("video.mp4")
    monkeypatch.setenv("DISPLAY", ":0")
    check_view("viewer")
    check_view("rerun+http://10.0.0.1:9876/proxy")
    assert main(["--policies=[a=builtin:zero]", "--view=video.mp4"]) == 2
    assert "--view=video.mp4" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"\[view\]"):
        check_view("viewer")
