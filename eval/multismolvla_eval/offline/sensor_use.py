"""How much a policy uses its sensors: offline action error with true and with changed pictures.

The controls show zeroed pictures and those of other frames, of all sensors together and of each modality
alone; a policy that reads presence masks is also told that a modality is absent; and the same pictures are
shown with the instruction of another task. What a policy computes of RGB it computes of the RGB that it is
shown, whatever the dataset has of it: a stored estimate would be of the true picture. A control that changes
nothing shows a sensor that the policy does not use, and no fault of it can hurt. It is a proxy: a low error
is no solved task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from multismolvla.modalities import padding_mask_key
from multismolvla_eval.analysis.bootstrap import percentile_interval, resampled_means
from multismolvla_eval.analysis.diagnosis import Change, ControlError, SensorUse
from multismolvla_eval.config import EstimatorOptions, EvalConfig, renaming
from multismolvla_eval.policies.checkpoints import policy_hash
from multismolvla_eval.policies.features import (
    Streams,
    computed_streams,
    streams_by_modality,
    streams_of_rgb,
    with_masks,
)
from multismolvla_eval.policies.lerobot import plans_ahead, stored_config

if TYPE_CHECKING:
    from multismolvla_eval.environments import Batch

    Preprocess = Callable[[Batch], Batch]


@dataclass
class FrameOptions(EstimatorOptions):
    """Which policies are shown which recorded frames."""

    # As for multismolvla-eval: `name=checkpoint`. Those that look at no picture (builtin:, no_vision:) are
    # left out.
    policies: list[str] = field(default_factory=list)
    # LeRobotDataset with the policies' pictures, or with pictures and cached ids.
    dataset: Path = Path("outputs/mini/dataset")
    # Only these episodes of it; all when left out, which may be training frames.
    episodes: list[int] | None = None
    # Folder for what is found.
    output: Path = Path("outputs/eval")
    # Frames, spread over the episodes.
    frames: int = 128
    # Frames at a time.
    batch_size: int = 32
    # Which frames, which pairs of frames, which sampling noise.
    seed: int = 0
    # Device of the policies; the checkpoint's own choice when left out.
    device: str | None = None
    # As for multismolvla-eval: modules that register policy types, and the policies' names of the pictures.
    plugins: list[str] = field(default_factory=list)
    rename_map: dict[str, Any] = field(default_factory=dict)
    # Exit code 1 when a check fails; false only warns.
    strict: bool = True
    #: Whether the frames will be shown with attacked RGB.
    attacked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check_estimators()
        for name, least in (("frames", 2), ("batch_size", 1)):  # 2: to swap pictures
            if getattr(self, name) < least:
                raise ValueError(f"--{name}={getattr(self, name)} must be at least {least}.")
        if self.episodes is not None and not self.episodes:
            raise ValueError("--episodes=[] selects nothing. Name episodes, or leave the option out for all.")

    def chosen(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Name, path and rename map of each policy, once the plugins are imported."""
        for module in self.plugins:
            import_module(module)
        for name, path in EvalConfig(policies=self.policies).policy_paths().items():
            yield name, path, renaming(name, self.rename_map)


@dataclass
class SensorUseOptions(FrameOptions):
    """How much does each policy use each of its sensors? Fails where one hardly uses its pictures."""

    # Of the frames, for each modality alone; rounded up to whole batches.
    modality_frames: int = 64
    # Fail, too, where another task's instruction hardly changes what a policy does.
    judge_instruction: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modality_frames < 1:
            raise ValueError(f"--modality_frames={self.modality_frames} must be at least 1.")


@dataclass(frozen=True)
class Frames:
    """N frames in memory."""

    observation: dict[str, Tensor]  # policy's key -> (N, ...), as the dataset delivers it (RGB as uint8)
    task: list[str]  # instruction per frame
    action: Tensor  # float (N, n, A), raw: the first n actions of the chunk that starts at the frame
    is_pad: Tensor  # bool (N, n), True beyond the end of the episode
    episode: Tensor  # int64 (N,)

    def __len__(self) -> int:
        """Number of frames N."""
        return len(self.task)

    def streams(self, config: Any) -> Streams:
        """What a policy looks at and gets of the frames: pictures, cached ids, what it computes of RGB."""
        there = {*self.observation, *computed_streams(config)}
        return {m: s for m, s in streams_by_modality(config).items() if there & {*s, *s.values()}}

    def hold(self, streams: Streams) -> list[str]:
        """The modalities of which the frames have anything."""
        return [m for m, s in streams.items() if not {*s, *s.values()}.isdisjoint(self.observation)]


