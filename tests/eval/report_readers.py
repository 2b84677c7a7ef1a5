"""What tests read from a report, or from made-up rows without writing one."""

from __future__ import annotations

import csv
from html.parser import HTMLParser

from synthetic import synthetic_run

from multismolvla_eval.episodes import collect
from multismolvla_eval.results import read_manifest, read_rows
from multismolvla_eval.summary import summarise


class Page(HTMLParser):
    """Collects what a browser would fetch, pictures without text, and identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.urls, self.images, self.ids, self.labelled = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.urls += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        if tag == "img":
            self.images.append(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.labelled += [attributes["aria-labelledby"]] if "aria-labelledby" in attributes else []


def csv_of(folder):
    with open(folder / "results.csv") as handle:
        return list(csv.DictReader(handle))


def summary_of(folder, change=None, **changes):
    synthetic_run(folder, **changes)
    manifest = read_manifest(folder)
    rows = read_rows(folder, manifest["fingerprint"])
    for row in rows:
        if change is not None:
            change(row)
    return summarise(collect(rows, manifest["policies"]), manifest)
