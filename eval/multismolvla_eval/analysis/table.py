"""All episodes of a run as one pandas frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import batched
from operator import attrgetter

import numpy as np
import pandas as pd
from msgspec.structs import asdict

from multismolvla_eval.records.schema import EpisodeRow, RunManifest
from multismolvla_eval.records.store import ResultsError

#: Rows that are held as objects at a time: a full run has two million, and one is larger than its line.
_CHUNK = 20_000
#: Fields of a row that become columns as they are.
_FIELDS = (
    "policy", "suite", "condition", "task_id", "episode", "repeat", "init_state", "success", "cause", "steps",
    "steps_to_success", "fault_steps", "fault_looks", "peak_memory_mb", "clip", "time",
)  # fmt: skip
_OPTIONAL = ("steps_to_success", "fault_steps", "fault_looks", "peak_memory_mb")
#: Column of a field of a row's `AttackRecord`, followed by its name.
ATTACK = "attack "
#: Columns of what not every episode has, followed by an observation key or a modality.
POLICY_INPUT, ENCODER_INPUT, WEIGHT = "policy_input ", "encoder_input ", "modality_weight "
_PAIR = ["suite", "task_id", "repeat", "episode"]


def episode_table(rows: Iterable[EpisodeRow], manifest: RunManifest) -> pd.DataFrame:
    """One line per episode, ordered by cell (policy x condition), suite and task.

    Columns beside fields of a row; numbers are NaN where a row does not tell:

    - ``fault_met``: 1 or 0, whether the policy looked while the fault lasted. An episode may end before its
      fault begins, and a policy that acts in chunks may not look meanwhile.
    - ``pair``, ``task``, ``start``: numbers that ascend with suite and task, equal for episodes of different
      cells that are compared, of one task, and of one start (initial state of a task). The clean condition
      repeats each start, and an environment begins again after its last initial state.
    - ``policy_input KEY``, ``encoder_input MODALITY``: hashes at the first look, comparable within this
      process only; 0 = no such tensor. ``encoder_shown``: whether the policy shows what enters its encoder.
    - ``state``: hash of the simulator's state after the reset; 0 = unknown.
    - ``attack FIELD``: of a row's `AttackRecord`; no such columns where nothing was attacked.

    Args:
        rows: of the run, read once and not kept.
        manifest: gives policies, suites and conditions their order.

    Raises:
        ResultsError: there are no rows.
    """
    types = {
        "policy": pd.CategoricalDtype(list(manifest.policies)),
        "suite": pd.CategoricalDtype(list(manifest.suites)),
        "condition": pd.CategoricalDtype(manifest.conditions),
    }
    chunks = [_frame(chunk).astype(types) for chunk in batched(rows, _CHUNK)]
    if not chunks:
        raise ResultsError(
            "There are no finished episodes yet. Run multismolvla-eval first, or wait for its first episodes."
        )
    table = pd.concat(chunks)
    table = table.sort_values(["policy", "condition", *_PAIR], kind="stable", ignore_index=True)
    hashes = table.columns[table.columns.str.startswith((POLICY_INPUT, ENCODER_INPUT))]
    table[hashes] = table[hashes].fillna(0)
    looks = table["fault_looks"].fillna(table["fault_steps"])
    table["fault_met"] = (looks > 0).where(looks.notna()).astype(float)
    states = {name: suite.init_states for name, suite in manifest.suites.items()}
    first = table["init_state"] % table["suite"].map(states).astype(float)
    table["pair"] = table.groupby(_PAIR, observed=True).ngroup()
    table["task"] = table.groupby(["suite", "task_id"], observed=True).ngroup()
    table["start"] = table.groupby(["task", first.fillna(table["init_state"])]).ngroup()
    return table.copy()  # columns of one type side by side, so that cells are fast to take


def _frame(rows: Sequence[EpisodeRow]) -> pd.DataFrame:
    frame = pd.DataFrame(map(attrgetter(*_FIELDS), rows), columns=_FIELDS)
    frame["seconds"] = [row.seconds.total if row.seconds else None for row in rows]
    frame["policy_seconds"] = [row.seconds.policy if row.seconds else None for row in rows]
    frame["gripper_closed"] = [row.gripper.closed if row.gripper else None for row in rows]
    frame["gripper_switches"] = [row.gripper.switches if row.gripper else None for row in rows]
    attacks = pd.DataFrame(
        [asdict(row.attack) if row.attack else {} for row in rows], frame.index, dtype=float
    )
    optional = [*_OPTIONAL, "seconds", "policy_seconds", "gripper_closed", "gripper_switches"]
    frame[optional] = frame[optional].astype(float)
    frame["state"] = [hash(row.start or "") for row in rows]
    frame["encoder_shown"] = [row.encoder_inputs is not None for row in rows]
    weights = pd.DataFrame([row.modality_weight or {} for row in rows], frame.index).add_prefix(WEIGHT)
    inputs = _hashes([row.policy_inputs or {} for row in rows]).add_prefix(POLICY_INPUT)
    encoder = _hashes([row.encoder_inputs or {} for row in rows]).add_prefix(ENCODER_INPUT)
    return frame.join([weights, attacks.add_prefix(ATTACK), inputs, encoder])


def _hashes(episodes: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Numbers for texts by key: Python's ``hash()``, in an eighth of a text's memory.

    Episodes with the same keys are converted together, four times as fast as each alone.
    """
    blocks: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for place, texts in enumerate(episodes):
        places, values = blocks.setdefault(tuple(texts), ([], []))
        places.append(place)
        values.extend(map(hash, texts.values()))
    parts = [
        pd.DataFrame(np.array(values, np.int64).reshape(len(places), len(keys)), places, list(keys))
        for keys, (places, values) in blocks.items()
    ]
    return pd.concat(parts)
