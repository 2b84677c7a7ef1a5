"""Does a policy look at its sensors? Offline, on held-out demonstrations, before a single roll-out.

The action error with the true pictures, with zeroed ones and with those of other frames, for all sensors together and for each
modality alone. A modality whose controls change nothing is one that the policy does not use, and no fault of it can hurt. The
measurement is that of :mod:`multismolvla_eval.offline.action_error`, for any LeRobot policy that plans from one observation.

It stands beside success rates and never instead of them: a low error is no solved task.

Example:
    $ python -m multismolvla_eval.offline.diagnose --policies='[ours=outputs/mini/robust, vanilla=outputs/mini/base]' \
        --dataset=outputs/mini/dataset --episodes='[40, 41, 42]' --output=outputs/eval
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.system.command import AGAIN, entry_point, parse_options
from multismolvla.system.files import whole_file, write_json
from multismolvla_eval.offline.stored import DIAGNOSIS, SCHEMA
from multismolvla_eval.policies.features import streams_of

if TYPE_CHECKING:
    from multismolvla_eval.config import EvalConfig
    from multismolvla_eval.offline.action_error import Arm
    from multismolvla_eval.policies.features import Streams

logger = logging.getLogger(__name__)

PICTURE = "diagnosis.png"
_WITHOUT_PICTURES = ("builtin:", "blind:")
REMARK = "Offline action error on recorded frames: it says whether pictures matter to the policy, not whether it solves the task."


@dataclass
class DiagnosisConfig:
    """Options of ``python -m multismolvla_eval.offline.diagnose``."""

    # As for multismolvla-eval: `name=checkpoint`. Policies without pictures (builtin:, blind:) are left out.
    policies: list[str] = field(default_factory=list)
    # LeRobotDataset with the policies' pictures.
    dataset: Path = Path("outputs/mini/dataset")
    # Episodes that no policy was trained on; all when left out, which is then said.
    episodes: list[int] | None = None
    # The run's folder: diagnosis.json and diagnosis.png are written here.
    output: Path = Path("outputs/eval")
    # Frames for all sensors together, and for each modality alone.
    frames: int = 128
    modality_frames: int = 64
    batch_size: int = 32
    # Which frames, which pairs of frames, which sampling noise.
    seed: int = 0
    # Device of the policies; the checkpoint's own choice when left out.
    device: str | None = None
    # As for multismolvla-eval: modules that register policy types, and the policies' names of the pictures.
    plugins: list[str] = field(default_factory=list)
    rename_map: dict[str, Any] = field(default_factory=dict)


def diagnose(cfg: DiagnosisConfig, command: Sequence[str] = ()) -> dict[str, Any]:
    """Measure all policies and write ``diagnosis.json`` and ``diagnosis.png``; returns what was written.

    Raises:
        FileNotFoundError: the dataset, or a policy's checkpoint, is not in its folder.
        ValueError: wrong options, or a dataset without a policy's pictures.
        FloatingPointError: a policy's actions are not finite.
    """
    from multismolvla_eval.config import EvalConfig

    if not (cfg.dataset / "meta/info.json").is_file():
        raise FileNotFoundError(f"--dataset={cfg.dataset} is no LeRobotDataset (no meta/info.json).")
    for module in cfg.plugins:
        import_module(module)
    policies = EvalConfig(policies=cfg.policies, rename_map=cfg.rename_map)
    found = {
        name: _policy(cfg, path, policies.rename_map_of(name))
        for name, path in policies.policy_paths().items()
    }
    content = {
        "schema": SCHEMA,
        "remark": REMARK,
        "dataset": str(cfg.dataset),
        "episodes": cfg.episodes,
        "held_out": cfg.episodes is not None,
        "frames": cfg.frames,
        "modality_frames": cfg.modality_frames,
        "seed": cfg.seed,
        "rename_map": cfg.rename_map,
        "policies": found,
        "command": shlex.join(
            [Path(sys.executable).name, "-m", "multismolvla_eval.offline.diagnose", *command]
        ),
    }
    cfg.output.mkdir(parents=True, exist_ok=True)
    if any("arms" in p for p in found.values()):
        draw(cfg.output / PICTURE, found)
    else:
        (cfg.output / PICTURE).unlink(missing_ok=True)
    write_json(cfg.output / DIAGNOSIS, content)
    return content


def diagnose_first(config: EvalConfig) -> None:
    """``multismolvla-eval --diagnose``: in a process of its own, unless the folder holds the same diagnosis already.

    Raises:
        RuntimeError: it failed; its message is on the terminal.
        ResultsError: the diagnosis that is there cannot be read.
    """
    from multismolvla_eval.offline.stored import stored_diagnosis

    old = stored_diagnosis(config.output)
    if old is not None:
        asked = {
            "dataset": str(config.diagnose),
            "episodes": config.diagnose_episodes,
            "rename_map": config.rename_map,
        }
        known = old["policies"]
        if all(old.get(k) == v for k, v in asked.items()) and all(
            _is_of(known.get(name, {}), path) for name, path in config.policy_paths().items()
        ):
            return
    options = {
        "policies": json.dumps(config.policies),
        "dataset": config.diagnose,
        "episodes": config.diagnose_episodes,
        "output": config.output,
        "seed": config.seed,
        "device": config.device,
        "plugins": json.dumps(config.plugins),
        "rename_map": json.dumps(config.rename_map),
    }
    given = [f"--{k}={v}" for k, v in options.items() if v is not None]
    result = subprocess.run([sys.executable, "-m", "multismolvla_eval.offline.diagnose", *given], check=False)
    if result.returncode != 0:
        raise RuntimeError(
            f"The sensor diagnosis on {config.diagnose} failed, see above. Leave --diagnose out to go on without it."
        )


def _is_of(measured: Mapping[str, Any], path: str) -> bool:
    """Whether a policy's entry was made from what is behind its path now: training goes on in the same folder."""
    from multismolvla_eval.policies.checkpoints import policy_hash

    if measured.get("path") != path or path.startswith(_WITHOUT_PICTURES):
        return measured.get("path") == path
    try:
        return measured.get("checkpoint") == policy_hash(path)
    except FileNotFoundError:
        return False  # measuring says what is missing


