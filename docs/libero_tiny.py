"""Make docs/libero_tiny.md: `python docs/libero_tiny.py --runs='[FOLDER of multismolvla-eval]'`.

Adds the episodes of these runs to ``docs/libero_tiny/rows.csv.gz`` and writes the page of all that there are,
with the notes in ``docs/libero_tiny/notes.md``. ``--logs`` draws the learning curves of a run of
``python train.py libero_tiny``, ``--clips`` a strip of each clip that an evaluation kept.
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
ROWS, NOTES, PAGE = FOLDER / "rows.csv.gz", FOLDER / "notes.md", FOLDER.with_suffix(".md")
CLEAN = "C0"
KEY = ["policy", "suite", "condition", "task_id", "init_state"]
#: Of a training stage's log; lerobot-train writes one every `log_freq` steps.
LOSS = re.compile(r"\bloss:([\d.]+)")
LOG_FREQ = 50
STRIP_FRAMES = 5


@dataclass
class PageOptions:
    """Options of docs/libero_tiny.py."""

    runs: list[Path] = field(default_factory=list)  # folders of multismolvla-eval
    logs: Path | None = None  # folder `logs` of a training run
    clips: list[Path] = field(default_factory=list)  # files of folders `clips`


def rows_of(folder: Path) -> pd.DataFrame:
    """Episodes of a run, with the commit and the seed that they are of.

    Raises:
        CommandError: several commits took part.
    """
    manifest, table = read_episodes(folder)
    names = [
        manifest.suites[suite].tasks[task] for suite, task in zip(table.suite, table.task_id, strict=True)
    ]
    table = table.assign(
        success=table.success.astype(int),
        commit=single_commit(folder, manifest),
        seed=manifest.comparable.seed,
        task=names,
    ).astype(dict.fromkeys(("policy", "suite", "condition"), str))
    return table[[*KEY, "task", "success", "cause", "steps", "seed", "commit"]]


def add(runs: Sequence[Path]) -> pd.DataFrame:
    """All rows: those kept, and those of these runs in the place of earlier ones of the same episodes."""
    known = [pd.read_csv(ROWS, dtype={"commit": str})] if ROWS.is_file() else []
    if not known and not runs:
        raise CommandError(f"There are no rows in {ROWS}. Name folders of multismolvla-eval with --runs.")
    rows = pd.concat([*known, *map(rows_of, runs)]).drop_duplicates(KEY, keep="last").sort_values(KEY)
    ROWS.parent.mkdir(exist_ok=True)
    rows.to_csv(ROWS, index=False, compression={"method": "gzip", "mtime": 0})
    return rows


def rate(cell: pd.DataFrame) -> str:
    """Successes of a cell with Wilson's 95 % interval; nothing of none."""
    return "" if cell.empty else rate_text([cell.success.to_numpy()])


def page(rows: pd.DataFrame, notes: str) -> str:
    """The document."""
    lines = ["# A policy of our own in LIBERO", "", notes.split("\n---\n")[0].strip()]
    for suite, own in rows.groupby("suite"):
        policies = list(own.groupby("policy").size().sort_values(ascending=False, kind="stable").index)
        parts = {name: own[own.policy == name] for name in policies}
        conditions = sorted(own.condition.unique(), key=lambda c: (c != CLEAN, c))
        names = {condition: describe(parse_condition(condition)) for condition in conditions}
        rates = {names[c]: [rate(p[p.condition == c]) for p in parts.values()] for c in conditions}
        pairs = {names[c]: [kept(p, c) for p in parts.values()] for c in conditions[1:]}
        clean = {name: part[part.condition == CLEAN] for name, part in parts.items()}
        tasks = own[own.condition == CLEAN].drop_duplicates("task_id").sort_values("task_id")
        by_task = {
            f"{number}: {task}": [rate(p[p.task_id == number]) for p in clean.values()]
            for number, task in zip(tasks.task_id, tasks.task, strict=True)
        }
        lines += ["", f"## {suite}: conditions", "", *table(policies, rates), ""]
        lines += ["Of the starts of each condition, how many the same policy solves when nothing is wrong:"]
        lines += ["", *table(policies, pairs)]
        lines += ["", f"## {suite}: tasks, clean", "", *table(policies, by_task)]
    commits = ", ".join(sorted({commit[:7] for commit in rows.commit}))
    lines += ["", f"Evaluated at {commits}. 95 % intervals: Wilson's. [Rows](libero_tiny/rows.csv.gz)."]
    lines += ["", *notes.split("\n---\n")[1:]]
    return "\n".join(lines).rstrip() + "\n"


def table(policies: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a table: a column per policy."""
    head = ["", *(f"`{name}`" for name in policies)]
    cells = [head, *([title, *texts] for title, texts in rows.items())]
    first, *others = ["| " + " | ".join(line) + " |" for line in cells]
    return [first, "|---" * len(head) + "|", *others]


def kept(rows: pd.DataFrame, condition: str) -> str:
    """Successes under a condition beside the clean ones of the same starts."""
    start = ["task_id", "init_state"]
    faulty, clean = (rows[rows.condition == c].set_index(start).success for c in (condition, CLEAN))
    shared = faulty.index.intersection(clean.index)
    return f"{faulty[shared].sum()} against {clean[shared].sum()}" if len(shared) else ""


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
    PAGE.write_text(page(add(options.runs), NOTES.read_text()))
    if options.logs:
        draw_curves(options.logs, FOLDER / "learning.png")
    if options.clips:
        draw_strips(options.clips, FOLDER / "episodes.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