@dataclass(frozen=True)
class Control:
    """One way to show the frames."""

    name: str
    change: str  # none, zero, shuffle or mask, of pictures; task, of the instruction
    modality: str | None = None  # None means all


def controls_for(
    streams: Collection[str], masks: bool, tasks: int, computed: Collection[str] = ()
) -> list[Control]:
    """True pictures, the two controls of all sensors, another instruction, then each modality's controls.

    Args:
        streams: modalities that the policy looks at.
        masks: whether a modality can be declared absent to it.
        tasks: number of instructions; a single one cannot be exchanged.
        computed: modalities of which it is shown nothing, because it computes them of RGB.
    """
    shown = [m for m in streams if m not in computed]
    controls = [Control("true", "none"), Control("zeroed", "zero"), Control("shuffled", "shuffle")]
    controls += [Control("another task", "task")] if tasks > 1 else []
    if len(shown) > 1:  # of one modality, these are the two of all sensors
        controls += [Control(f"{m} zeroed", "zero", m) for m in shown]
        controls += [Control(f"{m} shuffled", "shuffle", m) for m in shown]
    if masks:
        controls += [Control(f"{m} masked", "mask", m) for m in streams]
    return controls


def measure(path: str, options: SensorUseOptions, rename_map: Mapping[str, str]) -> SensorUse:
    """Load a policy and measure it.

    Raises:
        FileNotFoundError: there is no checkpoint or no dataset.
        ValueError: the dataset lacks the episodes, the policy's pictures, or a second frame.
        FloatingPointError: the policy returns NaN or infinity.
    """
    config = stored_config(path, options)
    config.device = options.device or config.device
    use = SensorUse(path, policy_hash(path), type=config.type)
    if not plans_ahead(config):
        use.left_out = f"a {config.type} policy does not plan from one observation alone"
        return use
    data = open_dataset(options, getattr(config, "depth_unit", "m"))
    policy, preprocess = load_as_trained(config, data.meta, rename_map)
    frames = load_frames(options, data, config, rename_map)
    # What the dataset lacks can be neither shuffled nor masked.
    streams = frames.streams(config)
    computed = set(streams) - set(frames.hold(streams))
    controls = controls_for(streams, hasattr(config, "stream_keys"), len(set(frames.task)), computed)
    use.controls = control_errors(action_errors(policy, preprocess, frames, controls, streams, options))
    use.n, use.episodes = len(frames), len(frames.episode.unique())
    use.n_action_steps, use.modalities = frames.action.shape[1], list(streams)
    return use


def load_as_trained(config: Any, meta: Any, rename_map: Mapping[str, str]) -> tuple[Any, Preprocess]:
    """Policy and pre-processor, built as LeRobot's scripts do it (adapters included)."""
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    policy = make_policy(config, ds_meta=meta, rename_map=dict(rename_map)).eval()
    preprocess, _ = make_pre_post_processors(
        policy_cfg=config,
        pretrained_path=str(config.pretrained_path),
        preprocessor_overrides={"device_processor": {"device": str(config.device)}},
    )
    return policy, preprocess


