r"""What each part of the training recipe is worth: `python benchmarks/ablation.py`.

Trains the arms below on the mini suite with several training seeds and evaluates each on the same starts: one
line per episode in ``<output>/rows.csv.gz``. ``--table`` adds these lines to ``docs/ablation/rows.csv.gz``
and makes ``docs/ablation.md`` of all that there are, with the notes in ``docs/ablation/notes.md``. Takes some
ten hours of two cores, the objectives' arms not counted, which must be named. The same command continues an
interrupted run, so let it run from a clone of its own at one commit:

    $ python benchmarks/ablation.py --output=outputs/ablation
    $ python benchmarks/ablation.py --seeds='[1]' --arms='[base_continued, base_dropout, robust]'
    $ python benchmarks/ablation.py --arms='[robust, consistency, robult, rlbind_one, rlbind]'
    $ python benchmarks/ablation.py --arms='[tenth, robult_tenth]'
    $ python benchmarks/ablation.py --arms='[adapted, rlbind_adapted]'
    $ python benchmarks/ablation.py --table --output=clone/outputs/ablation
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import yaml
from support.aims import aims_table

from multismolvla.system.command import CommandError, entry_point, parse_options
from multismolvla_eval.protocol.levels import ALL_SUBSETS
from multismolvla_run.presets import OptionValue, Preset, Stage, load_preset, result_folder
from multismolvla_run.process import installed_program

REPO = Path(__file__).resolve().parents[1]
ROWS, PAGE = REPO / "docs/ablation/rows.csv.gz", REPO / "docs/ablation.md"
#: What was tried where an aim is missed, by hand.
NOTES = REPO / "docs/ablation/notes.md"
#: Stages that all training seeds share: they stand for published weights.
SHARED = ("pretrain", "tokens")
CLEAN = "C0"
ANNOUNCED = ("C1:depth+seg+thermal", "C1:camera=image", "C1:camera=image2", "C3:depth=holes@3")
#: Cells in which health can make a difference; the new default also runs without it.
UNANNOUNCED = (
    "C2:rgb=zero",
    "C2:rgb=grey",
    "C2:rgb=freeze",
    "C2:all.image=zero",
    "C2:all.image2=zero",
    "C3:rgb=covered_lens@3",
    "C3:rgb=gaussian_noise@3",
    "C3:rgb=motion_blur@3",
)
#: Of the arms with one training seed, which are a first look.
SHORT = (*ANNOUNCED[:3], "C2:rgb=zero", "C3:rgb=gaussian_noise@3")
#: Of the objectives' arms and of the recipe that they are added to.
OBJECTIVE_CELLS = (
    *ALL_SUBSETS,
    "C3:depth=holes@3",
    "C3:rgb=gaussian_noise@3",
    "C3:rgb=motion_blur@3",
    *(f"C6:rgb={attack}@{radius}" for radius in (2, 4) for attack in ("policy", "random_sign")),
)
#: For the report on health; see `docs/health.md`.
HEALTH_CELLS = ("C2:rgb=noisy_freeze", "C5:depth=scale@10")
OURS = "robust"
_RGB = {name: {"rgb": f"observation.images.{name}"} for name in ("image", "image2", "image3")}
#: The mini models' features have 64 numbers: parts as wide as the default's would hold all of them.
_ROBULT = {"objectives__robult__weight": 1.0, "objectives__robult__width": 16}


@dataclass(frozen=True)
class Arm:
    """One way to train, as a change of a stage of the preset ``mini_baselines``.

    Attributes:
        name: of its stage.
        says: what it is, for the page.
        like: the stage that it changes.
        changes: options -> values; ``None`` takes an option away.
        repeated: whether it is trained with every seed, not only with the first.
        health: whether it is evaluated with health on.
        ceiling: whether it never had some camera; it runs C0 alone.
        only_trained: a stage on which another arm stands.
        control: of an arm that adds an objective, the arm that differs from it in that alone; the first look
            and the recipe's cells are not its own.
    """

    name: str
    says: str
    like: str
    changes: dict[str, OptionValue] = field(default_factory=dict)
    repeated: bool = False
    health: bool = True
    ceiling: bool = False
    only_trained: bool = False
    control: str | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """Conditions that it runs besides C0; the recipe also the cells of the objectives asked for."""
        if self.ceiling:
            return ()
        if self.control is not None:
            return OBJECTIVE_CELLS
        own = (*ANNOUNCED, *UNANNOUNCED) if self.repeated else SHORT
        return (*own, *HEALTH_CELLS) if self.name == OURS else own


def _objective(name: str, says: str, control: str = OURS, **options: OptionValue) -> Arm:
    changes = {f"policy.{key.replace('__', '.')}": value for key, value in options.items()}
    return Arm(name, says, "robust", changes, repeated=True, control=control)


def _ceiling(camera: str, called: str) -> Arm:
    views: dict[str, OptionValue] = {"policy.views": {n: _RGB[n] for n in _RGB if n != camera}}
    says = f"vanilla SmolVLA that never had the {called}"
    return Arm(f"ceiling_{camera}", says, "base", views, health=False, ceiling=True)


ARMS = (
    Arm("base_continued", "vanilla SmolVLA, as many samples", "base_continued", repeated=True, health=False),
    Arm(
        "base_dropout",
        "the same, camera dropout through its padding masks",
        "base_dropout",
        repeated=True,
        health=False,
    ),
    Arm(OURS, "MultiSmolVLA, the mini preset's recipe", "robust", repeated=True),
    Arm(
        "independent",
        "dropout of each modality of each view by itself",
        "robust",
        {"policy.dropout_independent": 1.0, "policy.dropout_cameras": 0.0, "policy.dropout_modalities": 0.0},
        repeated=True,
    ),
    _ceiling("image", "third-person camera"),
    _ceiling("image2", "wrist camera, but the second one"),
    Arm("no_dropout", "no dropout", "robust", {"policy.dropout_mode": "none"}),
    Arm("fixed_dropout", "dropout of 0.5 from the first step on", "robust", {"policy.dropout_mode": "fixed"}),
    Arm("no_corruption", "no corruption", "robust", {"policy.corruption_probability": 0.0}),
    Arm(
        "full",
        "full fine-tuning of language model and expert instead of LoRA",
        "robust",
        {
            "policy.train_expert_only": False,
            "peft.method_type": None,
            "peft.r": None,
            "peft.lora_alpha": None,
        },
    ),
    Arm(
        "whole_connector",
        "stage 1 of the next",
        "connector",
        {"policy.connector_dropout": 0.0},
        only_trained=True,
    ),
    Arm(
        "no_connector_dropout",
        "stage 1 that sees all modalities",
        "robust",
        {"policy.path": "{stage:whole_connector}"},
    ),
    Arm(
        "no_view_connector",
        "stage 1 of the next",
        "connector",
        {"policy.view_embedding": False},
        only_trained=True,
    ),
    Arm(
        "no_view_embedding",
        "views that only their order tells apart",
        "robust",
        {"policy.path": "{stage:no_view_connector}"},
    ),
    Arm(
        "rgb_connector",
        "stage 1 of the next",
        "connector",
        {"policy.views": dict(_RGB), "policy.domains": {"rgb": "rgb@64"}},
        only_trained=True,
    ),
    Arm("rgb_only", "our tower with RGB alone", "robust", {"policy.path": "{stage:rgb_connector}"}),
    _objective("consistency", "consistency with the complete sensors", consistency_weight=1.0),
    _objective("robult", "Robult", **_ROBULT),
    _objective(
        "tenth",
        "no objective, a tenth of the episodes labelled in stage 2 (the stages before it saw all)",
        objectives__label_fraction=0.1,
    ),
    _objective(
        "robult_tenth",
        "Robult, the same tenth labelled",
        "tenth",
        **_ROBULT,
        objectives__label_fraction=0.1,
    ),
    _objective(
        "rlbind_one",
        "RLBind, stage 1: attacked pictures alone",
        objectives__rlbind__weight=1.0,
        objectives__rlbind__anchor=0.0,
        objectives__rlbind__distribution=0.0,
    ),
    _objective("rlbind", "RLBind, both stages", objectives__rlbind__weight=1.0),
    _objective("adapted", "LoRA on the encoder, too, no objective", encoder_lora_blocks=2),
    _objective(
        "rlbind_adapted",
        "RLBind, stage 1, with LoRA on the encoder, too",
        "adapted",
        encoder_lora_blocks=2,
        objectives__rlbind__weight=1.0,
        objectives__rlbind__anchor=0.0,
        objectives__rlbind__distribution=0.0,
    ),
)
#: Those that can be asked for; the others are trained where one of these stands on them.
EVALUATED = tuple(arm for arm in ARMS if not arm.only_trained)


@dataclass
class Options:
    """Ablation of the training recipe on the mini suite."""

    output: Path = Path("outputs/ablation")  # everything that is made
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])  # training seeds; the first trains all arms
    # Those that are evaluated; default: all but the objectives'.
    arms: list[str] = field(default_factory=lambda: [arm.name for arm in EVALUATED if arm.control is None])
    starts: int = 7  # per task; the suite has three
    workers: int = 2  # simulator processes
    launcher: str = ""  # words before lerobot-train
    train_args: list[str] = field(default_factory=list)  # more of its options, e.g. --num_workers=0
    table: bool = False  # make the page of the rows there are, and end

    def __post_init__(self) -> None:
        known = [arm.name for arm in EVALUATED]
        unknown = sorted(set(self.arms) - set(known))
        if unknown or not self.arms:
            raise ValueError(f"--arms={self.arms}: expected some of {known}.")
        if self.starts < 1 or not self.seeds:
            raise ValueError(
                f"--starts={self.starts} and --seeds={self.seeds}: expected one or more of each."
            )


def arm_preset(arm: Arm) -> Preset:
    """The stages of ``mini_baselines`` on which an arm stands, its own, and one that fits its health."""
    preset = load_preset("mini_baselines", REPO / "configs")
    stages = {stage.name: stage for stage in preset.stages}
    for other in ARMS:
        if other.name not in stages:
            args = {**stages[other.like].args, **other.changes}
            args = {key: value for key, value in args.items() if value is not None}
            stages[other.name] = msgspec.structs.replace(stages[other.like], name=other.name, args=args)
    needed, waiting = {arm.name}, [arm.name]
    while waiting:
        new = set(stages[waiting.pop()].needs()) - needed
        needed |= new
        waiting += sorted(new)
    kept = [_not_streamed(stage) for stage in stages.values() if stage.name in needed]
    if arm.health:
        fit = stages["health"]
        args = {**fit.args, "policy": f"{{stage:{arm.name}}}"}
        kept.append(msgspec.structs.replace(fit, name=f"health_{arm.name}", args=args))
    return msgspec.structs.replace(preset, name=f"ablation_{arm.name}", stages=tuple(kept), threads=1)


def _not_streamed(stage: Stage) -> Stage:
    """A stream's order is the same for every training seed."""
    args = {key: value for key, value in stage.args.items() if key != "dataset.streaming"}
    return msgspec.structs.replace(stage, args=args)


