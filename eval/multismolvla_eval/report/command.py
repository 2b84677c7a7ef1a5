"""``multismolvla-report``: JSON, CSV, Markdown and one self-contained HTML page from an evaluation's folder.

Everything is computed from the episode files and the manifest; a report can be made at any time while a run
goes on. ``multismolvla-report a b`` compares two runs.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multismolvla.system.command import AGAIN, entry_point, parse_options

TITLE = "Robustness under failing sensors"


@dataclass
class ReportConfig:
    """Report of an evaluation, or comparison of two."""

    # Output folder of multismolvla-eval (also as a plain first argument).
    results: Path = Path("outputs/eval")
    # Another one, to compare with (also as a plain second argument).
    against: Path | None = None
    # Where the report goes. When left out: into the results' folder; of a comparison outputs/comparison.
    output: Path | None = None
    # Title of the page.
    title: str | None = None


@entry_point("error", failure=2, interrupted=AGAIN, loads="matplotlib")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0, or 2 when the results cannot be used.
    """
    config = parse_options(ReportConfig, arguments, positional=("results", "against"))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    gc.set_threshold(100_000)  # searching for reference cycles would take a tenth of the time
    if config.against is None:
        folder, text = write_report(config.results, config.output, config.title or TITLE)
        files = ["report.html", "report.md", "results.json", "results.csv"]
    else:
        from multismolvla_eval.report.comparison import write_comparison

        output = config.output or Path("outputs/comparison")
        folder, text = write_comparison(config.results, config.against, output, config.title)
        files = ["comparison.html", "comparison.json"]
    sys.stdout.write(f"{text}\n\nWritten: {', '.join(str(folder / n) for n in files)}\n")
    return 0


def write_report(results: Path, output: Path | None = None, title: str = TITLE) -> tuple[Path, str]:
    """Write ``report.html``, ``report.md``, ``results.json`` and ``results.csv``.

    Args:
        results: folder of an evaluation.
        output: target folder; ``results`` itself when ``None``.
        title: of the page.

    Returns:
        The target folder and the table for the terminal.

    Raises:
        ResultsError: the folder holds no results, or damaged or foreign ones.
    """
    from multismolvla_eval.analysis.diagnosis import read_diagnosis
    from multismolvla_eval.analysis.loaded_run import read_episodes
    from multismolvla_eval.analysis.summarise import summarise
    from multismolvla_eval.report.files import write_figures, write_text
    from multismolvla_eval.report.page import markdown_page, report_page
    from multismolvla_eval.report.tables import cells_csv, terminal_table

    manifest, table = read_episodes(results)
    summary = summarise(table, manifest, read_diagnosis(results, manifest.policies))
    folder = output or results
    folder.mkdir(parents=True, exist_ok=True)
    write_figures(folder / "results.json", summary)
    write_text(folder / "results.csv", cells_csv(summary))
    write_text(folder / "report.md", markdown_page(summary, title))
    write_text(folder / "report.html", report_page(summary, results, title))
    return folder, terminal_table(summary)


if __name__ == "__main__":
    sys.exit(main())
