r"""``multismolvla-health``: teach a policy what is healthy and safe, and see what it made of faults.

Example:
    $ multismolvla-health fit --policy outputs/demo/train/robust/checkpoints/last/pretrained_model \
        --dataset outputs/demo/dataset
    $ multismolvla-health report --results outputs/demo/eval
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.system.command import AGAIN, CommandError, entry_point, parse_options, show_progress
from multismolvla.system.files import write_json

if TYPE_CHECKING:
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
    from multismolvla.health import Inspection, StreamStatistics


@dataclass
class HealthOptions:
    """Options of ``multismolvla-health fit`` and ``multismolvla-health report``."""

    # fit (statistics of healthy pictures into a policy) or report (of an evaluation); may be given as the
    # first word
    command: str = "fit"
    policy: Path | None = None  # fit: folder of the policy (.../checkpoints/last/pretrained_model)
    dataset: Path | None = None  # fit: LeRobotDataset with pictures of all the policy's streams
    # fit: share of the episodes that set the thresholds, and as many again that count false alarms
    held_out: float = 0.2
    # fit: on a data set with other states than those that the policy was trained on
    other_data: bool = False
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
            raise ValueError(f"--held_out={self.held_out} must lie between 0 and 0.5.")


@dataclass
class _Episode:
    """What the N looks of one episode show.

    Attributes:
        number: of the episode.
        streams: stream (``view.modality``) -> its modality, in the order of ``seen``.
        seen: of all streams; a negative cause stands for a stream that the data say is absent.
        state: float (N, D), normalised.
        raw_state: float (N, D), in the units of the data set.
    """

    number: int
    streams: dict[str, str]
    seen: Inspection
    state: torch.Tensor
    raw_state: torch.Tensor

    def fit(self, stream: int) -> torch.Tensor:
        """Which pictures of a stream nothing is wrong with, bool (N,)."""
        return self.seen.cause[:, stream] == 0


def fit(options: HealthOptions) -> str:
    """Fit the statistics and write them into the policy's processors; returns what to tell the user.

    Pictures with which something is wrong by themselves are left out. The guard gets the range by which the
    policy unnormalises, the farthest step between two frames, and the farthest with which an episode begins.

    Raises:
        CommandError: the folder holds no MultiSmolVLA policy, the data too few episodes, or none of the
            policy's pictures, or other data than the policy was trained on.
    """
    import torch
    from lerobot.processor import DeviceProcessorStep
    from tqdm import trange

    from lerobot_policy_multismolvla.processor_multismolvla import POST_FILE, PRE_FILE, HealthStep
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
    pre, post = _unfitted_processors(config, folder)
    data = open_dataset(FrameOptions(dataset=options.dataset), config.depth_unit)
    number = data.meta.total_episodes
    held_out = max(1, round(options.held_out * number))
    if number - 2 * held_out < 1:
        raise CommandError(f"{options.dataset} has {number} episodes; at least 3 are needed.")
    _check_pictures(config, data)
    if not options.other_data:
        _check_states(pre, data)
    step = next(s for s in pre.steps if isinstance(s, HealthStep))
    episodes = [
        _read(config, data, pre, step, e) for e in trange(number, desc="read episodes", unit="episode")
    ]
    left_out = _left_out(episodes, config.n_action_steps)
    tasks = [data.meta.episodes[e.number]["tasks"] for e in episodes]
    episodes = [episodes[i] for i in split_order(tasks, held_out)]
    test, episodes = episodes[:held_out], episodes[held_out:]
    statistics = _statistics(episodes, held_out)
    states = fit_states(torch.cat([e.raw_state for e in episodes]))
    fitted = {
        "dataset": options.dataset.name,
        "frames": data.meta.total_frames,
        "episodes": len(episodes) - held_out,
        "held_out": held_out,
        "views": config.views,
    }
    step.set_statistics(statistics, fitted, states)
    alarms = _false_alarms(statistics, states, test, config.n_action_steps)
    looks = sum(len(e.state) for e in test)
    # computed on the CPU, whatever device the policy is for
    moves = next(s for s in pre.steps if isinstance(s, DeviceProcessorStep))
    moves.device = json.loads((folder / "config.json").read_text())["device"]
    put_guard(post, config.stopped, *_greatest_steps(data))
    pre.save_pretrained(folder, config_filename=PRE_FILE)
    post.save_pretrained(folder, config_filename=POST_FILE)
    output = options.output or folder
    rules_off = [*_rules_off(config, statistics, data.features)]
    summary = {
        "fitted": step.fitted,
        "streams": {
            name: {"threshold": s.threshold, "change": s.change, "constant": s.constant}
            for name, s in statistics.items()
        },
        "left_out": left_out,
        "rules_off": rules_off,
        "test_looks": looks,
        "test_alarms": alarms,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "health.json", summary)
    told = [
        *(f"Left out: {line}." for line in left_out),
        *(f"Will not be found: {line}." for line in rules_off),
        f"{len(statistics)} streams, {len(episodes) - held_out} episodes for the ranges, {held_out} for the "
        f"thresholds. In {held_out} others a stream was unfit at {sum(alarms.values())} of {looks} looks"
        f"{': ' + ', '.join(f'{k} ({n})' for k, n in alarms.items()) if alarms else ''}.",
        f"Written into {folder}.",
    ]
    return "\n".join(told)


def split_order(tasks: Sequence[Sequence[str]], held_out: int) -> list[int]:
    """Numbers of the episodes, such that as many as are held out, taken from either end, are of all tasks.

    Every so many-th, task after task: recordings alternate between tasks as well as they finish one by one.

    Args:
        tasks: of each episode.
        held_out: at most half of the episodes.
    """
    by_task = sorted(range(len(tasks)), key=lambda i: list(tasks[i]))
    stride = len(tasks) // held_out
    return [by_task[i] for part in range(stride) for i in range(part, len(tasks), stride)]


def _unfitted_processors(config: Any, folder: Path) -> tuple[Any, Any]:
    """The policy's processors, on the CPU, as if nothing had been fitted: what was may be damaged."""
    from lerobot.policies.factory import make_pre_post_processors

    from lerobot_policy_multismolvla.processor_multismolvla import POST_FILE, PRE_FILE, complete_processors
    from multismolvla.weights import read_json

    with tempfile.TemporaryDirectory() as scratch:
        for name in (PRE_FILE, POST_FILE):
            stored = read_json(folder / name)
            for entry in stored["steps"]:
                if entry.get("registry_name") in ("multismolvla_health", "multismolvla_guard"):
                    entry.pop("state_file", None)
                    entry["config"].pop("fitted", None)
                elif "state_file" in entry:
                    shutil.copyfile(folder / entry["state_file"], Path(scratch) / entry["state_file"])
            write_json(Path(scratch) / name, stored)
        pre, post = make_pre_post_processors(
            config,
            pretrained_path=scratch,
            preprocessor_overrides={"device_processor": {"device": "cpu"}},
        )
    complete_processors(config, pre, post)
    return pre, post


