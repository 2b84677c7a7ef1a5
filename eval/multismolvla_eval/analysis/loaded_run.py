"""One of the two runs of a comparison: read from its folder or its ``results.json``, and refused where it is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.cells import Arms
from multismolvla_eval.analysis.summary import gate_of, summarise
from multismolvla_eval.analysis.table import Episodes, from_columns
from multismolvla_eval.records import fields
from multismolvla_eval.records.fields import optional
from multismolvla_eval.records.store import MANIFEST, ResultsError, read_json

if TYPE_CHECKING:
    from multismolvla_eval.analysis.table import Episodes

_AGAIN = "Make it again with multismolvla-report, or name the evaluation's folder."
_RUN = {
    "fingerprint": fields.text,
    "created": fields.text,
    "seed": fields.whole,
    "comparable": fields.mapping,
    "suites": fields.each(
        fields.record({"world": optional(fields.text), "init_states": optional(fields.count)})
    ),
    "cameras": fields.listed(fields.text),
    "env": fields.record({"provenance": optional(fields.texts)}),
    "baseline": fields.text,
    "commit": optional(fields.text),
    "versions": optional(fields.texts),
    "synthetic": fields.flag,
    "finished": fields.count,
    "planned": fields.count,
}
_POLICY = {
    "name": fields.text,
    "checkpoint": fields.text,
    "baseline": fields.flag,
    "privileged": fields.flag,
    "blind": fields.flag,
    "reads": fields.listed(fields.text),
}
#: What a comparison needs of a ``results.json``.
_RESULTS = fields.record(
    {
        "run": fields.record(_RUN),
        "policies": fields.listed(fields.record(_POLICY)),
        "episodes": fields.mapping,
        "notes": fields.listed(fields.text),
    }
)


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        name: as given by the user.
        facts: of the run: seed, suites, versions.
        policies: the summary's entries, by name.
        cells: the episodes.
        notes: what a reader must know before quoting a figure of the run.
    """

    name: str
    facts: dict[str, Any]
    policies: dict[str, dict[str, Any]]
    cells: Arms
    notes: list[str]

    def policy(self, name: str, suite: str | None = None) -> dict[str, Any]:
        """What a reader must know of a policy: ``name``, ``privileged``, ``blind`` and ``gate`` of all suites or one."""
        facts = self.policies[name]
        privileged = bool(facts.get("privileged", False))
        gate = gate_of(name, self.facts["baseline"], self.cells, privileged, suite)
        return {
            "name": name,
            "privileged": privileged,
            "blind": bool(facts.get("blind", False)),
            "gate": gate,
        }


def load_side(path: Path) -> Side:
    """A run from its folder or from its ``results.json``.

    Raises:
        ResultsError: there is none, or it is damaged.
    """
    if path.is_dir() and not (path / MANIFEST).is_file() and (path / "results.json").is_file():
        path = path / "results.json"
    if path.is_dir() or not path.exists():
        manifest, episodes = read_episodes(path)
        content = summarise(episodes, manifest)
    else:
        content = read_json(path, _AGAIN)
        if wrong := _RESULTS(content):
            raise ResultsError(
                f"{path} is no results.json of this version's multismolvla-report: {wrong.strip(' .')}. {_AGAIN}"
            )
        episodes = from_columns(content["episodes"], f"{path}: episodes")
        _check_names(path, content, episodes)
    facts = {k: content["run"][k] for k in _RUN}
    policies = {p["name"]: p for p in content["policies"]}
    return Side(
        str(path), facts, policies, Arms(episodes, facts["suites"]), _warnings(facts) + content["notes"]
    )


def _check_names(path: Path, content: dict[str, Any], episodes: Episodes) -> None:
    """Refuse a results.json whose parts do not belong together.

    Raises:
        ResultsError: they do not.
    """
    run, names = content["run"], [p["name"] for p in content["policies"]]
    for column, known in (("policy", names), ("suite", run["suites"])):
        if len(known) > len(set(known)) or not {*episodes.names[column]} <= {*known}:
            raise ResultsError(
                f"{path} has episodes of the {column} {list(episodes.names[column])} and describes {list(known)}. {_AGAIN}"
            )
    if run["finished"] != len(episodes):
        raise ResultsError(f"{path} has {len(episodes)} episodes and says {run['finished']}. {_AGAIN}")
    if any(p["baseline"] != (p["name"] == run["baseline"]) for p in content["policies"]):
        raise ResultsError(
            f"{path} names the baseline {run['baseline']!r}, and another one among its policies. {_AGAIN}"
        )
    for condition in episodes.names["condition"]:
        try:
            parse_condition(condition)
        except ValueError as error:
            raise ResultsError(f"{path} has a condition that is none: {error} {_AGAIN}") from error


def _warnings(facts: dict[str, Any]) -> list[str]:
    """What a run's own page says above everything else."""
    warnings = ["Synthetic rows: made up to test the report, not measured."] if facts["synthetic"] else []
    missing = facts["planned"] - facts["finished"]
    if missing > 0:
        warnings.append(f"The run is not finished: {missing} episodes are missing. Figures will change.")
    return warnings


def read_episodes(results: Path) -> tuple[dict[str, Any], Episodes]:
    """Manifest and episodes of a run's folder.

    Raises:
        ResultsError: the folder holds no results, or damaged or foreign ones.
    """
    from multismolvla_eval.analysis.table import collect
    from multismolvla_eval.records.store import iterate_rows, read_manifest

    manifest = read_manifest(results)
    rows = iterate_rows(results, manifest["fingerprint"], manifest)
    return manifest, collect(rows, manifest["policies"])
