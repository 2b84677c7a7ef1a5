"""Sensor faults as pure functions: (picture, severity, generator) -> picture.

Faults come in two kinds. *Hard* faults take a sensor away (:func:`apply_hard`): announced, so that the policy knows, or
unannounced, so that it does not. *Soft* faults degrade it (:func:`apply_soft`) with a type and a severity from 1 to 5.
:class:`Condition` bundles faults into one evaluation arm; :func:`parse_condition` reads its text form.

Nothing in here keeps state or touches a global generator. The evaluation's environment wrapper is a thin adapter around
these functions; training (policies, ``training_faults``) calls them with its own types (`TRAINING_TYPES`).
"""

from multismolvla.corruption.conditions import (
    CLEAN,
    HARD_TYPES,
    UNANNOUNCED_TYPES,
    Condition,
    Fault,
    camera_loss,
    parse_condition,
    subset_condition,
)
from multismolvla.corruption.hard import apply_hard
from multismolvla.corruption.rgb import IMAGENET_C_TYPES, imagenet_c_available
from multismolvla.corruption.seeds import episode_seed, frame_generator
from multismolvla.corruption.soft import (
    CORRUPTION_VERSION,
    SEVERITIES,
    SOFT_TYPES,
    STATIC_TYPES,
    TRAINING_TYPES,
    apply_soft,
)

__all__ = [
    "CLEAN",
    "CORRUPTION_VERSION",
    "HARD_TYPES",
    "IMAGENET_C_TYPES",
    "SEVERITIES",
    "SOFT_TYPES",
    "STATIC_TYPES",
    "TRAINING_TYPES",
    "UNANNOUNCED_TYPES",
    "Condition",
    "Fault",
    "apply_hard",
    "apply_soft",
    "camera_loss",
    "episode_seed",
    "frame_generator",
    "imagenet_c_available",
    "parse_condition",
    "subset_condition",
]