def open_dataset(options: FrameOptions, depth_unit: str) -> Any:
    """The dataset, restricted to ``--episodes``; depth in the unit that the policy was trained with.

    Raises:
        FileNotFoundError: the folder is no LeRobotDataset.
        ValueError: an episode does not exist.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder, episodes = options.dataset, options.episodes
    info = folder / "meta/info.json"
    if not info.is_file():
        raise FileNotFoundError(f"--dataset={folder} is no LeRobotDataset (no meta/info.json).")
    total = json.loads(info.read_text())["total_episodes"]
    strangers = [e for e in episodes or () if not 0 <= e < total]
    if strangers:
        raise ValueError(f"--episodes names {strangers}; {folder} has episodes 0 to {total - 1}.")
    name = f"local/{folder.name}"
    return LeRobotDataset(name, folder, episodes, return_uint8=True, depth_output_unit=depth_unit)


def load_frames(options: FrameOptions, data: Any, config: Any, rename_map: Mapping[str, str]) -> Frames:
    """Read the frames; the pictures of each are decoded once.

    A stored estimate shows the true RGB. It is left out where the policy computes it anew of what it is
    shown; under attack also where nobody does, as in a roll-out.

    LeRobot 0.6.1 decodes every picture of every row that ``delta_timestamps`` touches, hence the actions are
    read from their own column.

    Raises:
        ValueError: the dataset has none of the policy's pictures, or fewer than two frames.
    """
    from tqdm import tqdm

    streams = streams_by_modality(config)
    computed = streams_of_rgb(config) if options.attacked else computed_streams(config)
    pictures = {k for by_key in streams.values() for pair in by_key.items() for k in pair if k}
    pictures -= {*computed, *computed.values()}
    flags = {padding_mask_key(k) for by_key in streams.values() for k in by_key}
    others = {k for k in config.input_features if k not in {*config.image_features, *computed.values()}}
    renamed = with_masks(rename_map)
    keys = {k: name for k in data.features if (name := renamed.get(k, k)) in pictures | flags | others}
    if not pictures & set(keys.values()):
        raise ValueError(
            f"{options.dataset} has none of the policy's pictures {sorted(pictures)}. Name the dataset (or "
            "its token cache) that it was trained on, or say with --rename_map what its pictures are called "
            "there."
        )
    rows = spread(len(data), options.frames, options.seed)
    if len(rows) < 2:
        raise ValueError(
            f"{options.dataset} has {len(rows)} frames there; at least 2 are needed to swap pictures."
        )
    items = [data[row] for row in tqdm(rows, desc="read frames", unit="frame")]
    action, is_pad, episode = _chunks(data, rows, list(config.action_delta_indices)[: config.n_action_steps])
    observation = {
        name: torch.stack([_compact(i[k], name in config.image_features) for i in items])
        for k, name in keys.items()
    }
    return Frames(observation, [i["task"] for i in items], action, is_pad, episode)


def spread(total: int, count: int, seed: int) -> list[int]:
    """One row of each of ``count`` equal parts of ``range(total)``; all rows if there are no more."""
    if count >= total:
        return list(range(total))
    edges = np.linspace(0, total, count + 1)
    offset = np.random.default_rng(seed).random(count)
    return np.floor(edges[:-1] + offset * np.diff(edges)).astype(int).clip(0, total - 1).tolist()


def _compact(picture: Tensor, visual: bool) -> Tensor:
    """Three-channel pictures as the uint8 that they are on disk: a quarter of the memory, no loss."""
    if visual and picture.is_floating_point() and picture.ndim == 3 and len(picture) == 3:
        return (picture * 255).round().to(torch.uint8)
    return picture


def _chunks(data: Any, rows: Sequence[int], deltas: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Actions (N, n, A), padding (N, n) and episode (N,) of the chunks that start at ``rows``."""
    last = len(data) - 1
    wanted = [row + d for row in rows for d in deltas]
    column = data.hf_dataset.select_columns(["action", "episode_index"])
    found = column[[min(max(w, 0), last) for w in wanted]]
    inside = torch.tensor([0 <= w <= last for w in wanted]).unflatten(0, (len(rows), -1))
    episode = torch.stack(list(column[list(rows)]["episode_index"])).flatten()
    same = torch.stack(list(found["episode_index"])).unflatten(0, (len(rows), -1)) == episode[:, None]
    action = torch.stack(list(found["action"])).unflatten(0, (len(rows), -1))
    return action, ~(inside & same), episode


def partners(count: int, seed: int) -> Tensor:
    """For each of ``count`` frames another one, int64 (count,): a random cycle through all."""
    order = torch.from_numpy(np.random.default_rng(seed + 1).permutation(count))
    other = torch.empty(count, dtype=torch.int64)
    other[order] = order.roll(1)
    return other


def other_tasks(tasks: Sequence[str]) -> list[str]:
    """For each frame the instruction of another task, of all tasks in turn."""
    names = sorted(set(tasks))
    step = dict.fromkeys(names, 0)
    found = []
    for task in tasks:
        step[task] = step[task] % (len(names) - 1) + 1
        found.append(names[(names.index(task) + step[task]) % len(names)])
    return found


