r"""``multismolvla-health``: teach a policy what is healthy and safe, and see what it made of faults.

Example:
    $ multismolvla-health fit --policy outputs/demo/train/robust/checkpoints/last/pretrained_model \
        --dataset outputs/demo/dataset
    $ multismolvla-health report --results outputs/demo/eval
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.system.command import AGAIN, CommandError, entry_point, parse_options, show_progress
from multismolvla.system.files import write_json

if TYPE_CHECKING:
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
    from multismolvla.health import Inspection, StreamStatistics

_PRE, _POST = "policy_preprocessor.json", "policy_postprocessor.json"


@dataclass
class HealthOptions:
    """Options of ``multismolvla-health``."""

    command: str = "fit"  # fit (statistics of healthy pictures into a policy) or report (of an evaluation)
    policy: Path | None = None  # fit: folder of the policy (.../checkpoints/last/pretrained_model)
    dataset: Path | None = None  # fit: LeRobotDataset with pictures of all the policy's streams
    # fit: share of the episodes that set the thresholds, and as many again that count false alarms
    held_out: float = 0.2
    output: Path | None = None  # fit: folder for health.json; default: the policy's
    results: Path | list[Path] | None = None  # report: folder of an evaluation, or several to be pooled

    def __post_init__(self) -> None:
        needed = {"fit": ("policy", "dataset"), "report": ("results",)}
        if self.command not in needed:
            raise ValueError(f"{self.command!r} is no command; expected fit or report.")
        missing = [f"--{name}" for name in needed[self.command] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{self.command} needs {' and '.join(missing)}.")
        if not 0 < self.held_out < 0.5:
            raise ValueError(f"--held-out={self.held_out} must lie between 0 and 0.5.")


@dataclass
class _Episode:
    """What the N looks of one episode show.

    Attributes:
        streams: stream (``view.modality``) -> its modality, in the order of ``seen``.
        seen: of all streams.
        state: float (N, D), normalised.
        raw_state: float (N, D), in the units of the data set.
    """

    streams: dict[str, str]
    seen: Inspection
    state: torch.Tensor
    raw_state: torch.Tensor


def fit(options: HealthOptions) -> str:
    """Fit the statistics and write them into the policy's processors; returns what to tell the user.

    The guard gets the range by which the policy unnormalises, and the farthest step between two frames.

    Raises:
        CommandError: the folder holds no MultiSmolVLA policy with a 4M tower, or too few episodes.
    """
    import torch
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.processor import DeviceProcessorStep
    from tqdm import trange

    from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
    from lerobot_policy_multismolvla.safety.guard import put_guard
    from multismolvla.health import fit_states
    from multismolvla_eval.offline.sensor_use import FrameOptions, open_dataset
    from multismolvla_eval.policies.lerobot import stored_config

    assert options.policy is not None
    assert options.dataset is not None
    if not options.policy.is_dir():
        raise CommandError(f"--policy={options.policy} is no folder. The statistics are written into one.")
    config = stored_config(str(options.policy))
    folder = Path(config.pretrained_path)
    if config.type != "multismolvla":
        raise CommandError(f"--policy={options.policy} is of type {config.type}, expected multismolvla.")
    data = open_dataset(FrameOptions(dataset=options.dataset), config.depth_unit)
    number = data.meta.total_episodes
    held_out = max(1, round(options.held_out * number))
    if number - 2 * held_out < 1:
        raise CommandError(f"{options.dataset} has {number} episodes; at least 3 are needed.")
    pre, post = make_pre_post_processors(
        config,
        pretrained_path=str(folder),
        preprocessor_overrides={"device_processor": {"device": "cpu"}},
    )
    step = next((s for s in pre.steps if isinstance(s, HealthStep)), None)
    if step is None:
        raise CommandError(f"The pre-processor of {options.policy} has no step that marks pictures.")
    step.set_statistics({}, {})
    episodes = [
        _read(config, data, pre, step, e) for e in trange(number, desc="read episodes", unit="episode")
    ]
    # every so many-th, so that all tasks are among them: recorders write task after task
    order = [i for part in range(number // held_out) for i in range(part, number, number // held_out)]
    episodes = [episodes[i] for i in order]
    test, episodes = episodes[:held_out], episodes[held_out:]
    statistics = _statistics(episodes, held_out)
    states = fit_states(torch.cat([e.raw_state for e in episodes]))
    step.set_statistics(
        statistics,
        {"dataset": options.dataset.name, "episodes": len(episodes) - held_out, "held_out": held_out},
        states,
    )
    alarms = _false_alarms(statistics, states, test, config.n_action_steps)
    looks = sum(len(e.state) for e in test)
    # computed on the CPU, whatever device the policy is for
    moves = next(s for s in pre.steps if isinstance(s, DeviceProcessorStep))
    moves.device = json.loads((folder / "config.json").read_text())["device"]
    put_guard(post, config.stopped, _greatest_step(data))
    pre.save_pretrained(folder, config_filename=_PRE)
    post.save_pretrained(folder, config_filename=_POST)
    output = options.output or folder
    summary = {
        "fitted": step.fitted,
        "streams": {
            name: {"threshold": s.threshold, "change": s.change, "constant": s.constant}
            for name, s in statistics.items()
        },
        "test_looks": looks,
        "test_alarms": alarms,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "health.json", summary)
    return (
        f"{len(statistics)} streams, {len(episodes) - held_out} episodes for the ranges, {held_out} for the "
        f"thresholds. In {held_out} others a stream was unfit at {sum(alarms.values())} of {looks} looks"
        f"{': ' + ', '.join(f'{k} ({n})' for k, n in alarms.items()) if alarms else ''}.\n"
        f"Written into {folder}."
    )


def _read(config: Any, data: LeRobotDataset, pre: Any, step: HealthStep, episode: int) -> _Episode:
    """What the policy would see at its looks, every ``n_action_steps`` frames."""
    import torch

    from multismolvla.health import inspect

    about = data.meta.episodes[episode]
    rows = range(about["dataset_from_index"], about["dataset_to_index"], config.n_action_steps)
    items = [data[row] for row in rows]
    keys = {*config.stream_keys(), "observation.state"}
    batch: dict[str, Any] = {k: torch.stack([i[k] for i in items]) for k in items[0] if k in keys}
    ready = pre(batch | {"task": [i["task"] for i in items]})
    there = step.pictures(ready)
    streams = {name: picture.modality for name, picture in there.items()}
    state, raw = (source["observation.state"].flatten(1) for source in (ready, batch))
    return _Episode(streams, inspect(list(there.values())), state, raw)


def _greatest_step(data: LeRobotDataset) -> torch.Tensor:
    """How far each number of the action moves between two frames of an episode, at most: (A,)."""
    import torch

    rows = data.hf_dataset.with_format("torch").select_columns(["action", "episode_index"])[:]
    actions, episode = torch.as_tensor(rows["action"]), torch.as_tensor(rows["episode_index"])
    return actions.diff(dim=0)[episode.diff() == 0].abs().amax(0)


def _statistics(episodes: list[_Episode], held_out: int) -> dict[str, StreamStatistics]:
    import torch

    from multismolvla.health import MOVED, fit_statistics

    made = {}
    for number, name in enumerate(episodes[0].streams):
        changes = []
        for e in episodes:
            moved = e.state.diff(dim=0).abs().amax(1) > MOVED
            changes.append(e.seen.thumbnail[:, number].diff(dim=0).abs().amax(1)[moved])
        features = [e.seen.features[:, number] for e in episodes]
        made[name] = fit_statistics(features[:-held_out], features[-held_out:], torch.cat(changes))
    return made


def _false_alarms(
    statistics: Mapping[str, StreamStatistics], states: torch.Tensor, episodes: list[_Episode], steps: int
) -> dict[str, int]:
    """Stream and cause -> at how many looks, ``steps`` apart, of healthy episodes it was found unfit."""
    from multismolvla.health import Cause, Marker, judge, patience

    alarms: dict[str, int] = {}
    for e in episodes:
        marker = Marker(list(e.streams.values()), [statistics[name] for name in e.streams], states)
        marks = marker(e.seen, state=e.raw_state)
        memory, least = None, patience(list(e.streams.values()), steps)
        for i in range(len(e.state)):
            verdict = judge(marks[i : i + 1], e.state[i : i + 1], memory, least)
            memory = verdict.memory
            for name, cause in zip(e.streams, verdict.cause[0].tolist(), strict=True):
                if cause:
                    what = f"{name} {Cause(cause).label}"
                    alarms[what] = alarms.get(what, 0) + 1
    return alarms


def report(options: HealthOptions) -> str:
    """What the policies of one or more evaluations thought of their streams, per condition."""
    from multismolvla_eval.analysis.health import health_text
    from multismolvla_eval.records.store import read_run

    assert options.results is not None
    folders = options.results if isinstance(options.results, list) else [options.results]
    return health_text([read_run(folder) for folder in folders])


@entry_point("multismolvla-health", interrupted=AGAIN, loads="lerobot")
def main() -> int:
    """Entry point; exit code 0 done, 1 a named error, 130 interrupted."""
    show_progress("multismolvla_run")
    options = parse_options(HealthOptions, positional=("command",))
    sys.stdout.write((fit if options.command == "fit" else report)(options) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