def _policy(cfg: DiagnosisConfig, path: str, rename_map: dict[str, str]) -> dict[str, Any]:
    """Facts and table of one policy, or why there is none."""
    if path.startswith(_WITHOUT_PICTURES):
        return {"path": path, "left_out": "it looks at no picture"}
    from lerobot.utils.import_utils import register_third_party_plugins

    from multismolvla_eval.offline import action_error as gate
    from multismolvla_eval.policies.checkpoints import checkpoint_hash, resolve_checkpoint
    from multismolvla_eval.policies.lerobot import plans_ahead

    register_third_party_plugins()
    folder = resolve_checkpoint(path)
    options = gate.GateConfig(
        policy=Path(folder), dataset=cfg.dataset, frames=cfg.frames, modality_frames=cfg.modality_frames,
        episodes=cfg.episodes, seed=cfg.seed, batch_size=cfg.batch_size, device=cfg.device,
        rename_map=rename_map,
    )  # fmt: skip
    data = gate.open_dataset(options)
    policy, preprocess = gate.load_policy(options, data.meta)
    config = policy.config
    facts = {"path": path, "checkpoint": checkpoint_hash(folder)}
    if not plans_ahead(config):
        return {**facts, "left_out": f"a {config.type} policy does not plan from one observation alone"}
    streams = streams_of(config)
    frames = gate.load_frames(options, data, config, streams)
    streams = {m: s for m, s in streams.items() if set(frames.observation) & {*s, *s.values()}}
    rows = gate.table(gate.action_errors(policy, preprocess, frames, arms_for(streams), streams, options))
    return {
        **facts,
        "type": config.type,
        "n": len(frames),
        "episodes": len(frames.episode.unique()),
        "n_action_steps": frames.action.shape[1],
        "modalities": list(streams),
        "arms": rows,
    }


def arms_for(streams: Streams) -> list[Arm]:
    """True pictures, both controls for all sensors, then both for each modality, if there are several."""
    from multismolvla_eval.offline.action_error import Arm

    arms = [Arm("true", "none"), Arm("zeroed", "zero"), Arm("shuffled", "shuffle")]
    if len(streams) > 1:
        arms += [Arm(f"{m} zeroed", "zero", m) for m in streams]
        arms += [Arm(f"{m} shuffled", "shuffle", m) for m in streams]
    return arms


def draw(path: Path, policies: Mapping[str, Mapping[str, Any]]) -> None:
    """Bars of the relative change of the error with its interval, one panel per policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = {name: p["arms"] for name, p in policies.items() if "arms" in p}
    tallest = max(len(rows) for rows in measured.values())
    figure = Figure(figsize=(4.2 * len(measured), 0.9 + 0.32 * tallest), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, measured.items(), strict=True):
        arms = [a for a in rows if a != "true"]
        true = max(rows["true"]["error"], 1e-12)
        middle = [100 * rows[a]["relative"] for a in arms]
        low = [m - 100 * rows[a]["difference_low"] / true for m, a in zip(middle, arms, strict=True)]
        high = [100 * rows[a]["difference_high"] / true - m for m, a in zip(middle, arms, strict=True)]
        errors = [[max(0.0, x) for x in side] for side in (low, high)]
        axes.barh(range(len(arms)), middle, xerr=errors, color="#0072B2", ecolor="#444444", height=0.6)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("action error against the true pictures [%]")
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, metadata={"Software": None})


@entry_point("error", errors=(ValueError, OSError, FloatingPointError), failure=2, interrupted=AGAIN)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0, or 2 on an error.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    cfg = parse_options(DiagnosisConfig, given)
    content = diagnose(cfg, given)
    from multismolvla_eval.offline.action_error import render

    where = (
        f"frames of the episodes {cfg.episodes}" if cfg.episodes else "frames that may have been trained on"
    )
    for name, policy in content["policies"].items():
        sys.stdout.write(f"\n{name}: ")
        sys.stdout.write(
            f"left out, {policy['left_out']}\n"
            if "left_out" in policy
            else render(policy["arms"], where) + "\n"
        )
    written = [p for p in (cfg.output / DIAGNOSIS, cfg.output / PICTURE) if p.is_file()]
    sys.stdout.write(f"\n{REMARK}\nwritten: {', '.join(map(str, written))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