def show(frames: Frames, streams: Streams, control: Control, rows: Tensor, other: Tensor) -> Batch:
    """The raw batch of ``rows`` with the pictures changed, before the policy's pre-processor.

    Args:
        frames: all frames.
        streams: what the policy looks at.
        control: what is changed; zeroed depth is invalid depth, cached ids become id 0.
        rows: int64 (B,), positions in ``frames``.
        other: int64 (N,), see `partners`.
    """
    chosen = [by_key for m, by_key in streams.items() if control.modality in (None, m)]
    content = {k for by_key in chosen for pair in by_key.items() for k in pair if k}
    flags = {padding_mask_key(k) for by_key in chosen for k in by_key}
    tasks = other_tasks(frames.task) if control.change == "task" else frames.task
    batch: Batch = {"task": [tasks[r] for r in rows.tolist()], "action": frames.action[rows]}
    for key, values in frames.observation.items():
        swap = control.change == "shuffle" and key in content | flags
        value = values[other[rows] if swap else rows]
        if control.change == "zero" and key in content:
            value = torch.zeros_like(value)
        batch[key] = value.float() / 255 if value.dtype == torch.uint8 and value.ndim == 4 else value
    if control.change == "mask":
        batch |= {flag: torch.zeros(len(rows), dtype=torch.bool) for flag in flags}
    return batch


def action_errors(
    policy: Any,
    preprocess: Preprocess,
    frames: Frames,
    controls: Sequence[Control],
    streams: Streams,
    options: SensorUseOptions,
) -> dict[str, np.ndarray]:
    """Mean absolute error of each frame's first n actions, normalised units, padding excluded.

    All controls get the same sampling noise. A modality alone is measured on a random part of the frames.

    Returns:
        Control's name -> float64 (N,), NaN where it was not measured.

    Raises:
        FloatingPointError: the policy returns NaN or infinity.
    """
    from tqdm import tqdm

    count = len(frames)
    other = partners(count, options.seed)
    # In random order, so that the first modality_frames are spread over the dataset like all of them.
    order = torch.from_numpy(np.random.default_rng(options.seed + 2).permutation(count))
    batches = list(enumerate(order.split(options.batch_size)))
    few = batches[: -(-options.modality_frames // options.batch_size)]  # whole: noise depends on their size
    jobs = [(c, *batch) for c in controls for batch in (batches if c.modality is None else few)]
    errors = {c.name: np.full(count, np.nan) for c in controls}
    total = sum(len(rows) for _, _, rows in jobs)
    with tqdm(total=total, desc="sensor use", unit="chunk") as bar, torch.random.fork_rng():
        for control, number, rows in jobs:
            batch = preprocess(show(frames, streams, control, rows, other))
            target = batch.pop("action").cpu()
            policy.reset()  # frames follow one another in no episode
            torch.manual_seed(options.seed + number)
            with torch.inference_mode():
                predicted = policy.predict_action_chunk(batch)[:, : target.shape[1]].float().cpu()
            if not predicted.isfinite().all():
                raise FloatingPointError(
                    f"The policy's actions are not finite (pictures: {control.name}). Do not use it."
                )
            real = ~frames.is_pad[rows]
            error = ((predicted - target).abs().mean(-1) * real).sum(1) / real.sum(1)  # (B,)
            errors[control.name][rows.numpy()] = error.double().numpy()
            bar.update(len(rows))
    return errors


def control_errors(errors: Mapping[str, np.ndarray]) -> dict[str, ControlError]:
    """Mean errors and their paired difference to the true pictures, over each control's frames."""
    found = {}
    for name, values in errors.items():
        measured = np.isfinite(values)
        values, true = values[measured], errors["true"][measured]
        resamples = resampled_means(np.stack([values, values - true]), (len(values),))
        (low, high), (change_low, change_high) = percentile_interval(resamples).tolist()
        row = ControlError(len(values), float(values.mean()), low, high)
        if name != "true":
            difference = float((values - true).mean())
            relative = difference / max(float(true.mean()), 1e-12)
            row.change = Change(difference, change_low, change_high, relative)
        found[name] = row
    return found
