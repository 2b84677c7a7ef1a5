"""Sensor faults as pure functions: (picture, severity, generator) -> picture.

Faults come in four kinds. *Hard* faults take a sensor away (`.hard`): announced, so that the
policy knows, or unannounced, so that it does not. *Soft* faults degrade it (`.soft`) with a type
and a severity from 1 to 5. *Temporal* faults show the picture of another step (:func:`shown_step`).
*Cross-modal* faults leave pictures intact that no longer agree with one another (:func:`apply_cross`).
Attacks (`.adversarial`) are no faults of a sensor: they change RGB against a policy, with its own gradients.
:class:`Condition` bundles faults; :func:`parse_condition` reads its text form.

Nothing in here keeps state or touches a global generator. The evaluation's environment wrapper is a thin
adapter around these functions; training (policies, ``training_faults``) calls them with its own types
(`TRAINING_TYPES`).

Conditions and names need no torch, and importing torch takes as long as a small report; the functions that do
need it are therefore imported from their modules: `.adversarial`, `.hard`, `.soft`, `.tokens`.
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

__all__ = [
    "CLEAN", "CORRUPTION_VERSION", "CROSS_MODAL_TYPES", "HARD_TYPES", "IMAGENET_C_TYPES", "SEVERITIES",
    "SOFT_TYPES", "STATIC_TYPES", "TEMPORAL_TYPES", "TRAINING_TYPES", "UNANNOUNCED_TYPES", "Condition",
    "Fault", "apply_cross", "camera_loss", "episode_seed", "frame_generator", "parse_condition",
    "seen_in_training", "shown_step", "subset_condition",
]  # fmt: skip
