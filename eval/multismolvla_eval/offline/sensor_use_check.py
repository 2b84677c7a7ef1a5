r"""Does a checkpoint act on its pictures? Between two stages of a training, and before an evaluation.

A policy whose action error does not grow clearly with zeroed pictures and with those of other frames acts
from state and instruction alone, and no roll-out of it says anything about robustness. Each modality alone is
shown, not judged; the instruction, exchanged for another task's, is judged where that is asked for.

Example:
    $ python -m multismolvla_eval.offline.sensor_use_check --dataset=outputs/mini/dataset \
        --output=outputs/mini --episodes='[40, 41]' \
        --policies='[base=outputs/mini/train/base/checkpoints/last/pretrained_model]'
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from multismolvla.system.command import AGAIN, entry_point, parse_options
from multismolvla.system.files import write_json
from multismolvla_eval.analysis.diagnosis import (
    FILE,
    REMARK,
    ControlError,
    Diagnosis,
    SensorUse,
    stored_diagnosis,
)
from multismolvla_eval.config import EvalConfig
from multismolvla_eval.offline.sensor_use import SensorUseOptions, measure
from multismolvla_eval.policies.checkpoints import NO_VISION, policy_hash

#: Each control must raise the error by this share, besides an interval that excludes zero.
MIN_RELATIVE = 0.10
#: Control -> what it shows of the policy, with what in the place of the true, and where to look then.
_PICTURES, _STREAMS = "hardly uses its pictures", "view map, orientation and units of the streams"
_TASK, _WORDS = "hardly follows its instruction", "that the instructions differ in the policy's tokens"
_JUDGED = {
    "zeroed": (_PICTURES, "zeroed ones", _STREAMS),
    "shuffled": (_PICTURES, "shuffled ones", _STREAMS),
    "another task": (_TASK, "those of other tasks", _WORDS),
}


def failures(controls: Mapping[str, ControlError], judge_instruction: bool = False) -> list[str]:
    """One sentence for each control that is not clearly worse than the true observations.

    Raises:
        ValueError: the instruction is to be judged, and all frames have the same.
    """
    if judge_instruction and "another task" not in controls:
        raise ValueError(
            "--judge_instruction=true needs frames of several tasks to exchange instructions between them. "
            "Name a dataset with several, or leave the option out."
        )
    found = []
    for name, (shows, shown, remedy) in _JUDGED.items():
        if name == "another task" and not judge_instruction:
            continue
        row, change = controls[name], controls[name].change
        assert change is not None
        if change.low <= 0 or change.relative < MIN_RELATIVE:
            found.append(
                f"the policy {shows}: action error {row.error:.3f} with {shown}, "
                f"{controls['true'].error:.3f} with the true ones, difference {change.difference:+.3f} "
                f"[{change.low:+.3f}, {change.high:+.3f}] = {change.relative:+.1%}. Expected: an interval "
                f"above 0 and at least {MIN_RELATIVE:+.0%}. Train longer, or check {remedy}; "
                "--strict=false goes on regardless."
            )
    return found


def check(options: SensorUseOptions, command: Sequence[str] = ()) -> Diagnosis:
    """Measure and judge all policies and write ``sensor_use.json``; returns what was written.

    Raises:
        FileNotFoundError: the dataset, or a policy's checkpoint, is not in its folder.
        ValueError: wrong options, or a dataset without a policy's pictures.
        FloatingPointError: a policy's actions are not finite.
    """
    found = {}
    for name, path, rename_map in options.chosen():
        if path.startswith(("builtin:", NO_VISION)):
            found[name] = SensorUse(path, policy_hash(path), left_out="it looks at no picture")
            continue
        use = found[name] = measure(path, options, rename_map)
        use.failures = (
            failures(use.controls, options.judge_instruction)
            if use.controls
            else [f"it cannot be checked: {use.left_out}"]
        )
    diagnosis = Diagnosis(
        dataset=str(options.dataset),
        episodes=options.episodes,
        held_out=options.episodes is not None,
        frames=options.frames,
        modality_frames=options.modality_frames,
        seed=options.seed,
        rename_map=options.rename_map,
        policies=found,
        command=shlex.join([Path(sys.executable).name, "-m", f"{__package__}.sensor_use_check", *command]),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / FILE, msgspec.to_builtins(diagnosis))
    return diagnosis


def check_first(config: EvalConfig) -> None:
    """``multismolvla-eval --diagnose``: a process of its own, unless the folder holds the same measurement.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        RuntimeError: it failed; its message is on the terminal.
        ResultsError: the measurement that is there cannot be read.
    """
    old = stored_diagnosis(config.output)
    if old is not None:
        # Training may have gone on in the same folder.
        wanted = {name: (path, policy_hash(path)) for name, path in config.policy_paths().items()}
        known = {name: (use.path, use.checkpoint) for name, use in old.policies.items()}
        asked = (str(config.diagnose), config.diagnose_episodes, config.rename_map)
        if (old.dataset, old.episodes, old.rename_map) == asked and wanted.items() <= known.items():
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
        "estimator_sources": json.dumps(config.estimator_sources),
        "missing_estimator": config.missing_estimator,
        "strict": "false",
    }
    given = [f"--{k}={v}" for k, v in options.items() if v is not None]
    result = subprocess.run([sys.executable, "-m", f"{__package__}.sensor_use_check", *given], check=False)
    if result.returncode != 0:
        raise RuntimeError(
            f"The sensor use on {config.diagnose} could not be measured, see above. Leave --diagnose out to "
            "go on without it."
        )


def render(controls: Mapping[str, ControlError]) -> str:
    """The errors as a table."""
    lines = [f"{'pictures':<18}{'n':>5}{'error':>8}{'difference':>14}{'interval':>20}{'relative':>11}"]
    for name, row in controls.items():
        line = f"{name:<18}{row.n:>5}{row.error:>8.3f}"
        if row.change is not None:
            bounds = f"[{row.change.low:+.3f}, {row.change.high:+.3f}]"
            line += f"{row.change.difference:>+14.3f}{bounds:>20}{row.change.relative:>+11.1%}"
        lines.append(line)
    return "\n".join(lines)


@entry_point("error", errors=(ValueError, OSError, FloatingPointError), failure=2, interrupted=AGAIN)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0; 1 if a policy fails the check, unless ``--strict=false``; 2 on an error.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse_options(SensorUseOptions, given)
    # The masked controls take sensors away, of which our policy would warn.
    logging.getLogger("lerobot_policy_multismolvla").setLevel(logging.ERROR)
    diagnosis = check(options, given)
    where = f"of the episodes {options.episodes}" if options.episodes else "that may have been trained on"
    sys.stdout.write(
        f"Action error, normalised units, on frames {where}, and its difference to the true pictures of the "
        "same frames with 95 % interval.\n"
    )
    for name, use in diagnosis.policies.items():
        said = f"left out, {use.left_out}" if use.left_out else f"\n{render(use.controls)}"
        sys.stdout.write(f"\n{name}: {said}\n")
        for failure in use.failures:
            sys.stderr.write(f"{'error' if options.strict else 'warning'}: {name}: {failure}\n")
    sys.stdout.write(f"\n{REMARK}\nwritten: {options.output / FILE}\n")
    return 1 if options.strict and any(use.failures for use in diagnosis.policies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