def _check_pictures(config: Any, data: LeRobotDataset) -> None:
    """See that a data set has pictures of the policy.

    Raises:
        CommandError: it has none.
    """
    if not config.stream_keys().keys() & data.features.keys():
        raise CommandError(
            f"{data.root} has none of the policy's pictures {sorted(config.stream_keys())}. Name the data "
            "set that has them; ids are not enough."
        )


def _check_states(pre: Any, data: LeRobotDataset) -> None:
    """See that a data set's states are those that the policy was trained on; a copy with ids has the same.

    Raises:
        CommandError: they are not.
    """
    import torch
    from lerobot.processor import NormalizerProcessorStep

    of_steps = [
        s.stats.get("observation.state", {}) for s in pre.steps if isinstance(s, NormalizerProcessorStep)
    ]
    trained, here = (of_steps or [{}])[0], data.meta.stats.get("observation.state", {})
    if not {"mean", "std"} <= trained.keys() & here.keys():
        return
    mean, std, own = (torch.as_tensor(x).double() for x in (trained["mean"], trained["std"], here["mean"]))
    same = mean.shape == own.shape
    if same and ((mean - own).abs() <= 1e-3 * (std + mean.abs())).all():
        return
    raise CommandError(
        f"{data.root} is not what the policy was trained on: its states have the means "
        f"{[round(x, 4) for x in own.tolist()]}, those of the training data "
        f"{[round(x, 4) for x in mean.tolist()]}. Name that data set, or what it was annotated from, or say "
        "that these pictures shall count: --other_data=true."
    )


