"""LIBERO's stored initial states, read without running what a pickle file may ask for.

hf-libero and LeRobot read them with ``torch.load(weights_only=False)``, which executes any code that the file
names. Each file holds one NumPy array, so nothing but the functions that rebuild an array may be called here.
"""

from __future__ import annotations

import _codecs
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: LIBERO's own suites ship 50 states per task: the first 20 are for evaluation, the others for recording.
EVALUATION_STATES = 20

_RECONSTRUCT = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
#: What a pickled float64 array is made of. NumPy 1 wrote `numpy.core`, NumPy 2 writes `numpy._core`.
_ALLOWED: list[Any] = [
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    np.dtypes.Float64DType,
    _codecs.encode,  # bytes are stored as text in pickle protocol 2
]

#: What torch's restricted unpickler raises on files that were cut or written by hand.
_DAMAGE = (RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError)


def read_states(path: Path) -> np.ndarray:
    """Read one ``*.pruned_init`` file: float64 (states, 1 + nq + nv): time, joint positions and velocities.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it asks for code to be run, is damaged, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No initial states at {path}. They come with hf-libero; reinstall it, or correct 'init_states' "
            "in the file that LIBERO_CONFIG_PATH names."
        )
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            states = torch.load(path, map_location="cpu", weights_only=True)
    except (*_DAMAGE, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} is refused as a file of initial states: it is damaged, or it asks for more than to "
            f"rebuild one NumPy array ({reason}). Nothing in it was run. Reinstall hf-libero, or find out "
            "who changed it."
        ) from error
    if not (
        isinstance(states, np.ndarray) and states.dtype == np.float64 and states.ndim == 2 and len(states)
    ):
        found = f"{states.dtype} {states.shape}" if isinstance(states, np.ndarray) else type(states).__name__
        raise ValueError(f"{path} holds {found}; expected float64 (states, 1 + positions + velocities).")
    return states


def state_numbers(text: str) -> list[int]:
    """The initial states that a text such as ``"20-29,3"`` names, in its order.

    Raises:
        ValueError: not such a list, or a number outside LIBERO's 50 states.
    """
    numbers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ValueError(
                f"Initial states {text!r}: expected numbers and ranges such as '20-29' or '0,3,7'."
            )
        numbers += range(int(low), int(high or low) + 1)
    if not numbers or max(numbers) > 49:
        raise ValueError(f"Initial states {text!r}: LIBERO stores states 0 to 49 for each task.")
    return list(dict.fromkeys(numbers))


def split_states(states: np.ndarray, split: str) -> np.ndarray:
    """The states (states, width) of a split of one task; ``"all"`` keeps upstream's order of 50."""
    return {"all": states, "eval": states[:EVALUATION_STATES], "train": states[EVALUATION_STATES:]}[split]


def split_ranges(split: str, evaluation: int, training: int) -> dict[str, tuple[int, int]]:
    """First and last number of the states for evaluation and for recording that an environment offers.

    It counts from 0, also with ``split="train"``.

    Args:
        split: the environment's: ``"eval"``, ``"train"`` or ``"all"``.
        evaluation: number of states for evaluation.
        training: number of states for recording, which are the last ones.
    """
    offered = {"eval": evaluation if split != "train" else 0, "train": training if split != "eval" else 0}
    ranges, start = {}, 0
    for name, number in offered.items():
        if number:
            ranges[name] = (start, start + number - 1)
        start += number
    return ranges


def split_of(ranges: dict[str, tuple[int, int]], number: int) -> str | None:
    """Split of initial state ``number``, ``None`` if none are stored; after the last the first follows."""
    total = sum(last - first + 1 for first, last in ranges.values())
    return next((k for k, (first, last) in ranges.items() if first <= number % total <= last), None)
