"""All episodes of a run as columns, for analysis: a row is a large dictionary, and a full run has two million of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from multismolvla_eval.protocol.schedule import KEY
from multismolvla_eval.records import fields
from multismolvla_eval.records.store import ResultsError, Row, cause_of, check_policy

#: Numbers that describe an episode, and where a row has them; NaN where it has not.
MEASURES: dict[str, tuple[str, ...]] = {
    "steps_to_success": ("steps_to_success",),
    "seconds": ("seconds", "total"),
    "policy_seconds": ("seconds", "policy"),
    "gripper_closed": ("gripper", "closed"),
    "gripper_switches": ("gripper", "switches"),
    "peak_memory_mb": ("peak_memory_mb",),
    "fault_steps": ("fault_steps",),
    "fault_looks": ("fault_looks",),
}
_NAMES = ("policy", "suite", "condition", "cause")
_NUMBERS = ("task_id", "episode", "seed", "init_state", "steps")
_COLUMNS = fields.record({"names": fields.record(dict.fromkeys(_NAMES, fields.listed(fields.text)))})
_AGAIN = "Make it again with multismolvla-report."


@dataclass(frozen=True)
class Hashes:
    """Hashes of tensors, one row per episode.

    Attributes:
        keys: names of the tensors.
        values: int64 (n, keys); 0 = the episode has no such tensor.
        known: bool (n,), whether the episode was hashed at all.
    """

    keys: tuple[str, ...]
    values: np.ndarray
    known: np.ndarray

    def columns(self, names: Iterable[str]) -> list[int]:
        """Numbers of the columns of those of ``names`` that occur."""
        return [i for i, key in enumerate(self.keys) if key in set(names)]


@dataclass(frozen=True)
class Episodes:
    """Columns of equal length n.

    Attributes:
        names: vocabularies of the coded columns ``policy``, ``suite``, ``condition`` and ``cause``.
        codes: per coded column int32 (n,), positions in its vocabulary.
        numbers: ``task_id``, ``episode``, ``seed``, ``init_state``, ``steps``, int32 (n,).
        measures: see ``MEASURES``, float32 (n,).
        success: bool (n,).
        start: hash of the simulator's state after the reset, int64 (n,); 0 = unknown.
        door: hashes of what enters the policy.
        encoder: hashes of what enters the vision encoder.
        clips: paths of clips by row, relative to the run's folder.
        gates: by row, how far the policy trusts each modality, 0 to 1; only of policies with such gates.
        last: time of the latest row.
    """

    names: dict[str, tuple[str, ...]]
    codes: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]
    measures: dict[str, np.ndarray]
    success: np.ndarray
    start: np.ndarray
    door: Hashes
    encoder: Hashes
    clips: dict[int, str] = field(default_factory=dict)
    gates: dict[int, dict[str, float]] = field(default_factory=dict)
    last: str = ""

    def __len__(self) -> int:
        return len(self.success)

    def code(self, column: str, name: str) -> int:
        """Position of a name in a column's vocabulary; -1 if no episode has it."""
        names = self.names[column]
        return names.index(name) if name in names else -1

    def to_columns(self) -> dict[str, Any]:
        """JSON-ready: success, seed, initial state and condition of every episode; :func:`from_columns` reads it."""
        return {
            "names": {k: list(v) for k, v in self.names.items()},
            **{k: v.tolist() for k, v in {**self.codes, **self.numbers}.items()},
            "success": self.success.astype(np.int8).tolist(),
        }


