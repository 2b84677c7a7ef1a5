"""Sensor faults as pure functions: (picture, severity, generator) -> picture.

Faults come in four kinds. *Hard* faults take a sensor away (:func:`apply_hard`): announced, so that the policy knows, or
unannounced, so that it does not. *Soft* faults degrade it (:func:`apply_soft`) with a type and a severity from 1 to 5.
*Temporal* faults show the picture of another step (:func:`shown_step`). *Cross-modal* faults leave pictures intact that
no longer agree with one another (:func:`apply_cross`). :class:`Condition` bundles faults into one evaluation arm;
:func:`parse_condition` reads its text form.

Nothing in here keeps state or touches a global generator. The evaluation's environment wrapper is a thin adapter around
these functions; training (policies, ``training_faults``) calls them with its own types (`TRAINING_TYPES`).
"""

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
from multismolvla.corruption.hard import apply_hard
from multismolvla.corruption.imagenet_c import TYPES as IMAGENET_C_TYPES
from multismolvla.corruption.imagenet_c import available as imagenet_c_available
from multismolvla.corruption.imagenet_c import needs_package as needs_imagecorruptions
from multismolvla.corruption.seeds import episode_seed, frame_generator
from multismolvla.corruption.soft import (
    CORRUPTION_VERSION,
    SEVERITIES,
    SOFT_TYPES,
    STATIC_TYPES,
    TRAINING_TYPES,
    apply_soft,
    seen_in_training,
)
from multismolvla.corruption.temporal import shown_step

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
