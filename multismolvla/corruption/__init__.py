"""Sensor faults as pure functions: (picture, severity, generator) -> picture.

Faults come in four kinds. *Hard* faults take a sensor away (:func:`apply_hard`): announced, so that the policy knows, or
unannounced, so that it does not. *Soft* faults degrade it (:func:`apply_soft`) with a type and a severity from 1 to 5.
*Temporal* faults show the picture of another step (:func:`shown_step`). *Cross-modal* faults leave pictures intact that
no longer agree with one another (:func:`apply_cross`). :class:`Condition` bundles faults into one evaluation arm;
:func:`parse_condition` reads its text form.

Nothing in here keeps state or touches a global generator. The evaluation's environment wrapper is a thin adapter around
these functions; training (policies, ``training_faults``) calls them with its own types (`TRAINING_TYPES`).

Conditions and names need no torch; the functions that do are imported when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from multismolvla.corruption.conditions import (
    CLEAN,
    HARD_TYPES,
    TEMPORAL_TYPES,
    UNANNOUNCED_TYPES,
    Condition,
    Fault,
    camera_loss,
    parse_condition,
    subset_condition,
)
from multismolvla.corruption.cross_modal import TYPES as CROSS_MODAL_TYPES
from multismolvla.corruption.cross_modal import apply_cross
from multismolvla.corruption.derived import with_derived
from multismolvla.corruption.names import (
    CORRUPTION_VERSION,
    IMAGENET_C_TYPES,
    SEVERITIES,
    SOFT_TYPES,
    STATIC_TYPES,
    TRAINING_TYPES,
    seen_in_training,
)
from multismolvla.corruption.seeds import episode_seed, frame_generator
from multismolvla.corruption.temporal import shown_step

if TYPE_CHECKING:
    from multismolvla.corruption.hard import apply_hard
    from multismolvla.corruption.imagenet_c import available as imagenet_c_available
    from multismolvla.corruption.imagenet_c import needs_package as needs_imagecorruptions
    from multismolvla.corruption.soft import apply_soft

#: Functions of the modules that import torch: name here -> module, name there.
_WITH_TORCH = {
    "apply_hard": ("hard", "apply_hard"),
    "apply_soft": ("soft", "apply_soft"),
    "imagenet_c_available": ("imagenet_c", "available"),
    "needs_imagecorruptions": ("imagenet_c", "needs_package"),
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WITH_TORCH[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


__all__ = [
    "CLEAN",
    "CORRUPTION_VERSION",
    "CROSS_MODAL_TYPES",
    "HARD_TYPES",
    "IMAGENET_C_TYPES",
    "SEVERITIES",
    "SOFT_TYPES",
    "STATIC_TYPES",
    "TEMPORAL_TYPES",
    "TRAINING_TYPES",
    "UNANNOUNCED_TYPES",
    "Condition",
    "Fault",
    "apply_cross",
    "apply_hard",
    "apply_soft",
    "camera_loss",
    "episode_seed",
    "frame_generator",
    "imagenet_c_available",
    "needs_imagecorruptions",
    "parse_condition",
    "seen_in_training",
    "shown_step",
    "subset_condition",
    "with_derived",
]