def from_columns(columns: Mapping[str, Any], place: str) -> Episodes:
    """Episodes from a ``results.json``: outcomes and identities, without measures and hashes.

    Args:
        columns: of :meth:`Episodes.to_columns`, and ``met`` if it is known: 1, 0, or -1 = unknown.
        place: where they are from, for errors.

    Raises:
        ResultsError: a column is missing, of another length, or holds what no column of its kind does, or an episode is
            there twice: two mistakes that would only show as other figures.
    """
    if wrong := _COLUMNS(columns):
        raise ResultsError(f"{place}{wrong}. {_AGAIN}")
    names = {k: tuple(columns["names"][k]) for k in _NAMES}
    limits = {
        **{k: (0, len(names[k])) for k in _NAMES},
        **dict.fromkeys(_NUMBERS, (0, 2**31)),
        "success": (0, 2),
    }
    if "met" in columns:
        limits["met"] = (-1, 2)
    outcomes = columns.get("success")
    n = len(outcomes) if isinstance(outcomes, list) else 0
    found = {k: _column(columns.get(k), n, low, high, f"{place}.{k}") for k, (low, high) in limits.items()}
    try:
        identities = np.ravel_multi_index([found[k] for k in KEY], [int(found[k].max()) + 1 for k in KEY])
    except ValueError as error:
        raise ResultsError(f"{place} numbers its episodes beyond any run's: {error}. {_AGAIN}") from error
    repeated = n - len(np.unique(identities))
    if repeated or any(len(set(v)) < len(v) for v in names.values()):
        raise ResultsError(f"{place} repeats {repeated or 'the names'} of its {n} episodes. {_AGAIN}")
    met = found.get("met", np.full(n, -1)).astype(np.float32)
    nothing = Hashes((), np.zeros((n, 0), np.int64), np.zeros(n, bool))
    return Episodes(
        names,
        {k: found[k] for k in _NAMES},
        {k: found[k] for k in _NUMBERS},
        {k: np.full(n, np.nan, np.float32) for k in MEASURES}
        | {"fault_steps": np.where(met < 0, np.float32("nan"), met)},
        found["success"].astype(bool),
        np.zeros(n, np.int64),
        nothing,
        nothing,
    )


def _column(values: Any, n: int, low: int, high: int, place: str) -> np.ndarray:
    """Whole numbers from ``low`` to below ``high``, int32 (n,)."""
    whole = isinstance(values, list) and {*map(type, values)} == {int} and len(values) == n
    if not whole or min(values) < low or max(values) >= high:
        raise ResultsError(
            f"{place} is no list of whole numbers from {low} to {high - 1}, one per episode. {_AGAIN}"
        )
    return np.asarray(values, np.int32)


def collect(rows: Iterable[Row], policies: Mapping[str, Mapping[str, Any]]) -> Episodes:
    """Columns from rows, which are read once and not kept.

    Args:
        rows: e.g. from :func:`multismolvla_eval.records.store.iterate_rows`.
        policies: the manifest's entries, by name.

    Raises:
        ResultsError: no rows, or a row of a policy or checkpoint that the manifest does not know.
    """
    vocabularies: dict[str, dict[str, int]] = {k: {} for k in _NAMES}
    codes, numbers = ({k: array("i") for k in keys} for keys in (_NAMES, _NUMBERS))
    measures = {k: array("f") for k in MEASURES}
    success, start = array("b"), array("q")
    door, encoder = _HashCollector(), _HashCollector()
    clips: dict[int, str] = {}
    gates: dict[int, dict[str, float]] = {}
    last = ""
    for number, row in enumerate(rows):
        check_policy(row, f"row {number + 1}", policies)  # rows may come from elsewhere than iterate_rows()
        for key in _NAMES:
            name = cause_of(row) if key == "cause" else row[key]
            codes[key].append(vocabularies[key].setdefault(name, len(vocabularies[key])))
        for key in _NUMBERS:
            numbers[key].append(row[key])
        for key, path in MEASURES.items():
            measures[key].append(_measure(row, path))
        success.append(row["success"])
        start.append(hash(row.get("start") or ""))
        door.append(row.get("door"))
        encoder.append(row.get("encoder"))
        if row.get("clip"):
            clips[number] = row["clip"]
        if row.get("gate"):
            gates[number] = row["gate"]
        last = max(last, row.get("time", ""))
    if not len(success):
        raise ResultsError(
            "There are no finished episodes yet. Run multismolvla-eval first, or wait for its first episodes."
        )
    return Episodes(
        {k: tuple(v) for k, v in vocabularies.items()},
        {k: np.asarray(v) for k, v in codes.items()},
        {k: np.asarray(v) for k, v in numbers.items()},
        {k: np.asarray(v) for k, v in measures.items()},
        np.asarray(success).astype(bool),
        np.asarray(start),
        door.finish(),
        encoder.finish(),
        clips,
        gates,
        last,
    )


