"""Evaluation conditions: frozen values with a text form that parses back.

Grammar (the text is the condition's identity in result files and in commands)::

    C0                                 clean
    C1:rgb+depth                       announced: only rgb and depth are left, in every camera
    C1:-rgb                            announced: rgb is gone (short for C1:depth+seg+thermal)
    C1:camera=image2                   announced: the camera image2 is lost with all its modalities
    C2:rgb=zero                        unannounced: rgb is black, the policy is told that it is there
    C2:rgb.image=freeze+seg=zero       the same for single cameras, several faults at once
    C3:rgb=gaussian_noise@3            soft corruption with severity 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multismolvla.corruption.soft import SEVERITIES, SOFT_TYPES
from multismolvla.modalities import MODALITIES

#: Hard faults that the policy is not told about.
UNANNOUNCED_TYPES: tuple[str, ...] = ("zero", "grey", "freeze")
HARD_TYPES: tuple[str, ...] = ("drop", *UNANNOUNCED_TYPES)


@dataclass(frozen=True)
class Fault:
    """One fault of one modality.

    Attributes:
        modality: one of ``MODALITIES``.
        type: a hard type (``HARD_TYPES``) or a soft type of this modality (``SOFT_TYPES[modality]``).
        severity: 0 for hard faults, 1..5 for soft ones.
        cameras: the cameras that suffer from it; ``None`` for all.
        announced: whether the presence flag tells the policy. Only ``drop`` is announced.
    """

    modality: str
    type: str
    severity: int = 0
    cameras: tuple[str, ...] | None = None
    announced: bool = True

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"Unknown modality {self.modality!r} in a fault. Known: {list(MODALITIES)}.")
        if self.type in HARD_TYPES:
            if self.severity != 0:
                raise ValueError(
                    f"The hard fault {self.type!r} has no severity, got {self.severity}. Leave '@{self.severity}' out."
                )
            if self.type == "grey" and self.modality == "seg":
                raise ValueError(
                    "seg=grey means nothing: class ids have no mid-grey. Use seg=zero or seg=freeze."
                )
        elif self.type in SOFT_TYPES[self.modality]:
            if self.severity not in SEVERITIES:
                raise ValueError(
                    f"Severity {self.severity} of {self.modality}={self.type} is unknown. Expected one of {list(SEVERITIES)}, "
                    f"e.g. C3:{self.modality}={self.type}@3."
                )
        else:
            raise ValueError(
                f"Unknown fault type {self.type!r} for {self.modality}. Known hard types: {list(HARD_TYPES)}; "
                f"known soft types for {self.modality}: {list(SOFT_TYPES[self.modality])}."
            )
        if self.cameras is not None and not self.cameras:
            raise ValueError("A fault with an empty list of cameras has no effect. Use None for all cameras.")

    @property
    def hard(self) -> bool:
        """Whether the sensor's content is gone altogether."""
        return self.type in HARD_TYPES

    def hits(self, camera: str, modality: str) -> bool:
        """Whether this fault concerns the stream ``modality`` of ``camera``."""
        return modality == self.modality and (self.cameras is None or camera in self.cameras)


@dataclass(frozen=True)
class Condition:
    """One arm of an evaluation.

    Attributes:
        id: canonical text; :func:`parse_condition` of it gives an equal condition.
        group: protocol group, "C0" to "C3".
        faults: applied together. Two faults never concern the same stream.
    """

    id: str
    group: str
    faults: tuple[Fault, ...]

    @property
    def lost_modalities(self) -> tuple[str, ...]:
        """Modalities removed and announced in all cameras."""
        return tuple(f.modality for f in self.faults if f.type == "drop" and f.cameras is None)


CLEAN = Condition("C0", "C0", ())


def subset_condition(kept: Sequence[str]) -> Condition:
    """Announced dropout: only the modalities ``kept`` are left.

    Raises:
        ValueError: nothing is kept, or a name is unknown.
    """
    unknown = [m for m in kept if m not in MODALITIES]
    if unknown or not kept:
        raise ValueError(
            f"C1 keeps {list(kept)}; expected a non-empty subset of {list(MODALITIES)}, e.g. C1:depth+seg."
        )
    order = tuple(m for m in MODALITIES if m in kept)
    faults = tuple(Fault(m, "drop") for m in MODALITIES if m not in kept)
    return Condition("C1:" + "+".join(order), "C1", faults)


