"""Make docs/libero_tiny.md: `python docs/libero_tiny.py --runs='[FOLDER of multismolvla-eval]'`.

Adds the episodes of these runs to ``docs/libero_tiny/rows.csv.gz`` and writes the page of all that there are,
with the notes in ``docs/libero_tiny/notes.md``. ``--names`` renames the runs' policies. ``--logs`` draws the
learning curves of a run of ``python train.py libero_tiny``, ``--clips`` a strip of each clip that an
evaluation kept. ``--output=FOLDER`` keeps rows of your own there and writes ``FOLDER.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from multismolvla.corruption import parse_condition
from multismolvla.system.command import CommandError, entry_point, parse_options
from multismolvla.system.files import whole_file
from multismolvla_eval.analysis.bootstrap import rate_text
from multismolvla_eval.analysis.loaded_run import read_episodes
from multismolvla_eval.protocol.levels import describe
from multismolvla_eval.records.system_info import single_commit

FOLDER = Path(__file__).resolve().with_suffix("")
ROWS, NOTES = "rows.csv.gz", "notes.md"
#: Of a policy's or a recording's content; the page's rows keep its beginning.
HASH = re.compile("[0-9a-f]{12,}$")
CLEAN = "C0"
KEY = ["policy", "suite", "condition", "task_id", "init_state"]
#: Policies of the tables, in their order; others are told below, clean alone.
POLICIES = ("ours", "base_continued", "base_dropout", "no_vision", "replay", "expert")
#: Which see nothing: what they solve of the same starts stands beside what is left of the others.
BLIND = ("no_vision", "replay")
#: Of a training stage's log; lerobot-train writes one every `log_freq` steps.
LOSS = re.compile(r"\bloss:([\d.]+)")
LOG_FREQ = 50
STRIP_FRAMES = 5


@dataclass
class PageOptions:
    """Options of docs/libero_tiny.py."""

    runs: list[Path] = field(default_factory=list)  # folders of multismolvla-eval
    names: dict[str, str] = field(default_factory=dict)  # policy in these runs -> its name on the page
    logs: Path | None = None  # folder `logs` of a training run
    clips: list[Path] = field(default_factory=list)  # files of folders `clips`
    output: Path = FOLDER  # folder of the rows, the pictures and the notes; the page lies beside it


def rows_of(folder: Path, named: Mapping[str, str]) -> pd.DataFrame:
    """Episodes of a run, with the commit, the checkpoint and the seed that they are of.

    Args:
        folder: of the run.
        named: policy -> another name for it.

    Raises:
        CommandError: several commits took part.
    """
    manifest, table = read_episodes(folder)
    names = [
        manifest.suites[suite].tasks[task] for suite, task in zip(table.suite, table.task_id, strict=True)
    ]
    checkpoints = {
        name: HASH.sub(lambda found: found[0][:12], facts.checkpoint)
        for name, facts in manifest.policies.items()
    }
    table = table.assign(
        policy=[named.get(name, name) for name in table.policy],
        checkpoint=[checkpoints[name] for name in table.policy],
        success=table.success.astype(int),
        commit=single_commit(folder, manifest),
        seed=manifest.comparable.seed,
        task=names,
    ).astype(dict.fromkeys(("policy", "suite", "condition"), str))
    return table[[*KEY, "task", "success", "cause", "steps", "seed", "commit", "checkpoint"]]


def add(runs: Sequence[Path], named: Mapping[str, str], file: Path) -> pd.DataFrame:
    """All rows: those in the file, and those of these runs in the place of earlier ones of the same episodes.

    Raises:
        CommandError: there are none, or rows of one policy would be of two checkpoints.
    """
    text = dict.fromkeys(("commit", "checkpoint"), str)
    known = [pd.read_csv(file, dtype=text)] if file.is_file() else []
    if not known and not runs:
        raise CommandError(f"There are no rows in {file}. Name folders of multismolvla-eval with --runs.")
    new = [rows_of(run, named) for run in runs]
    rows = pd.concat([*known, *new]).drop_duplicates(KEY, keep="last").sort_values(KEY)
    of_two = rows.groupby(["policy", "suite"]).checkpoint.nunique().loc[lambda several: several > 1]
    if len(of_two):
        raise CommandError(
            f"{of_two.index[0]} would have rows of several checkpoints. Give the new ones another name with "
            f"--names, choose another --output, or remove the earlier rows from {file}."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(file, index=False, compression={"method": "gzip", "mtime": 0})
    return rows


def rate(cell: pd.DataFrame) -> str:
    """Successes of a cell with Wilson's 95 % interval; nothing of none."""
    return "" if cell.empty else rate_text([cell.success.to_numpy()])


