"""The matrix of conditions and the reporting levels.

What a condition *is* and how its text reads lives in :mod:`multismolvla.corruption.conditions`, where the
environment's fault wrapper can use it too; which conditions make up a level is a decision of the protocol and
lives here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from multismolvla.corruption import (
    CLEAN,
    CROSS_MODAL_TYPES,
    IMAGENET_C_TYPES,
    SEVERITIES,
    SOFT_TYPES,
    Condition,
    Fault,
    camera_loss,
    cross_modal,
    parse_condition,
    subset_condition,
    temporal,
)
from multismolvla.corruption.conditions import ALL
from multismolvla.modalities import MODALITIES
from multismolvla_eval.protocol.schedule import Counts

#: The cameras that every suite has; the levels are the same for all suites.
CAMERAS: tuple[str, ...] = ("image", "image2")
CAMERA_NAMES = {"image": "third-person camera", "image2": "wrist camera", "image3": "second wrist camera"}


@dataclass(frozen=True)
class Level:
    """A set of conditions with the episodes per task.

    Attributes:
        name: as on the command line.
        conditions: condition texts; the first is always C0.
        clean_episodes: episodes per task of C0.
        episodes: episodes per task of every other condition.
        quotable: whether the protocol allows its figures to be quoted.
        tasks: only the first so many tasks; all if ``None``.
        clean_repeats: repetitions of C0 with other environment and noise seeds.
    """

    name: str
    conditions: tuple[str, ...]
    clean_episodes: int
    episodes: int
    quotable: bool
    tasks: int | None = None
    clean_repeats: int = 1

    @property
    def counts(self) -> Counts:
        """Episodes per task."""
        return Counts(self.clean_episodes, self.episodes, self.clean_repeats)


#: All 15 non-empty subsets of the modalities, the complete one first.
ALL_SUBSETS: tuple[str, ...] = tuple(
    subset_condition(kept).id for r in range(len(MODALITIES), 0, -1) for kept in combinations(MODALITIES, r)
)
CAMERA_LOSSES: tuple[str, ...] = tuple(camera_loss(c).id for c in CAMERAS)
#: One modality at a time, in all cameras.
UNANNOUNCED: tuple[str, ...] = tuple(
    f"C2:{m}={t}" for m in MODALITIES for t in ("zero", "freeze", "grey") if (m, t) != ("seg", "grey")
)
#: The losses of C1 without the announcement: several modalities, and one camera with all of its own. "All
#: zero" is what a policy without vision sees: whoever still succeeds there does not need its sensors.
UNANNOUNCED_SETS: tuple[str, ...] = (
    *(
        parse_condition("C2:" + "+".join(f"{m}=zero" for m in lost)).id
        for r in range(2, len(MODALITIES) + 1)
        for lost in combinations(MODALITIES, r)
    ),
    *(f"C2:all.{c}={t}" for c in CAMERAS for t in ("zero", "freeze")),
)
#: Own types of RGB that the protocol asks of every modality and ImageNet-C lacks.
_OWN_RGB_TYPES = ("builtin_occlusion", "builtin_dead_pixels", "builtin_fade")
#: All of ImageNet-C, and all own types of the protocol.
SOFT_MATRIX: tuple[str, ...] = tuple(
    f"C3:{m}={t}@{s}"
    for m in MODALITIES
    for t in ((*IMAGENET_C_TYPES, *_OWN_RGB_TYPES) if m == "rgb" else SOFT_TYPES[m])
    for s in SEVERITIES
)
#: What LIBERO-Plus calls sensor noise, like there on the third-person camera alone.
THIRD_PERSON: tuple[str, ...] = tuple(
    f"C3:rgb.{CAMERAS[0]}={t}@{s}"
    for t in ("motion_blur", "gaussian_blur", "zoom_blur", "fog", "glass_blur")
    for s in SEVERITIES
)


def _numbered(type_: str, numbers: Mapping[str, Sequence[float]]) -> list[str]:
    return [f"{type_}@{n:g}" for n in numbers.get(type_, ())] or [type_]


TEMPORAL: tuple[str, ...] = tuple(
    f"C4:{m}={text}"
    for t in temporal.TYPES
    for text in _numbered(t, temporal.PARAMETERS)
    for m in (ALL, *MODALITIES)
)
CROSS_MODAL: tuple[str, ...] = (
    "C5:all=swapped",
    *(
        f"C5:{m}={text}"
        for m in MODALITIES
        for t in CROSS_MODAL_TYPES[m]
        if t not in cross_modal.DISPLACED
        for text in _numbered(t, cross_modal.PARAMETERS)
    ),
    *(  # the third-person camera has been knocked, or its depth was calibrated wrongly
        f"C5:{m}.{CAMERAS[0]}={text}"
        for m in (ALL, "depth")
        for t in cross_modal.DISPLACED
        for text in _numbered(t, cross_modal.PARAMETERS)
    ),
)
#: Three types per modality, for the standard level: one noise, one loss of information, one loss of area.
CORE_SOFT_TYPES: dict[str, tuple[str, ...]] = {
    "rgb": ("gaussian_noise", "motion_blur", "contrast"),
    "depth": ("noise", "holes", "scale_drift"),
    "seg": ("boundary", "label_swap", "instance_removed"),
    "thermal": ("fixed_pattern", "low_contrast", "low_resolution"),
}
CORE_TEMPORAL: tuple[str, ...] = (
    *(
        f"C4:all={t}"
        for t in ("frozen", "delay@2", "delay@5", "delay@10", "frame_drop@0.3", "burst", "burst_silent")
    ),
    *(f"C4:{m}=burst_silent" for m in MODALITIES),
)
CORE_CROSS_MODAL: tuple[str, ...] = (
    "C5:all=swapped",
    *(f"C5:depth=shift@{n:g}" for n in cross_modal.PARAMETERS["shift"]),
    *(f"C5:{m}=rotated" for m in MODALITIES),
    *(f"C5:depth=scale@{n:g}" for n in cross_modal.PARAMETERS["scale"]),
)

LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level("smoke", ("C0", "C1:depth+seg+thermal", "C2:rgb=zero"), 1, 1, quotable=False, tasks=1),
        Level(
            "quick",
            ("C0", "C1:depth+seg+thermal", *CAMERA_LOSSES, "C2:rgb=zero", "C2:rgb=freeze",
             "C3:rgb=gaussian_noise@3", "C3:depth=holes@3"),
            5, 5, quotable=False,
        ),
        Level(
            "standard",
            ("C0", "C1:rgb+depth+seg", "C1:depth+seg+thermal", *(f"C1:{m}" for m in MODALITIES),
             *CAMERA_LOSSES, *UNANNOUNCED, "C2:all=zero",
             *(f"C3:{m}={t}@{s}" for m, ts in CORE_SOFT_TYPES.items() for t in ts for s in SEVERITIES),
             *CORE_TEMPORAL, *CORE_CROSS_MODAL),
            10, 10, quotable=True, clean_repeats=3,
        ),
        Level(
            "full",
            ("C0", *ALL_SUBSETS, *CAMERA_LOSSES, *UNANNOUNCED, *UNANNOUNCED_SETS, *SOFT_MATRIX, *THIRD_PERSON,
             *TEMPORAL, *CROSS_MODAL),
            50, 50, quotable=True, clean_repeats=3,
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
    """Parse conditions and check them against the environment.

    Args:
        texts: condition texts; duplicates are dropped, C0 is added in front if missing, because nothing can
            be said about robustness without the clean cell.
        cameras: names of the environment's cameras.

    Raises:
        ValueError: a text cannot be read, names a camera that the environment does not have, or exchanges the
            cameras of an environment with one.
    """
    conditions = list(dict.fromkeys((CLEAN, *(parse_condition(t) for t in texts))))
    for condition in conditions:
        if len(cameras) < 2 and any(f.type == "swapped" for f in condition.faults):
            raise ValueError(
                f"Condition {condition.id!r} exchanges cameras; this environment has {list(cameras)}."
            )
        for fault in condition.faults:
            unknown = [c for c in fault.cameras or () if c not in cameras]
            if unknown:
                raise ValueError(
                    f"Condition {condition.id!r} names the camera {unknown[0]!r}; this environment has "
                    f"{list(cameras)}."
                )
    return tuple(conditions)


def refuse_unfaultable(conditions: Sequence[Condition], suites: Sequence[str]) -> None:
    """Check that nobody asks for faults where none can be put on the sensors: every such episode would crash.

    Attacks happen at the policy and need no such environment.

    Args:
        conditions: of the run.
        suites: those whose environments the fault wrapper cannot work on.

    Raises:
        ValueError: there are such suites, and a condition with a fault.
    """
    faulted = next((c for c in conditions if c.faults and not c.attack), None)
    if faulted is not None and suites:
        raise ValueError(
            f"Condition {faulted.id!r} cannot be applied to the suite {suites[0]!r}: its environment has no "
            "`cameras` or no `presence` in its observations. Use --env.type=multismolvla_libero, or "
            "--conditions='[C0]'."
        )


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
    if condition.attack:
        return _describe_fault(condition.attack, "rgb")
    if condition.id.partition(":")[2].startswith(ALL):
        return _describe_fault(condition.faults[0], "every modality")
    return "; ".join(_describe_fault(f, f.modality) for f in condition.faults)


#: Faults in time and cross-modal ones in words; ``{n}`` is their number.
_WORDS = {
    "frozen": "frozen from a random step in the first half of the episode on, not announced",
    "delay": "{n} steps late, not announced",
    "frame_drop": "loses each frame with probability {n} (the last one stays), not announced",
    "burst": "gone for 20 % of the step limit from a random step on, announced",
    "burst_silent": "black for 20 % of the step limit from a random step on, not announced",
    "shift": "shifted sideways by {n} px (at a width of 224) against RGB, not announced",
    "rotated": "turned by 180 degrees, not announced",
    "swapped": "exchanged between the cameras, not announced",
    "scale": "multiplied by {n}, not announced",
    "moved": "seen from {n} cm beside where the camera was, not announced",
    "turned": "seen by a camera turned by {n} degrees, not announced",
    "zero": "black, not announced",
    "grey": "mid-grey, not announced",
    "freeze": "frozen, not announced",
    "noisy_freeze": "frozen under fresh sensor noise, not announced",
    "policy": "changed by up to {n}/255 so that the actions go wrong most (PGD), not announced",
    "feature": "changed by up to {n}/255 so that the visual tokens move most (PGD), not announced",
    "random_sign": "changed by {n}/255 up or down at random, the control of attacks, not announced",
}


def _describe_fault(fault: Fault, what: str) -> str:
    named = [CAMERA_NAMES.get(c, c) for c in fault.cameras or ()]
    where = f" of the {' and the '.join(named)}" if named else ""
    if fault.kind == "soft":
        return f"{what}{where}: {fault.type.replace('_', ' ')}, severity {fault.severity}"
    number = "" if fault.parameter is None else f"{fault.parameter:g}"
    text = f"{what}{where} {_WORDS[fault.type].format(n=number)}"
    if (what, fault.type) == ("depth", "zero"):
        text += (
            " (an all-zero depth picture is invalid everywhere: for a policy that masks invalid depth it "
            "acts like an announced loss)"
        )
    return text