def training_samples(arm: Arm) -> int:
    """How many samples an arm sees in all of its trainings, that of the base included."""
    stages = [stage for stage in arm_preset(arm).stages if stage.trains]
    return sum(stage.steps * stage.args["batch_size"] for stage in stages)


def write_preset(preset: Preset, path: Path) -> None:
    """A preset as a file that ``train.py`` reads."""
    data = msgspec.to_builtins(preset)
    del data["name"]
    data["stages"] = {stage.pop("name"): stage for stage in data["stages"]}
    for stage in data["stages"].values():
        stage["produces"] = list(stage["produces"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def run(options: Options) -> None:
    """Record, train and evaluate what is missing, and write the rows."""
    _same_commit(options.output, _commit())
    dataset = options.output / "dataset"
    _call(
        [
            installed_program("multismolvla-record"),
            f"--output={dataset}",
            "--episodes=40",
            f"--workers={options.workers}",
        ]
    )
    for number, seed in enumerate(options.seeds):
        folder = options.output / f"seed-{seed}"
        _share_stages(options.output / f"seed-{options.seeds[0]}", folder)
        for arm in EVALUATED:
            if arm.name in options.arms and (number == 0 or arm.repeated):
                preset = arm_preset(arm)
                path = options.output / "presets" / f"{preset.name}.yaml"
                write_preset(preset, path)
                train = [sys.executable, str(REPO / "train.py"), str(path)]
                train += [f"--dataset={dataset}", f"--output={folder}", f"--launcher={options.launcher}"]
                _call([*train, "--", f"--seed={seed}", *options.train_args])
                _evaluate(options, preset, arm, seed, folder)


def _share_stages(first: Path, folder: Path) -> None:
    """Give a further seed the stages that stand for published weights, as hard links."""
    if folder == first:
        return
    for stage in SHARED:
        state = folder / "state" / f"{stage}.json"
        if not state.exists():  # it comes last: without it, what is there may be half of it
            shutil.rmtree(folder / stage, ignore_errors=True)
            shutil.copytree(first / stage, folder / stage, copy_function=os.link)
            state.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(first / "state" / state.name, state)


def _evaluate(options: Options, preset: Preset, arm: Arm, seed: int, train: Path) -> None:
    policy = result_folder(preset.stage(arm.name), train)
    path = str(policy) if arm.health else f"no_health:{policy}"
    cells = list(arm.cells)
    if arm.name == OURS and any(other.control for other in EVALUATED if other.name in options.arms):
        cells = list(dict.fromkeys([*cells, *OBJECTIVE_CELLS]))  # the objectives are measured by it
    runs = [("on" if arm.health else "off", path, cells)]
    if arm.name == OURS:
        runs.append(("off", f"no_health:{policy}", list(UNANNOUNCED)))
    for health, path, conditions in runs:
        out = options.output / "eval" / f"seed-{seed}" / f"{arm.name}-{health}"
        _call(
            [
                installed_program("multismolvla-eval"),
                f"--policies=[{arm.name}={path}]",
                f"--conditions=[{', '.join(conditions) or CLEAN}]",
                f"--episodes={options.starts}",
                f"--clean_episodes={options.starts}",
                "--clean_repeats=1",
                "--clips=0",
                f"--workers={options.workers}",
                f"--output={out}",
            ]
        )
        _append(options.output / ROWS.name, _rows_of(out, arm, seed, health))


def _rows_of(folder: Path, arm: Arm, seed: int, health: str) -> pd.DataFrame:
    from multismolvla_eval.records.store import read_run
    from multismolvla_eval.records.system_info import single_commit

    manifest, rows = read_run(folder)
    frame = pd.DataFrame(
        [
            {
                "condition": r.condition,
                "task": r.task_id,
                "start": r.episode,
                "success": int(r.success),
                "steps": r.steps,
            }
            for r in rows
        ]
    )
    return frame.assign(commit=single_commit(folder, manifest), arm=arm.name, seed=seed, health=health)


_KEY = ["arm", "seed", "health", "condition", "task", "start"]


def read(path: Path) -> pd.DataFrame:
    """Rows of a file."""
    return pd.read_csv(path, dtype={"commit": str})


def _append(path: Path, rows: pd.DataFrame) -> None:
    """Add rows to the file, in the place of earlier ones of the same episodes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [read(path)] if path.is_file() else []
    joined = pd.concat([*known, rows]).drop_duplicates(_KEY, keep="last").sort_values(_KEY)
    joined.to_csv(path, index=False, compression={"method": "gzip", "mtime": 0})


def _call(command: list[str]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
    code = subprocess.run(command, env=env, check=False).returncode
    if code:
        raise CommandError(f"{Path(command[0]).name} ended with code {code}; the reason stands above.")


def _same_commit(output: Path, commit: str) -> None:
    """See that what there is was evaluated at this commit, before anything is trained."""
    from multismolvla_eval.records.store import MANIFEST, read_manifest
    from multismolvla_eval.records.system_info import single_commit

    for path in sorted(output.glob(f"eval/*/*/{MANIFEST}")):
        made = single_commit(path.parent, read_manifest(path.parent))
        if made != commit:
            raise CommandError(
                f"{path.parent} was evaluated at the commit {made}, the code is at {commit}: rows of one "
                f"ablation are of one commit. Go on at {made}, or give another --output."
            )


def _commit() -> str:
    from multismolvla_eval.records.system_info import source_commit

    commit = source_commit() or "unknown"
    if "+" in commit or commit == "unknown":
        raise CommandError(f"The code is at {commit}: a result must name the commit that it is of.")
    return commit


# -- the page ------------------------------------------------------------------------------------------------


def cell_text(cell: pd.DataFrame) -> str:
    """Successes of a cell with their 95 % interval."""
    from multismolvla_eval.analysis.bootstrap import rate_text

    return rate_text([part.success.to_numpy() for _, part in cell.groupby("seed")])


def page(rows: pd.DataFrame, notes: str = "") -> str:
    """The document, of the rows that there are and of notes on the aims."""
    texts = {key: cell_text(cell) for key, cell in rows.groupby(["arm", "health", "condition"])}
    lines = [
        "# Ablation of the mini recipe",
        "",
        "Made by `python benchmarks/ablation.py --table` from [rows](ablation/rows.csv.gz). Mini suite, "
        "the same starts for every arm. 95 % intervals: Wilson's; with several training seeds the wider one "
        "of that and of a bootstrap that draws seeds, then starts. Training samples: steps x batch of the "
        "presets, the base's included. The suite has two wrist cameras, the second one with RGB alone; no "
        "cell takes that one away by itself.",
        "",
    ]
    present = [arm for arm in ARMS if arm.name in set(rows.arm)]
    lines += ["| arm | what it is | training samples | training seeds (evaluated at) |", "|---|---|---|---|"]
    for arm in present:
        made = _made_of(rows[rows.arm == arm.name])
        lines.append(f"| `{arm.name}` | {arm.says} | {training_samples(arm):,} | {made} |")
    recipe = [arm for arm in present if arm.control is None]
    columns = [
        (arm, health)
        for arm in recipe
        for health in ("on", "off")
        if not arm.ceiling and any((arm.name, health) == key[:2] for key in texts)
    ]
    titles = [f"{arm.name}, health {health}" if arm.health else arm.name for arm, health in columns]
    keys = [(arm.name, health) for arm, health in columns]
    lines += ["", *_table(texts, titles, keys, (CLEAN, *ANNOUNCED, *UNANNOUNCED, *HEALTH_CELLS))]
    ceilings = [arm for arm in present if arm.ceiling]
    for arm in ceilings:
        seen = f"{training_samples(arm):,} training samples"
        lines += ["", f"Ceiling, {arm.says} ({seen}): {texts[arm.name, 'off', CLEAN]}."]
    lines += [
        "",
        "## Aims",
        "",
        "Both cells of an aim are compared on the same starts of the same training seeds; seeds that only "
        "one of them has are left out. Intervals: a bootstrap that draws seeds, then starts, which is rough "
        "with two or three seeds. *Within*: no greater a loss; *open*: the interval holds both answers.",
        "",
        *aims_table(rows),
        *(["", notes.strip()] if notes else []),
    ]
    added = [arm for arm in present if arm.control is not None]
    if added:
        lines += [
            "",
            "## Objectives",
            "",
            "Added to the recipe of `robust`, health on; see [training](training.md).",
        ]
        lines += ["Differences are paired by training seed and start, in percentage points.", ""]
        names = [name for name in (OURS, *(arm.name for arm in added)) if name in set(rows.arm)]
        lines += _table(texts, names, [(name, "on") for name in names], (CLEAN, *OBJECTIVE_CELLS))
        found = {arm.name: compared(rows, arm.name, arm.control or "") for arm in added}
        for number, text in enumerate(("mean", "worst")):
            row = [found[name][number] if found.get(name) else "" for name in names]
            lines.append(f"| {text} of the 15 subsets, against the control | " + " | ".join(row) + " |")
        other = [f"that of `{arm.name}` is `{arm.control}`" for arm in added if arm.control != OURS]
        lines += ["", "; ".join([f"The control is `{OURS}`", *other]) + "."]
    return "\n".join(lines).rstrip() + "\n"


def _table(
    texts: Mapping[tuple[str, str, str], str],
    titles: Sequence[str],
    columns: Sequence[tuple[str, str]],
    conditions: Sequence[str],
) -> list[str]:
    """Lines of a table: a row per condition that was run, a column per (arm, health)."""
    lines = ["| cell | " + " | ".join(titles) + " |", "|---" * (len(columns) + 1) + "|"]
    for condition in conditions:
        row = [texts.get((*column, condition), "") for column in columns]
        if any(row):
            lines.append(f"| {_cell_name(condition)} | " + " | ".join(row) + " |")
    return lines


def _cell_name(condition: str) -> str:
    """A condition in words, with what must stand beside its figures."""
    from multismolvla.corruption import parse_condition
    from multismolvla_eval.protocol.levels import describe

    parsed = parse_condition(condition)
    name = describe(parsed)
    if {fault.cameras for fault in parsed.faults} == {("image2",)}:
        name += " (the second one stays)"
    if parsed.group == "C3" and parsed.seen_in_training:
        name += " (training may meet this type)"
    return name


def _made_of(rows: pd.DataFrame) -> str:
    """Training seeds of an arm, with the commit that its rows are of: ``1, 2 (0123456)``."""
    by_commit = rows.groupby("commit").seed.unique().map(sorted).sort_values()
    return ", ".join(f"{', '.join(map(str, seeds))} ({c[:7]})" for c, seeds in by_commit.items())


def compared(rows: pd.DataFrame, arm: str, control: str) -> tuple[str, str] | None:
    """Difference of two arms in the mean and in the worst of the 15 subsets, with 95 % intervals.

    Both arms' starts are drawn together: training seeds, then each seed's starts. ``None`` where they share
    no start of which all subsets were run.
    """
    from multismolvla_eval.analysis.bootstrap import percentile_interval, resampled_means

    index, known = ["seed", "task", "start"], rows[(rows.health == "on") & rows.condition.isin(ALL_SUBSETS)]
    own, other = (
        known[known.arm == name].pivot(index=index, columns="condition", values="success")
        for name in (arm, control)
    )
    own, other = (wide.reindex(columns=ALL_SUBSETS).dropna() for wide in (own, other))
    shared = own.index.intersection(other.index).sort_values()
    if shared.empty:
        return None
    values = np.stack([wide.loc[shared].to_numpy().T for wide in (own, other)])  # (2, subsets, starts)
    sizes = tuple(shared.get_level_values("seed").value_counts().sort_index())
    drawn = resampled_means(values.reshape(-1, len(shared)), sizes).reshape(*values.shape[:2], -1)

    def text(one: np.ndarray, resamples: np.ndarray) -> str:
        low, high = percentile_interval((resamples[0] - resamples[1])[None])[0]
        return f"{100 * (one[0] - one[1]):+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"

    means = values.mean(2)
    return text(means.mean(1), drawn.mean(1)), text(means.min(1), drawn.min(1))


@entry_point("ablation")
def main() -> int:
    """Entry point; exit code 0 done, 1 a named error."""
    options = parse_options(Options)
    if options.table:
        made = options.output / ROWS.name
        if made.is_file():
            _append(ROWS, read(made))
        if not ROWS.is_file():
            raise CommandError(f"There are no rows, neither in {made} nor in {ROWS}.")
        PAGE.write_text(page(read(ROWS), NOTES.read_text()))
    else:
        run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