def page(rows: pd.DataFrame, notes: str, folder: str) -> str:
    """The document; what lies in the folder of this name is linked."""
    lines = ["# A policy of our own in LIBERO", "", notes.split("\n---\n")[0].strip()]
    for suite, own in rows.groupby("suite"):
        policies = [name for name in POLICIES if name in set(own.policy)]
        parts = {name: own[own.policy == name] for name in policies}
        conditions = sorted(own.condition.unique(), key=lambda c: (c != CLEAN, c))
        names = {condition: describe(parse_condition(condition)) for condition in conditions}
        rates = {names[c]: [rate(p[p.condition == c]) for p in parts.values()] for c in conditions}
        faults = [c for c in conditions if c != CLEAN]
        seeing = {name: part for name, part in parts.items() if (part.condition != CLEAN).any()}
        blind = {name: parts[name] for name in BLIND if name in parts}
        pairs = {names[c]: [kept(p, c, blind) for p in seeing.values()] for c in faults}
        clean = {name: part[part.condition == CLEAN] for name, part in parts.items()}
        tasks = own[own.condition == CLEAN].drop_duplicates("task_id").sort_values("task_id")
        by_task = {
            f"{number}: {task}": [rate(p[p.task_id == number]) for p in clean.values()]
            for number, task in zip(tasks.task_id, tasks.task, strict=True)
        }
        lines += ["", f"## {suite}: conditions", "", *table(policies, rates), ""]
        lines += [
            "Under each condition, and of the same starts with nothing wrong, and by those that see nothing:",
            "",
            *table(list(seeing), pairs),
        ]
        lines += ["", f"## {suite}: tasks, clean", "", *table(policies, by_task)]
        others = {
            name: rate(part[part.condition == CLEAN])
            for name, part in own[~own.policy.isin(POLICIES)].groupby("policy")
        }
        if others:
            told = "; ".join(f"`{name}` {text}" for name, text in others.items())
            lines += ["", f"Clean, besides: {told}."]
    commits = ", ".join(sorted({commit[:7] for commit in rows.commit}))
    lines += ["", f"Evaluated at {commits}. 95 % intervals: Wilson's. [Rows]({folder}/{ROWS})."]
    lines += ["", *notes.split("\n---\n")[1:]]
    return "\n".join(lines).rstrip() + "\n"


def table(policies: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a table: a column per policy."""
    head = ["", *(f"`{name}`" for name in policies)]
    cells = [head, *([title, *texts] for title, texts in rows.items())]
    first, *others = ["| " + " | ".join(line) + " |" for line in cells]
    return [first, "|---" * len(head) + "|", *others]


def kept(rows: pd.DataFrame, condition: str, blind: Mapping[str, pd.DataFrame]) -> str:
    """Successes under a condition beside clean ones of the same starts, its own and those of the blind."""
    faulty, clean = (by_start(rows, c) for c in (condition, CLEAN))
    others = {name: by_start(part, CLEAN) for name, part in blind.items()}
    shared = faulty.index.intersection(clean.index)
    for other in others.values():
        shared = shared.intersection(other.index)
    if not len(shared):
        return ""
    seen = "".join(f", {name} {other[shared].sum()}" for name, other in others.items())
    return f"{faulty[shared].sum()} of {len(shared)}; clean {clean[shared].sum()}{seen}"


def by_start(rows: pd.DataFrame, condition: str) -> pd.Series:
    """Successes under a condition by task and initial state."""
    return rows[rows.condition == condition].set_index(["task_id", "init_state"]).success


def draw_curves(logs: Path, output: Path) -> None:
    """Training loss of each stage over its steps, of runs that were not interrupted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {
        file.stem: list(map(float, LOSS.findall(file.read_text()))) for file in sorted(logs.glob("*.log"))
    }
    figure, axes = plt.subplots(figsize=(7, 3.5), dpi=90)
    for name, losses in found.items():
        if losses:
            axes.plot([LOG_FREQ * (i + 1) for i in range(len(losses))], losses, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend(fontsize=8)
    figure.tight_layout()
    with whole_file(output) as partial:
        figure.savefig(partial, format="png")
    plt.close(figure)


def draw_strips(clips: Sequence[Path], output: Path) -> None:
    """A row of frames of each clip, from its first to its last."""
    from PIL import Image, ImageSequence

    rows = []
    for clip in clips:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(clip))]
        rows.append([frames[round(i * (len(frames) - 1) / (STRIP_FRAMES - 1))] for i in range(STRIP_FRAMES)])
    width, height = (max(f.size[i] for row in rows for f in row) for i in (0, 1))
    sheet = Image.new("RGB", (width * STRIP_FRAMES, height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            sheet.paste(frame, (x * width, y * height))
    with whole_file(output) as partial:
        sheet.quantize(128, dither=Image.Dither.NONE).save(partial, format="png", optimize=True)


@entry_point("error")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parse_options(PageOptions, arguments)
    folder = options.output
    rows = add(options.runs, options.names, folder / ROWS)
    notes = (folder / NOTES).read_text() if (folder / NOTES).is_file() else ""
    folder.with_suffix(".md").write_text(page(rows, notes, folder.name))
    if options.logs:
        draw_curves(options.logs, folder / "learning.png")
    if options.clips:
        draw_strips(options.clips, folder / "episodes.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
