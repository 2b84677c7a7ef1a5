"""A comparison of two runs as text, tables and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from multismolvla_eval.analysis.compare import compare
from multismolvla_eval.analysis.loaded_run import load_side
from multismolvla_eval.report.files import json_text, write_text
from multismolvla_eval.report.format import difference_text, power_text, result_text
from multismolvla_eval.report.tables import rounded

TITLE = "Comparison of two evaluations"


def write_comparison(a: Path, b: Path, output: Path, title: str | None = None) -> tuple[Path, str]:
    """Write ``comparison.html`` and ``comparison.json``.

    Args:
        a: folder or ``results.json`` of the first run.
        b: of the second run; differences are second minus first.
        output: target folder.
        title: of the page.

    Returns:
        The target folder and the table for the terminal.

    Raises:
        ResultsError: a side cannot be used, or the two have no policy or no cell in common.
    """
    from multismolvla_eval.report.page import environment

    comparison = compare(load_side(a), load_side(b))
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "comparison.json", json_text(rounded(comparison)))
    template = environment().get_template("compare.html.j2")
    page = template.render(c=comparison, title=title or TITLE, side_texts=side_texts)
    write_text(output / "comparison.html", page)
    return output, terminal(comparison)


def side_texts(cell: dict[str, Any]) -> list[str]:
    """Per side the rate, in how many episodes the fault was met, and whether the policy missed the announcement."""
    sides = zip(cell["rates"], cell["met"], cell["told"], strict=True)
    return [result_text({**rate, "met": met}, known) for rate, met, known in sides]


def terminal(comparison: dict[str, Any]) -> str:
    """The table for the terminal."""
    a, b = (s["name"] for s in comparison["sides"])
    lines = [f"{b} minus {a}, in points", ""]
    for suite, reasons in comparison["differing"].items():
        lines.append(
            f"{suite}: "
            + (
                f"unpaired, because the runs differ in {'; '.join(reasons)}"
                if reasons
                else "paired on the same episodes"
            )
        )
    lines.append("")
    for cell in comparison["cells"]:
        line = f"{' / '.join(dict.fromkeys(cell['labels']))}  {cell['suite']}  {cell['condition']}: {' -> '.join(side_texts(cell))}: "
        if cell["withheld"]:
            lines.append(f"{line}difference not reported ({cell['withheld']})")
        else:
            how = "paired" if cell["paired"] else "unpaired"
            lines.append(
                f"{line}{difference_text(cell['difference'])}; {how}, can show {power_text(cell['difference'])}"
            )
    lines += [
        f"only in {part['run']}, not compared: {part['what']}: {', '.join(part['names'])}"
        for part in comparison["alone"]
    ]
    lines += ["", *(f"note: {n}" for n in comparison["notes"])] if comparison["notes"] else []
    return "\n".join(lines)
