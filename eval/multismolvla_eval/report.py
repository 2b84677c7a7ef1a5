"""``multismolvla-report``: tables, JSON, Markdown and one self-contained HTML page from an evaluation's folder.

Everything is computed from the episode files and the manifest; a report can be made at any time while a run goes on.
"""

from __future__ import annotations

import base64
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: Clips that do not fit are left out and named, so that the page stays easy to send [bytes].
CLIP_BUDGET = 13_000_000
TITLE = "Robustness under failing sensors"


@dataclass
class ReportConfig:
    """Report of an evaluation."""

    # Output folder of multismolvla-eval (also as a plain first argument).
    results: Path = Path("outputs/eval")
    # Where the report goes; into the results' folder when left out.
    output: Path | None = None
    # Title of the page.
    title: str = TITLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0, or 2 when the results cannot be used.
    """
    import draccus

    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-"):
        given[0] = f"--results={given[0]}"
    config = draccus.parse(ReportConfig, args=given)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        folder, text = write_report(config.results, config.output, config.title)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(
        f"{text}\n\nWritten: {', '.join(str(folder / n) for n in ('report.html', 'report.md', 'results.json'))}\n"
    )
    return 0


def write_report(results: Path, output: Path | None = None, title: str = TITLE) -> tuple[Path, str]:
    """Write ``report.html``, ``report.md`` and ``results.json``.

    Args:
        results: folder of an evaluation.
        output: target folder; ``results`` itself when ``None``.
        title: of the page.

    Returns:
        The target folder and the table for the terminal.

    Raises:
        ResultsError: the folder holds no results, or damaged or foreign ones.
    """
    from multismolvla_eval.results import read_manifest, read_rows, write_json
    from multismolvla_eval.summary import summarise
    from multismolvla_eval.tables import markdown, terminal_table

    manifest = read_manifest(results)
    summary = summarise(read_rows(results, manifest["fingerprint"]), manifest)
    folder = output or results
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", summary)
    _write_text(folder / "report.md", markdown(summary, title))
    _write_text(folder / "report.html", html(summary, results, title))
    return folder, terminal_table(summary)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def html(summary: dict[str, Any], results: Path, title: str) -> str:
    """The page, with styles, plots and clips inside.

    Args:
        summary: from :func:`multismolvla_eval.summary.summarise`.
        results: folder with ``clips/`` and, if drawn, ``modalities.png``.
        title: of the page.
    """
    import jinja2

    from multismolvla_eval import plots, tables

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        rate=tables.rate_text,
        difference=tables.difference_text,
        percent=tables.percent,
        count=tables.count_text,
    )
    clips, left_out = _clips(summary, results)
    door = results / "modalities.png"
    figures = [
        (text, name, caption)
        for text, name, caption in (
            (
                plots.success_bars(summary),
                "Success per condition",
                "Bars show the success rate, lines the 95 % Wilson interval. The numbers are in the table below.",
            ),
            (
                plots.severity_curves(summary),
                "Success over severity",
                "One panel per corruption type; bands are 95 % Wilson intervals. Severity 0 is clean.",
            ),
            (
                plots.subset_map(summary),
                "Announced subsets of modalities",
                "Success in per cent when only the named modalities are left.",
            ),
        )
        if text is not None
    ]
    return environment.get_template("report.html.j2").render(
        s=summary,
        title=title,
        headline=tables.headline(summary),
        figures=[(_data_uri(t.encode(), "image/svg+xml"), n, c) for t, n, c in figures],
        door=_data_uri(door.read_bytes(), "image/png") if door.is_file() else None,
        clips=clips,
        clips_left_out=left_out,
    )


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _clips(summary: dict[str, Any], results: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Clips by condition, inside the size budget, and the names of those that did not fit."""
    budget = CLIP_BUDGET
    groups, left_out = [], []
    for cell in summary["cells"]:
        members = []
        for name, result in cell["results"].items():
            path = results / result["clip"] if result["clip"] else None
            if path is None or not path.is_file():
                continue
            data = path.read_bytes()
            if len(data) > budget:
                left_out.append(str(path))
                continue
            budget -= len(data)
            members.append({"policy": name, "uri": _data_uri(data, "image/webp")})
        if members:
            groups.append(
                {"condition": cell["condition"], "description": cell["description"], "members": members}
            )
    return groups, left_out


if __name__ == "__main__":
    sys.exit(main())
