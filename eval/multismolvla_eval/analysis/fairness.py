"""Is the comparison fair? Evidence from hashes that were taken while the episodes ran."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from multismolvla.corruption import parse_condition
from multismolvla.modalities import Modality, padding_mask_key, valid_key
from multismolvla_eval.analysis.cells import Cells, shared
from multismolvla_eval.analysis.families import reads_condition
from multismolvla_eval.analysis.table import ENCODER_INPUT, POLICY_INPUT
from multismolvla_eval.config import renaming
from multismolvla_eval.records.reach import faulted_streams
from multismolvla_eval.records.schema import RunManifest


@dataclass(frozen=True)
class EqualStarts:
    """How many episodes start from the same simulator state in all cells."""

    episodes: int  # different ones whose state is known
    equal: int  # of these, those with one state


@dataclass(frozen=True)
class FaultArrival:
    """Whether a fault, and nothing else, changed what the policy was given at the first look."""

    policy: str
    condition: str
    where: str  # `encoder`, or `input` of a policy that does not show what enters its encoder
    episodes: int  # compared with their clean counterparts
    reached: int  # of these, those in which every faulted stream differs
    rest_equal: int  # of these, those in which nothing else does

    @property
    def doubtful(self) -> bool:
        """Whether some episode is not as it should be."""
        return min(self.reached, self.rest_equal) < self.episodes


@dataclass(frozen=True)
class Checks:
    """Evidence that cells are paired and that faults reach the policy."""

    starts: EqualStarts
    faults: list[FaultArrival]


def fairness_checks(
    names: Sequence[str], conditions: Sequence[str], cells: Cells, manifest: RunManifest
) -> Checks:
    """Compare hashes of paired episodes.

    Arrival is judged by what the encoder was given if the policy shows it (there per modality), else by the
    policy's input. What the policy computes of RGB changes with it; under a soft fault of RGB it need not,
    the estimate may be the same. Of a soft fault one camera of a modality is enough: the other may show
    nothing that it could change. A frozen picture and a fault in time cannot show at the first frame, and
    what a policy does not read cannot reach it: neither is counted.
    """
    arrivals = []
    for name in names:
        for condition in conditions:
            faults = parse_condition(condition).faults
            if not faults or not all(f.changes_first_frame for f in faults):
                continue
            if reads_condition(manifest.policies[name], condition, manifest):
                clean, faulted = shared([cells.of(name, "C0"), cells.of(name, condition)])
                arrivals += _arrival(clean, faulted, name, condition, manifest)
    known = cells.table[cells.table["state"] != 0]
    states = known.groupby("pair")["state"].nunique()
    return Checks(EqualStarts(len(states), int((states == 1).sum())), arrivals)


def _arrival(
    clean: pd.DataFrame, faulted: pd.DataFrame, name: str, condition: str, manifest: RunManifest
) -> list[FaultArrival]:
    """The counts of one cell; nothing without hashes."""
    streams = faulted_streams(condition, manifest, manifest.policies[name])
    renamed = renaming(name, manifest.rename_map)
    inputs = {m: {renamed.get(k, k) for k in keys} for m, keys in streams.items()}
    soft = {f.modality for f in parse_condition(condition).faults if not f.hard}
    required = faulted_streams(condition, manifest) if Modality.RGB in soft else streams
    encoder, policy = _Hashes(clean, faulted, ENCODER_INPUT), _Hashes(clean, faulted, POLICY_INPUT)
    shown = faulted["encoder_shown"].to_numpy() & (encoder.before != 0).any(1)
    at_encoder = _at_the_encoder(encoder, must=set(required), may=set(streams))
    at_input = _at_the_input(policy, inputs, soft)
    counted, reached, rest_equal = np.where(shown, at_encoder, at_input)
    if not counted.any():
        return []
    sums = (int(x.sum()) for x in (counted, counted & reached, counted & rest_equal))
    return [FaultArrival(name, condition, "encoder" if shown.any() else "input", *sums)]


class _Hashes:
    """Hashes of m clean episodes and of the faulted ones that are paired with them, by key of a tensor."""

    def __init__(self, clean: pd.DataFrame, faulted: pd.DataFrame, prefix: str) -> None:
        columns = [c for c in clean.columns if c.startswith(prefix)]
        self.keys = np.array([c.removeprefix(prefix) for c in columns], object)
        # (m, keys), 0 = no such tensor
        self.before, self.after = clean[columns].to_numpy(), faulted[columns].to_numpy()
        self.changed = self.before != self.after

    def among(self, names: Collection[str]) -> np.ndarray:
        """Which of the keys are among some names, bool (keys,)."""
        return np.isin(self.keys, list(names))


def _at_the_encoder(hashes: _Hashes, must: Collection[str], may: Collection[str]) -> np.ndarray:
    """Whether an episode counts, its fault arrived, and all else is equal: bool (3, m), by modality.

    Args:
        hashes: of what the encoder was given.
        must: modalities that have to change.
        may: those, and what else is allowed to.
    """
    present, hit = hashes.before != 0, hashes.among(must)
    reached = present[:, hit].any(1) & (hashes.changed | ~present)[:, hit].all(1)
    rest_equal = ~(hashes.changed & present)[:, ~hashes.among(may)].any(1)
    return np.stack([np.ones_like(reached), reached, rest_equal])


def _at_the_input(hashes: _Hashes, streams: Mapping[str, set[str]], soft: Collection[str]) -> np.ndarray:
    """The same by stream of the policy's input; flags that come with a faulted stream may differ, too.

    A stream that is gone from the input has changed: that is how some policies are told of a loss.
    """
    present, changed = (hashes.before != 0) | (hashes.after != 0), hashes.changed
    reached = np.ones(len(present), bool)
    for modality, own in streams.items():
        hit = hashes.among(own)
        every = (changed | ~present)[:, hit].all(1)
        reached &= ~present[:, hit].any(1) | (changed[:, hit].any(1) if modality in soft else every)
    keys = set().union(*streams.values())
    flags = {flag(key) for key in keys for flag in (padding_mask_key, valid_key)}
    known = hashes.before.any(1) & hashes.after.any(1)
    counted = present[:, hashes.among(keys)].any(1) & known
    return np.stack([counted, reached, ~changed[:, ~hashes.among(keys | flags)].any(1)])
