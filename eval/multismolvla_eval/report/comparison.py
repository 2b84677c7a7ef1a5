"""A comparison of two runs as text, tables and a page."""

from __future__ import annotations

from pathlib import Path

from multismolvla_eval.analysis.compare import RunComparison, compare
from multismolvla_eval.analysis.loaded_run import load_run
from multismolvla_eval.report.files import write_figures, write_text
from multismolvla_eval.report.format import cell_text, difference_text, power_text
from multismolvla_eval.report.page import environment

TITLE = "Comparison of two evaluations"


def write_comparison(a: Path, b: Path, output: Path, title: str | None = None) -> tuple[Path, str]:
    """Write ``comparison.html`` and ``comparison.json``.

    Args:
        a: folder of the first run.
        b: folder of the second run; differences are second minus first.
        output: target folder.
        title: of the page.

    Returns:
        The target folder and the table for the terminal.

    Raises:
        ResultsError: a run cannot be used, or the two have no policy or no cell in common.
    """
    comparison = compare(load_run(a), load_run(b))
    output.mkdir(parents=True, exist_ok=True)
    write_figures(output / "comparison.json", comparison)
    page = environment().get_template("compare.html.j2").render(c=comparison, title=title or TITLE)
    write_text(output / "comparison.html", page)
    return output, terminal(comparison)


def terminal(comparison: RunComparison) -> str:
    """The table for the terminal."""
    a, b = (run.name for run in comparison.runs)
    lines = [f"{b} minus {a}, in points", ""]
    for suite, reasons in comparison.differing.items():
        unpaired = f"unpaired, because the runs differ in {'; '.join(reasons)}"
        lines.append(f"{suite}: {unpaired if reasons else 'paired on the same episodes'}")
    lines.append("")
    for cell in comparison.cells:
        rates = (cell_text(c.success, c.met, c.mask_reaches_policy) for c in cell.runs)
        labels = " / ".join(dict.fromkeys(cell.labels))
        how = f"{'paired' if cell.paired else 'unpaired'}, can show {power_text(cell.difference)}"
        difference = f"{difference_text(cell.difference)}; {how}"
        if cell.withheld:
            difference = f"difference not reported ({cell.withheld})"
        lines.append(f"{labels}  {cell.suite}  {cell.condition}: {' -> '.join(rates)}: {difference}")
    lines += [
        f"only in {part.run}, not compared: {part.what}: {', '.join(part.names)}" for part in comparison.alone
    ]
    lines += ["", *(f"note: {n}" for n in comparison.notes)] if comparison.notes else []
    return "\n".join(lines)