def _measure(row: Row, path: Sequence[str]) -> float:
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float("nan") if value is None else value


class _HashCollector:
    """Gathers dictionaries of hashes; episodes with the same keys share a block.

    Texts are kept as their 64-bit ``hash()``, which is 0 for an empty one: they are compared within this process only.
    """

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, ...], tuple[array[int], array[int]]] = {}
        self._known = array("b")

    def append(self, hashes: Mapping[str, str] | None) -> None:
        """The next episode's hashes, ``None`` if it has none."""
        if hashes:
            places, values = self._blocks.setdefault(tuple(hashes), (array("q"), array("q")))
            places.append(len(self._known))
            values.extend(map(hash, hashes.values()))
        self._known.append(hashes is not None)

    def finish(self) -> Hashes:
        keys = tuple(dict.fromkeys(k for block in self._blocks for k in block))
        table = np.zeros((len(self._known), len(keys)), np.int64)
        for names, (places, values) in self._blocks.items():
            columns = np.array([keys.index(k) for k in names])
            table[np.ix_(np.asarray(places), columns)] = np.asarray(values).reshape(-1, len(names))
        return Hashes(keys, table, np.asarray(self._known).astype(bool))


class Cells:
    """The episodes of every arm, sorted so that arms can be paired.

    An arm is a policy under a condition. Two episodes of different arms are a pair if suite, task, repetition and number
    are the same.

    Attributes:
        episodes: the columns.
        place: number per episode that is equal for pairs, int64 (n,); within an arm it ascends by suite and task.
        task: number per episode that is equal for episodes of one task of one suite, int64 (n,).
    """

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        codes, numbers = episodes.codes, episodes.numbers
        spans = {k: int(numbers[k].max()) + 1 for k in ("task_id", "seed", "episode")}
        self.task = codes["suite"].astype(np.int64) * spans["task_id"] + numbers["task_id"]
        self.place = (self.task * spans["seed"] + numbers["seed"]) * spans["episode"] + numbers["episode"]
        arm = codes["policy"].astype(np.int64) * len(episodes.names["condition"]) + codes["condition"]
        order = np.lexsort((self.place, arm))
        bounds = np.flatnonzero(np.diff(arm[order])) + 1
        self._arms = {
            (
                episodes.names["policy"][codes["policy"][rows[0]]],
                episodes.names["condition"][codes["condition"][rows[0]]],
            ): rows
            for rows in np.split(order, bounds)
        }

    def __contains__(self, arm: tuple[str, str]) -> bool:
        return arm in self._arms

    def rows(self, policy: str, condition: str, suite: str | None = None) -> np.ndarray:
        """Rows of an arm, all suites' or one's; empty if it has not run."""
        rows = self._arms.get((policy, condition), np.zeros(0, np.int64))
        if suite is None:
            return rows
        return rows[self.episodes.codes["suite"][rows] == self.episodes.code("suite", suite)]

    def all_rows(self, policy: str) -> np.ndarray:
        """Rows of a policy under all conditions."""
        return np.flatnonzero(self.episodes.codes["policy"] == self.episodes.code("policy", policy))

    def shared(self, arms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The rows of each arm that have a counterpart in all the others, in the same order in all."""
        common = self.place[arms[0]]
        for arm in arms[1:]:
            common = np.intersect1d(common, self.place[arm], assume_unique=True)
        return [arm[np.isin(self.place[arm], common, assume_unique=True)] for arm in arms]
