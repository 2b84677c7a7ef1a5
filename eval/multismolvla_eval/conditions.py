"""The matrix of conditions and the reporting levels.

What a condition *is* and how its text reads lives in :mod:`multismolvla.corruption.conditions`, where the environment's
fault wrapper can use it too; which conditions make up a level is a decision of the protocol and lives here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from multismolvla.corruption import (
    CLEAN,
    IMAGENET_C_TYPES,
    SEVERITIES,
    SOFT_TYPES,
    Condition,
    camera_loss,
    imagenet_c_available,
    parse_condition,
    subset_condition,
)
from multismolvla.modalities import MODALITIES

CAMERAS: tuple[str, ...] = ("image", "image2")
CAMERA_NAMES = {"image": "third-person camera", "image2": "wrist camera"}


@dataclass(frozen=True)
class Level:
    """A set of conditions with the episodes per task.

    Attributes:
        name: as on the command line.
        conditions: condition texts; the first is always C0.
        clean_episodes: episodes per task and seed of C0.
        episodes: episodes per task of every other condition.
        quotable: whether the protocol allows its figures to be quoted.
        tasks: only the first so many tasks; all if ``None``.
        clean_seeds: repetitions of C0 with other environment and noise seeds.
    """

    name: str
    conditions: tuple[str, ...]
    clean_episodes: int
    episodes: int
    quotable: bool
    tasks: int | None = None
    clean_seeds: int = 1


#: All 15 non-empty subsets of the modalities, the complete one first.
ALL_SUBSETS: tuple[str, ...] = tuple(
    subset_condition(kept).id for r in range(len(MODALITIES), 0, -1) for kept in combinations(MODALITIES, r)
)
#: Common types of ImageNet-C that work on current libraries, and all own types of the other modalities.
SOFT_MATRIX: tuple[str, ...] = tuple(
    f"C3:{m}={t}@{s}"
    for m in MODALITIES
    for t in (IMAGENET_C_TYPES if m == "rgb" else SOFT_TYPES[m])
    for s in SEVERITIES
)
UNANNOUNCED: tuple[str, ...] = tuple(
    f"C2:{m}={t}" for m in MODALITIES for t in ("zero", "freeze", "grey") if (m, t) != ("seg", "grey")
)
#: Three types per modality, for the standard level: one noise, one loss of information, one loss of area.
CORE_SOFT_TYPES: dict[str, tuple[str, ...]] = {
    "rgb": ("gaussian_noise", "motion_blur", "contrast"),
    "depth": ("noise", "holes", "scale_drift"),
    "seg": ("boundary", "label_swap", "instance_removed"),
    "thermal": ("fixed_pattern", "low_contrast", "low_resolution"),
}

LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level("smoke", ("C0", "C1:-rgb", "C2:rgb=zero"), 1, 1, False, tasks=1),
        Level(
            "quick",
            (
                "C0",
                "C1:depth+seg+thermal",
                "C1:rgb",
                "C1:camera=image2",
                "C2:rgb=zero",
                "C3:rgb=gaussian_noise@3",
                "C3:depth=holes@3",
            ),
            10,
            5,
            False,
        ),
        Level(
            "standard",
            (
                "C0",
                *(f"C1:{s}" for s in ("rgb+depth+seg", "depth+seg+thermal", "rgb", "depth", "seg", "thermal")),
                *(camera_loss(c).id for c in CAMERAS),
                *UNANNOUNCED,
                *(f"C3:{m}={t}@{s}" for m, types in CORE_SOFT_TYPES.items() for t in types for s in SEVERITIES),
            ),
            10,
            10,
            True,
            clean_seeds=3,
        ),
        Level(
            "full",
            ("C0", *ALL_SUBSETS, *(camera_loss(c).id for c in CAMERAS), *UNANNOUNCED, *SOFT_MATRIX),
            50,
            50,
            True,
        ),
    )
}  # fmt: skip


def level_conditions(name: str) -> Level:
    """Look up a level.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in LEVELS:
        raise ValueError(f"Unknown level {name!r}. Known levels: {list(LEVELS)} (--level=quick).")
    return LEVELS[name]


def resolve(texts: Sequence[str], cameras: Sequence[str]) -> tuple[Condition, ...]:
    """Parse conditions and check them against the machine and the environment.

    Args:
        texts: condition texts; duplicates are dropped, C0 is added in front if missing, because nothing can be said
            about robustness without the clean arm.
        cameras: names of the environment's cameras.

    Raises:
        ValueError: a text cannot be read, or names a camera that the environment does not have.
        ModuleNotFoundError: a condition needs the optional package with ImageNet-C's definitions.
    """
    conditions = list(dict.fromkeys((CLEAN, *(parse_condition(t) for t in texts))))
    for condition in conditions:
        for fault in condition.faults:
            unknown = [c for c in fault.cameras or () if c not in cameras]
            if unknown:
                raise ValueError(
                    f"Condition {condition.id!r} names the camera {unknown[0]!r}; this environment has {list(cameras)}."
                )
            if fault.modality == "rgb" and fault.type in IMAGENET_C_TYPES and not imagenet_c_available():
                raise ModuleNotFoundError(
                    f"Condition {condition.id!r} needs the package imagecorruptions: `pip install imagecorruptions`, or "
                    "choose a builtin_* type, e.g. C3:rgb=builtin_noise@3."
                )
    return tuple(conditions)


def describe(condition: Condition) -> str:
    """One line for a reader who does not know the grammar."""
    if condition.group == "C0":
        return "clean: all sensors, no change"
    if condition.group == "C1":
        cameras = {f.cameras for f in condition.faults}
        if cameras and None not in cameras:
            names = sorted({c for f in condition.faults for c in f.cameras or ()})
            return "announced loss of the " + " and ".join(CAMERA_NAMES.get(c, f"camera {c}") for c in names)
        kept = [m for m in MODALITIES if m not in condition.lost_modalities]
        return f"only {' + '.join(kept)} left, announced" if condition.faults else "all modalities, masks on"
    parts = []
    for fault in condition.faults:
        where = f" of the {CAMERA_NAMES.get(fault.cameras[0], fault.cameras[0])}" if fault.cameras else ""
        if fault.hard:
            word = {"zero": "black", "grey": "mid-grey", "freeze": "frozen"}[fault.type]
            parts.append(f"{fault.modality}{where} {word}, not announced")
            if (fault.modality, fault.type) == ("depth", "zero"):
                parts[-1] += (
                    " (an all-zero depth picture is invalid everywhere: for a policy that masks invalid depth it acts like "
                    "an announced loss)"
                )
        else:
            parts.append(
                f"{fault.modality}{where}: {fault.type.replace('_', ' ')}, severity {fault.severity}"
            )
    return "; ".join(parts)
