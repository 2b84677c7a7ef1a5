r"""The gate between two stages: does this checkpoint look at its pictures?

Offline action error on recorded frames, with the true pictures, with zeroed ones and with those of other frames. A policy
whose error does not grow clearly under both controls acts from state and instruction alone, and no roll-out of it says
anything about robustness. For our own policies every modality is also shuffled and masked alone; that is shown, not judged.

It is a proxy: the error says that pictures matter, not that the task is solved. What counts as "clearly" is in
`.gate_verdict`.

Example:
    $ python -m multismolvla_eval.offline.action_error --policy=outputs/mini/train/base/checkpoints/last/pretrained_model \
        --dataset=outputs/mini/dataset --output=outputs/mini/train/gate_base/gate.json
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multismolvla.modalities import padding_mask_key
from multismolvla.system.command import AGAIN, entry_point, parse_options
from multismolvla.system.files import write_json
from multismolvla_eval.offline.verdict import (  # noqa: F401  the verdict's names are the gate's too
    BOOTSTRAP_DRAWS,
    BOOTSTRAP_SEED,
    CONFIDENCE,
    CONTROLS,
    MIN_RELATIVE,
    failures,
    interval,
    render,
    table,
)
from multismolvla_eval.policies.features import Streams, streams_of


@dataclass
class GateConfig:
    """Options of ``python -m multismolvla_eval.offline.action_error``."""

    policy: Path = Path("outputs/mini/train/base/checkpoints/last/pretrained_model")  # with config.json
    dataset: Path = Path("outputs/mini/dataset")  # LeRobotDataset: pictures, or pictures and cached ids
    output: Path = Path("outputs/mini/gate.json")
    frames: int = 256
    modality_frames: int = 64  # of these, for each modality alone (shown, not judged); up to whole batches
    episodes: list[int] | None = None  # only these; None: all, i.e. the training frames
    seed: int = 0  # which frames, which pairs, which sampling noise
    batch_size: int = 64
    device: str | None = None  # None: the checkpoint's
    # dataset's key of a picture -> policy's, as LeRobot's --rename_map
    rename_map: dict[str, str] = field(default_factory=dict)
    strict: bool = True  # exit code 1 when the gate is closed; false only warns

    def __post_init__(self) -> None:
        for name, least in (("frames", 2), ("modality_frames", 1), ("batch_size", 1)):  # 2: to swap pictures
            if getattr(self, name) < least:
                raise ValueError(f"--{name}={getattr(self, name)} must be at least {least}.")
        if self.episodes is not None and not self.episodes:
            raise ValueError("--episodes=[] selects nothing. Name episodes, or leave the option out for all.")


@dataclass(frozen=True)
class Frames:
    """N frames in memory.

    Attributes:
        observation: policy's key -> (N, ...), as the dataset delivers it (RGB pictures as uint8).
        task: instruction per frame.
        action: float (N, n, A), raw: the first n actions of the chunk that starts at the frame.
        is_pad: bool (N, n), True beyond the end of the episode.
        episode: int64 (N,).
    """

    observation: dict[str, Tensor]
    task: list[str]
    action: Tensor
    is_pad: Tensor
    episode: Tensor

    def __len__(self) -> int:
        """Number of frames N."""
        return len(self.task)


@dataclass(frozen=True)
class Arm:
    """One way to show the pictures: ``change`` is none, zero, shuffle or mask; ``modality`` None means all of them."""

    name: str
    change: str
    modality: str | None = None


def arms_for(streams: Streams, per_modality: bool) -> list[Arm]:
    """True pictures and the two controls first, then each modality alone."""
    arms = [Arm("true", "none"), Arm("zeroed", "zero"), Arm("shuffled", "shuffle")]
    if per_modality:
        if len(streams) > 1:  # with one modality this is the control itself
            arms += [Arm(f"{m} shuffled", "shuffle", m) for m in streams]
        arms += [Arm(f"{m} masked", "mask", m) for m in streams]
    return arms


# -- frames ----------------------------------------------------------------------------------------------------------


def spread(total: int, count: int, seed: int) -> list[int]:
    """One row out of each of ``count`` equal parts of ``range(total)``, ascending; all rows when there are no more."""
    if count >= total:
        return list(range(total))
    edges = np.linspace(0, total, count + 1)
    offset = np.random.default_rng(seed).random(count)
    return np.floor(edges[:-1] + offset * np.diff(edges)).astype(int).clip(0, total - 1).tolist()


def partners(count: int, seed: int) -> Tensor:
    """For each of ``count`` frames another one, int64 (count,): a random cycle through all, so never itself."""
    order = torch.from_numpy(np.random.default_rng(seed + 1).permutation(count))
    other = torch.empty(count, dtype=torch.int64)
    other[order] = order.roll(1)
    return other


def load_frames(cfg: GateConfig, data: Any, config: Any, streams: Streams) -> Frames:
    """Read the frames; the pictures of each are decoded once.

    LeRobot 0.6.1 decodes every picture of every row that ``delta_timestamps`` touches, hence the actions are read from
    their own column.

    Args:
        cfg: options.
        data: LeRobotDataset without ``delta_timestamps``.
        config: the policy's.
        streams: what the policy looks at.

    Raises:
        ValueError: the dataset has none of the policy's pictures, or fewer than two frames.
    """
    from tqdm import tqdm

    pictures = {k for by_key in streams.values() for pair in by_key.items() for k in pair if k}
    flags = {padding_mask_key(k) for by_key in streams.values() for k in by_key}
    others = {k for k in config.input_features if k not in config.image_features}
    masks = {padding_mask_key(old): padding_mask_key(new) for old, new in cfg.rename_map.items()}
    names = {k: {**masks, **cfg.rename_map}.get(k, k) for k in data.features}  # dataset's key -> policy's
    keys = {k: name for k, name in names.items() if name in pictures | flags | others}
    if not pictures & set(keys.values()):
        raise ValueError(
            f"{cfg.dataset} has none of the pictures {sorted(pictures)} of {cfg.policy}. Name the dataset (or its token "
            "cache) that the policy was trained on, or say with --rename_map what its pictures are called there."
        )
    rows = spread(len(data), cfg.frames, cfg.seed)
    if len(rows) < 2:
        raise ValueError(
            f"{cfg.dataset} has {len(rows)} frames there; at least 2 are needed to swap pictures."
        )
    items = [data[row] for row in tqdm(rows, desc="read frames", unit="frame")]
    action, is_pad, episode = _chunks(data, rows, list(config.action_delta_indices)[: config.n_action_steps])
    observation = {
        name: torch.stack([_compact(i[k], name in config.image_features) for i in items])
        for k, name in keys.items()
    }
    return Frames(observation, [i["task"] for i in items], action, is_pad, episode)


def _compact(picture: Tensor, visual: bool) -> Tensor:
    """Three-channel pictures as the uint8 that they are on disk: a quarter of the memory, undone without loss."""
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


# -- measuring -------------------------------------------------------------------------------------------------------


def show(frames: Frames, streams: Streams, arm: Arm, rows: Tensor, other: Tensor) -> dict[str, Any]:
    """The raw batch of ``rows`` as ``arm`` shows it, before the policy's pre-processor.

    Args:
        frames: all frames.
        streams: what the policy looks at.
        arm: what is changed; zeroed depth is invalid depth, cached ids become id 0.
        rows: int64 (B,), positions in ``frames``.
        other: int64 (N,), see :func:`partners`.
    """
    chosen = {m: s for m, s in streams.items() if arm.modality in (None, m)}
    content = {k for by_key in chosen.values() for pair in by_key.items() for k in pair if k}
    flags = {padding_mask_key(k) for by_key in chosen.values() for k in by_key}
    batch: dict[str, Any] = {"task": [frames.task[r] for r in rows.tolist()], "action": frames.action[rows]}
    for key, values in frames.observation.items():
        swap = arm.change == "shuffle" and key in content | flags
        value = values[other[rows] if swap else rows]
        if arm.change == "zero" and key in content:
            value = torch.zeros_like(value)
        batch[key] = value.float() / 255 if value.dtype == torch.uint8 and value.ndim == 4 else value
    if arm.change == "mask":
        batch |= {flag: torch.zeros(len(rows), dtype=torch.bool) for flag in flags}
    return batch


def action_errors(
    policy: Any, preprocess: Callable[[dict[str, Any]], dict[str, Any]], frames: Frames, arms: Sequence[Arm],
    streams: Streams, cfg: GateConfig,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Mean absolute error of each frame's first n actions, normalised units, padding excluded.

    All arms start from the same sampling noise. A modality alone is measured on a random part of the frames.

    Returns:
        Arm -> float64 (N,), NaN where it was not measured.

    Raises:
        FloatingPointError: the policy returns NaN or infinity.
    """
    from tqdm import tqdm

    count = len(frames)
    other = partners(count, cfg.seed)
    # in random order, so that the first modality_frames are spread over the dataset like all of them
    order = torch.from_numpy(np.random.default_rng(cfg.seed + 2).permutation(count))
    jobs = []
    for arm in arms:
        batches = list(enumerate(order.split(cfg.batch_size)))
        # whole batches: sampling noise depends on their size
        few = len(batches) if arm.modality is None else -(-cfg.modality_frames // cfg.batch_size)
        jobs += [(arm, number, rows) for number, rows in batches[:few]]
    errors = {arm.name: np.full(count, np.nan) for arm in arms}
    with tqdm(total=sum(len(j[2]) for j in jobs), desc="gate", unit="chunk") as bar, torch.random.fork_rng():
        for arm, number, rows in jobs:
            batch = preprocess(show(frames, streams, arm, rows, other))
            target = batch.pop("action").cpu()
            torch.manual_seed(cfg.seed + number)
            with torch.inference_mode():
                predicted = policy.predict_action_chunk(batch)[:, : target.shape[1]].float().cpu()
            if not predicted.isfinite().all():
                raise FloatingPointError(
                    f"The policy's actions are not finite (pictures: {arm.name}). Do not use it."
                )
            real = ~frames.is_pad[rows]
            error = ((predicted - target).abs().mean(-1) * real).sum(1) / real.sum(1)  # (B,)
            errors[arm.name][rows.numpy()] = error.double().numpy()
            bar.update(len(rows))
    return errors


# -- command ---------------------------------------------------------------------------------------------------------


def load_policy(cfg: GateConfig, meta: Any) -> tuple[Any, Callable[[dict[str, Any]], dict[str, Any]]]:
    """Policy and pre-processor of a checkpoint, built as LeRobot's scripts do it (adapters included).

    Raises:
        FileNotFoundError: the folder holds no policy.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()  # the policy's type is in one
    if not (cfg.policy / "config.json").is_file():
        raise FileNotFoundError(
            f"--policy={cfg.policy} is no checkpoint (no config.json). Expected a folder like .../checkpoints/last/pretrained_model."
        )
    config = PreTrainedConfig.from_pretrained(cfg.policy)
    config.pretrained_path = cfg.policy
    if cfg.device is not None:
        config.device = cfg.device
    policy = make_policy(config, ds_meta=meta, rename_map=cfg.rename_map).eval()
    preprocess, _ = make_pre_post_processors(
        policy_cfg=config,
        pretrained_path=str(cfg.policy),
        preprocessor_overrides={"device_processor": {"device": str(config.device)}},
    )
    return policy, preprocess


def open_dataset(cfg: GateConfig) -> Any:
    """The dataset, restricted to ``--episodes``; depth in metres.

    Raises:
        FileNotFoundError: the folder is no LeRobotDataset.
        ValueError: an episode does not exist.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    info = cfg.dataset / "meta/info.json"
    if not info.is_file():
        raise FileNotFoundError(f"--dataset={cfg.dataset} is no LeRobotDataset (no meta/info.json).")
    total = json.loads(info.read_text())["total_episodes"]
    strangers = [e for e in cfg.episodes or () if not 0 <= e < total]
    if strangers:
        raise ValueError(f"--episodes names {strangers}; {cfg.dataset} has episodes 0 to {total - 1}.")
    depth_unit = "m"
    config = cfg.policy / "config.json"
    if config.is_file():  # what the policy was trained with
        depth_unit = json.loads(config.read_text()).get("depth_unit", depth_unit)
    return LeRobotDataset(
        f"local/{cfg.dataset.name}", root=cfg.dataset, episodes=cfg.episodes, return_uint8=True,
        depth_output_unit=depth_unit,
    )  # fmt: skip


def run_gate(cfg: GateConfig) -> dict[str, Any]:
    """Measure, judge and write ``cfg.output``; returns what was written."""
    data = open_dataset(cfg)
    policy, preprocess = load_policy(cfg, data.meta)
    config = policy.config
    streams = streams_of(config)
    frames = load_frames(cfg, data, config, streams)
    # a declared stream that the dataset lacks can be neither shuffled nor masked
    there = set(frames.observation)
    streams = {m: s for m, s in streams.items() if any(there & {k, ids} for k, ids in s.items())}
    arms = arms_for(streams, per_modality=hasattr(config, "stream_keys"))
    with _sensors_lost_on_purpose():
        rows = table(action_errors(policy, preprocess, frames, arms, streams, cfg))
    closed = failures(rows)
    where = "on training frames" if cfg.episodes is None else f"on frames of the episodes {cfg.episodes}"
    result = {
        "passed": not closed, "failures": closed, "where": where, "n": len(frames),
        "episodes": len(frames.episode.unique()), "n_action_steps": frames.action.shape[1], "seed": cfg.seed,
        "min_relative": MIN_RELATIVE, "confidence": CONFIDENCE, "arms": rows,
        "policy": str(cfg.policy), "policy_type": config.type, "dataset": str(cfg.dataset),
        "lerobot": _lerobot_version(),
        "command": shlex.join([Path(sys.executable).name, "-m", "multismolvla_eval.offline.action_error", *sys.argv[1:]]),
    }  # fmt: skip
    cfg.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(cfg.output, result)
    return result


@contextmanager
def _sensors_lost_on_purpose() -> Iterator[None]:
    """Keep the policy from warning about the sensors that the masked arms take away."""
    ours = logging.getLogger(__package__)
    level = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(level)


def _lerobot_version() -> str:
    from importlib.metadata import version

    return version("lerobot")


@entry_point("error", interrupted=AGAIN, loads="lerobot")
def main() -> int:
    """Command line entry; 0 = the gate is open (or ``--strict=false``), 1 = it is closed."""
    cfg = parse_options(GateConfig)
    result = run_gate(cfg)
    sys.stdout.write(render(result["arms"], result["where"]) + "\n")
    for message in result["failures"]:
        sys.stderr.write(f"{'error' if cfg.strict else 'warning'}: {message}\n")
    if result["passed"]:
        sys.stdout.write("gate open: the policy looks at its pictures\n")
    return 1 if result["failures"] and cfg.strict else 0


if __name__ == "__main__":
    sys.exit(main())
