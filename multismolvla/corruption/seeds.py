"""Seeds of faults: a stable hash of what the fault is, so that drawing one changes no other random number."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from multismolvla.corruption.names import STATIC_TYPES

if TYPE_CHECKING:
    import torch


def _hash(*parts: object) -> int:
    # JSON keeps the parts apart ("a", "bc" is not "ab", "c"); Python's hash() changes with every process
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def episode_seed(
    run_seed: int,
    suite: str,
    task: int | str,
    init_state: int,
    camera: str,
    modality: str,
    type: str,
    severity: float,
) -> int:
    """Seed of one fault in one episode, in [0, 2**63).

    It depends on nothing else, in particular not on the policy, the other faults, or how many episodes ran
    before: every policy meets the same noise in the same episode. The severity of a temporal or cross-modal
    fault is its number (0 if it has none).
    """
    return _hash(run_seed, suite, task, init_state, camera, modality, type, severity)


def uniform(seed: int, *parts: int) -> float:
    """A number in [0, 1) that depends on the arguments only, e.g. on an episode's seed and a step."""
    return (_hash(seed, *parts) >> 10) / 2**53


def frame_generator(seed: int, step: int, type: str) -> torch.Generator:
    """The CPU generator of frame ``step`` (from 0) of an episode with a seed from :func:`episode_seed`.

    Static faults (dirt on a lens, a sensor's fixed pattern) get the same generator at every step and so keep
    one realisation for the whole episode. Dynamic ones are indexed by the step, so that episodes of different
    lengths, or a frame rendered twice, cannot desynchronise two runs.
    """
    import torch

    return torch.Generator().manual_seed(seed if type in STATIC_TYPES else _hash(seed, step))