def camera_loss(camera: str) -> Condition:
    """Announced loss of one camera with all its modalities."""
    if not camera:
        raise ValueError("C1:camera= needs a camera name, e.g. C1:camera=image2.")
    return Condition(
        f"C1:camera={camera}", "C1", tuple(Fault(m, "drop", cameras=(camera,)) for m in MODALITIES)
    )


def _parse_fault(text: str, group: str, whole: str) -> Fault:
    target, _, fault = text.partition("=")
    modality, _, camera = target.strip().partition(".")
    type_, at, severity = fault.strip().partition("@")
    if not fault or (group == "C3") != bool(at):
        example = "C2:rgb=zero" if group == "C2" else "C3:rgb=gaussian_noise@3"
        raise ValueError(f"Cannot read {text!r} in condition {whole!r}. Expected something like {example}.")
    if at and not severity.isdigit():
        raise ValueError(f"Severity {severity!r} in condition {whole!r} is not one of {list(SEVERITIES)}.")
    if group == "C2" and type_ not in UNANNOUNCED_TYPES:
        raise ValueError(
            f"Unknown C2 fault {type_!r} in condition {whole!r}. Known: {list(UNANNOUNCED_TYPES)}; "
            "announced losses are C1, soft corruptions C3."
        )
    if group == "C3" and type_ in HARD_TYPES:
        raise ValueError(f"{type_!r} in condition {whole!r} is a hard fault: write it as C2 (or C1).")
    cameras = (camera,) if camera else None
    return Fault(modality, type_, int(severity) if at else 0, cameras, announced=False)


def _fault_text(fault: Fault) -> str:
    camera = f".{fault.cameras[0]}" if fault.cameras else ""
    severity = f"@{fault.severity}" if fault.severity else ""
    return f"{fault.modality}{camera}={fault.type}{severity}"


def parse_condition(text: str) -> Condition:
    """Read a condition from its text (grammar in the module's docstring).

    Returns:
        The condition with its canonical id, e.g. ``C1:-rgb`` becomes ``C1:depth+seg+thermal``.

    Raises:
        ValueError: the text does not follow the grammar, or names an unknown group, modality, type or severity; the
            message lists what is known. Camera names are checked by the environment, which knows them.
    """
    text = text.strip()
    group, colon, body = text.partition(":")
    if text == "C0":
        return CLEAN
    if group not in ("C1", "C2", "C3") or not colon or not body:
        raise ValueError(
            f"Cannot read the condition {text!r}. Known: C0, C1:<kept modalities>, C1:-<lost>, C1:camera=<lost>, "
            f"C2:<modality>=<{'|'.join(UNANNOUNCED_TYPES)}>, C3:<modality>=<type>@<severity>; modalities: {list(MODALITIES)}."
        )
    if group == "C1":
        if body.startswith("camera="):
            return camera_loss(body.removeprefix("camera="))
        if body.startswith("-"):
            lost = body[1:].split("+")
            unknown = [m for m in lost if m not in MODALITIES]
            if unknown:
                raise ValueError(
                    f"Unknown modality {unknown[0]!r} in condition {text!r}. Known: {list(MODALITIES)}."
                )
            return subset_condition([m for m in MODALITIES if m not in lost])
        return subset_condition(body.split("+"))
    faults = sorted(
        (_parse_fault(part, group, text) for part in body.split("+")),
        key=lambda f: (MODALITIES.index(f.modality), f.cameras or ()),
    )
    for first, second in zip(faults, faults[1:], strict=False):
        if first.modality == second.modality and (
            first.cameras is None or second.cameras is None or set(first.cameras) & set(second.cameras)
        ):
            raise ValueError(f"Condition {text!r} has two faults for the same stream ({first.modality}).")
    return Condition(f"{group}:" + "+".join(map(_fault_text, faults)), group, tuple(faults))