def _read(config: Any, data: LeRobotDataset, pre: Any, step: HealthStep, episode: int) -> _Episode:
    """What the policy would see at its looks, every ``n_action_steps`` frames."""
    import torch

    from multismolvla.health import health_key, inspect
    from multismolvla.modalities import padding_mask_key

    about, keys = data.meta.episodes[episode], config.stream_keys()
    rows = range(about["dataset_from_index"], about["dataset_to_index"], config.n_action_steps)
    items = [data[row] for row in rows]
    read = {*keys, *map(padding_mask_key, keys), "observation.state"}
    batch: dict[str, Any] = {k: torch.stack([i[k] for i in items]) for k in items[0] if k in read}
    ready = pre(batch | {"task": [i["task"] for i in items]})
    there = step.pictures(ready)
    causes = []
    for key in (key for key, (view, m) in keys.items() if f"{view}.{m}" in there):
        flag = ready.get(padding_mask_key(key))
        cause = ready[health_key(key)][:, 0].long()
        causes.append(cause if flag is None else torch.where(flag, cause, -1))
    seen = replace(inspect(list(there.values())), cause=torch.stack(causes, 1))
    streams = {name: picture.modality for name, picture in there.items()}
    state, raw = (source["observation.state"].flatten(1) for source in (ready, batch))
    return _Episode(episode, streams, seen, state, raw)


def _left_out(episodes: Sequence[_Episode], steps: int) -> list[str]:
    """Pictures with a cause, in words: how many of which stream, and the first."""
    from multismolvla.health import Cause

    counted: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for e in episodes:
        for number, name in enumerate(e.streams):
            for look, cause in enumerate(e.seen.cause[:, number].tolist()):
                if cause:
                    what = (name, Cause(cause).label if cause > 0 else "said to be absent")
                    counted[what] += 1
                    first.setdefault(what, f"episode {e.number}, frame {look * steps}")
    total = sum(len(e.state) for e in episodes)
    return [
        f"{n} of {total} pictures of {name}, {why} (first: {first[name, why]})"
        for (name, why), n in counted.items()
    ]


def _rules_off(
    config: Any, statistics: Mapping[str, StreamStatistics], features: Collection[str]
) -> Iterator[str]:
    """What will not be found of which stream, and why."""
    from multismolvla.modalities import Modality

    for key, (view, modality) in config.stream_keys().items():
        name, known = f"{view}.{modality}", statistics.get(f"{view}.{modality}")
        if known is None:
            if not config.is_derived(view, modality):
                why = "has too few fit pictures" if key in features else f"lacks {key}"
                yield f"what needs statistics of {name}, since the data set {why}"
            continue
        if known.constant and modality in (Modality.RGB, Modality.THERMAL):
            yield f"constant pictures of {name}, since healthy ones have hardly any structure"
        if known.change == 0 and modality != Modality.SEG:
            yield f"frozen pictures of {name}, since healthy ones stay the same while the robot moves"


def _greatest_steps(data: LeRobotDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each number of the action moves between two frames, and from 0 in the first: (A,) each."""
    import torch

    rows = data.hf_dataset.with_format("torch").select_columns(["action", "episode_index"])[:]
    actions, episode = torch.as_tensor(rows["action"]), torch.as_tensor(rows["episode_index"])
    same = episode.diff() == 0
    first = torch.cat([torch.tensor([True]), ~same])
    return actions.diff(dim=0)[same].abs().amax(0), actions[first].abs().amax(0)


def _statistics(episodes: list[_Episode], held_out: int) -> dict[str, StreamStatistics]:
    import torch

    from multismolvla.health import fit_motion, fit_statistics

    made = {}
    ways = [e.state.diff(dim=0).abs().amax(1) for e in episodes]
    motion = fit_motion(torch.cat(ways))
    for number, name in enumerate(episodes[0].streams):
        changes = []
        for e, way in zip(episodes, ways, strict=True):
            fit = e.fit(number)
            moved = (way > motion) & fit[1:] & fit[:-1]
            changes.append(e.seen.thumbnail[:, number].diff(dim=0).abs().amax(1)[moved])
        features = [e.seen.features[e.fit(number), number] for e in episodes]
        some, others = ([f for f in part if len(f)] for part in (features[:-held_out], features[-held_out:]))
        if some and others:
            made[name] = fit_statistics(some, others, torch.cat(changes), motion)
    return made


def _false_alarms(
    statistics: Mapping[str, StreamStatistics], states: torch.Tensor, episodes: list[_Episode], steps: int
) -> dict[str, int]:
    """Stream and cause -> at how many looks, ``steps`` apart, of healthy episodes it was found unfit."""
    from multismolvla.health import Cause, Marker, judge, patience

    alarms: dict[str, int] = {}
    for e in episodes:
        marker = Marker(list(e.streams.values()), [statistics.get(name) for name in e.streams], states)
        marks = marker(e.seen, state=e.raw_state)
        memory, longest = None, patience(list(e.streams.values()))
        for i in range(len(e.state)):
            verdict = judge(marks[i : i + 1], e.state[i : i + 1], memory, longest, steps)
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
