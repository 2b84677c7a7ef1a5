"""Evaluation conditions: frozen values with a text form that parses back.

Grammar (the text is the condition's identity in result files and in commands)::

    C0                                 clean
    C1:rgb+depth                       announced: only rgb and depth are left, in every camera
    C1:-rgb                            announced: rgb is gone (short for C1:depth+seg+thermal)
    C1:camera=image2                   announced: the camera image2 is lost with all its modalities
    C2:rgb=zero                        unannounced: rgb is black, the policy is told that it is there
    C2:rgb.image=freeze+seg=zero       the same for single cameras, several faults at once
    C3:rgb=gaussian_noise@3            soft corruption with severity 3
    C4:rgb=delay@5                     fault in time: pictures are 5 steps old
    C4:rgb.image2=frame_drop@0.3       each frame of this camera is lost with probability 0.3
    C4:all=burst                       nothing arrives from any sensor for a fifth of the episode, announced
    C5:depth=shift@8                   cross-modal: depth displaced by 8 of 224 pixels against rgb
    C5:all=swapped                     the cameras are exchanged
    C5:all.image=moved@2               the camera image is 2 cm from where it was, for all its modalities
    C6:rgb=policy@4                    adversarial: RGB changed by up to 4/255 against the policy's actions
    C6:rgb.image2=feature@2            one camera's alone, by up to 2/255 against the policy's visual tokens
    C6:rgb=random_sign@4               the control: every value up or down by 4/255, at random

``all`` stands for every modality, in C2 to C5. What the types are and mean: :mod:`.hard`, :mod:`.soft`,
:mod:`.temporal`, :mod:`.cross_modal`, :mod:`.adversarial`. LIBERO-Plus (C7) is no condition: it is a set of
tasks and therefore an environment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from multismolvla.corruption import cross_modal, temporal
from multismolvla.corruption.names import (
    ATTACK_TYPES,
    FREEZES,
    NOT_FOR_IDS,
    SEVERITIES,
    SOFT_TYPES,
    seen_in_training,
)
from multismolvla.modalities import MODALITIES, Modality

#: Hard faults that the policy is not told about.
UNANNOUNCED_TYPES: tuple[str, ...] = ("zero", "grey", *FREEZES)
HARD_TYPES: tuple[str, ...] = ("drop", *UNANNOUNCED_TYPES)
TEMPORAL_TYPES: tuple[str, ...] = temporal.TYPES
#: In a condition's text: every modality.
ALL = "all"
_GROUPS = {"C2": "hard", "C3": "soft", "C4": "temporal", "C5": "cross", "C6": "adversarial"}
_EXAMPLES = {
    "C2": "C2:rgb=zero",
    "C3": "C3:rgb=gaussian_noise@3",
    "C4": "C4:rgb=delay@5",
    "C5": "C5:depth=shift@8",
    "C6": "C6:rgb=policy@4",
}


@dataclass(frozen=True)
class Fault:
    """One fault of one modality.

    Attributes:
        modality: one of ``MODALITIES``.
        type: a hard (``HARD_TYPES``), soft (``SOFT_TYPES[modality]``), temporal (``TEMPORAL_TYPES``) or
            cross-modal type (``cross_modal.TYPES[modality]``), or of RGB an attack (``ATTACK_TYPES``).
        severity: 1..5 for soft faults, 0 for the others.
        cameras: the cameras that suffer from it; ``None`` for all.
        announced: whether the presence flag tells the policy. Only ``drop`` and ``burst`` are announced.
        parameter: number of a temporal or cross-modal fault that has one, of an attack its radius in grey
            levels of 255, else ``None``.
    """

    modality: str
    type: str
    severity: int = 0
    cameras: tuple[str, ...] | None = None
    announced: bool = True
    parameter: float | None = None

    def __post_init__(self) -> None:
        if self.kind == "soft" and self.severity not in SEVERITIES:
            raise ValueError(
                f"Severity {self.severity} of {self.modality}={self.type} is unknown. Expected one of "
                f"{list(SEVERITIES)}, e.g. C3:{self.modality}={self.type}@3."
            )
        if self.modality == "seg" and self.type in NOT_FOR_IDS:
            raise ValueError(
                f"seg={self.type} means nothing. {NOT_FOR_IDS[self.type]} Use seg=zero or seg=freeze."
            )
        if self.kind in ("temporal", "cross"):
            check = temporal.check_parameter if self.kind == "temporal" else cross_modal.check_parameter
            wrong = check(self.type, self.parameter)
            if wrong:
                raise ValueError(f"The fault {self.type!r} (number: {self.parameter}) {wrong}.")
        if self.kind == "adversarial" and not (self.parameter is not None and 0 < self.parameter <= 255):
            raise ValueError(
                f"The attack {self.type!r} (number: {self.parameter}) needs a radius in grey levels of 255, "
                f"more than 0 and at most 255, e.g. C6:rgb={self.type}@4."
            )
        if self.type == "swapped" and self.cameras is not None:
            raise ValueError(
                f"{self.modality}.{self.cameras[0]}=swapped names one camera, but all cameras change places. "
                f"Write {self.modality}=swapped."
            )

    @property
    def kind(self) -> str:
        """``hard``, ``soft``, ``temporal``, ``cross`` or ``adversarial``.

        Raises:
            ValueError: unknown type, or one that this modality cannot have.
        """
        return _kind(self.modality, self.type)

    @property
    def hard(self) -> bool:
        """Whether the sensor's content is gone altogether."""
        return self.type in HARD_TYPES

    @property
    def changes_first_frame(self) -> bool:
        """Whether the first frame of an episode already shows the fault; faults in time begin later."""
        return self.type not in FREEZES and self.kind != "temporal"

    @property
    def seen_in_training(self) -> bool:
        """See :func:`multismolvla.corruption.seen_in_training`."""
        return seen_in_training(self.modality, self.type)

    def hits(self, camera: str, modality: str) -> bool:
        """Whether this fault concerns the stream ``modality`` of ``camera``."""
        return modality == self.modality and (self.cameras is None or camera in self.cameras)


def _kind(modality: str, type_: str) -> str:
    """See :attr:`Fault.kind`."""
    if modality not in MODALITIES:
        raise ValueError(f"Unknown modality {modality!r} in a fault. Known: {list(MODALITIES)}.")
    if type_ in HARD_TYPES:
        return "hard"
    if type_ in SOFT_TYPES[modality]:
        return "soft"
    if type_ in TEMPORAL_TYPES:
        return "temporal"
    if type_ in cross_modal.TYPES[modality]:
        return "cross"
    if type_ in ATTACK_TYPES:
        if modality != Modality.RGB:
            raise ValueError(
                f"{modality}={type_} means nothing: {modality} becomes discrete tokens, through which no "
                f"gradient goes. Attacks change RGB alone: C6:rgb={type_}@4."
            )
        return "adversarial"
    raise ValueError(
        f"Unknown fault type {type_!r} for {modality}. Known hard types: {list(HARD_TYPES)}; "
        f"known soft types for {modality}: {list(SOFT_TYPES[modality])}; temporal: {list(TEMPORAL_TYPES)}; "
        f"cross-modal: {list(cross_modal.TYPES[modality])}; attacks on rgb: {list(ATTACK_TYPES)}."
    )


@dataclass(frozen=True)
class Condition:
    """What is broken in an episode.

    Attributes:
        id: canonical text; :func:`parse_condition` of it gives an equal condition.
        group: protocol group, "C0" to "C6".
        faults: applied together. Two faults never concern the same stream.
    """

    id: str
    group: str
    faults: tuple[Fault, ...]

    @property
    def lost_modalities(self) -> tuple[str, ...]:
        """Modalities removed and announced in all cameras."""
        return tuple(f.modality for f in self.faults if f.type == "drop" and f.cameras is None)

    @property
    def attack(self) -> Fault | None:
        """What is done to the policy's RGB rather than to a sensor, with all cameras that it concerns."""
        if self.group != "C6":
            return None
        cameras = [f.cameras[0] for f in self.faults if f.cameras]
        return replace(self.faults[0], cameras=tuple(cameras) or None)

    def undelivered(self, streams: Collection[str]) -> str | None:
        """The first modality in which a fault would change nothing, because no sensor delivers it.

        What no sensor delivers may still be computed of RGB where a policy looks. There an announced loss
        reaches it, and a fault of RGB, but none of its own.

        Args:
            streams: modalities that the environment delivers.
        """
        of_rgb = {_without_modality(f) for f in self.faults if f.modality == Modality.RGB}
        follow = of_rgb if Modality.RGB in streams else set()
        for fault in self.faults:
            delivered = fault.modality in streams or fault.type == "drop"
            if not delivered and _without_modality(fault) not in follow:
                return fault.modality
        return None

    def check_delivered(self, streams: Collection[str]) -> None:
        """See that each fault finds something that it changes; argument as `undelivered`.

        Raises:
            ValueError: a fault would change nothing; the message holds the remedies.
        """
        idle = self.undelivered(streams)
        if idle is not None:
            raise ValueError(
                f"Condition {self.id!r} changes {idle}, but the environment delivers {', '.join(streams)} "
                f"alone: nothing would happen. What a policy computes of RGB is disturbed by faults of RGB, "
                f"and lost with C1:-{idle}; or let the environment render {idle} (--env.streams; of "
                "multismolvla-eval --env.options='{streams: [...]}')."
            )

    @property
    def seen_in_training(self) -> bool | None:
        """Whether training may have met all of its types of fault; ``None`` without faults."""
        return all(f.seen_in_training for f in self.faults) if self.faults else None


def _without_modality(fault: Fault) -> tuple[str, int, tuple[str, ...] | None, float | None]:
    return fault.type, fault.severity, fault.cameras, fault.parameter


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


def _parse_faults(text: str, group: str, whole: str) -> list[Fault]:
    """The faults of one part of a condition: one, or one per modality for ``all``."""
    target, _, fault = text.partition("=")
    modality, dot, camera = target.strip().partition(".")
    type_, at, number = fault.strip().partition("@")
    if not type_ or bool(dot) != bool(camera) or bool(at) != bool(number) or (group == "C3" and not at):
        raise ValueError(
            f"Cannot read {text!r} in condition {whole!r}. Expected something like {_EXAMPLES[group]}."
        )
    if group == "C3" and not number.isdigit():
        raise ValueError(f"Severity {number!r} in condition {whole!r} is not one of {list(SEVERITIES)}.")
    modalities = MODALITIES if modality == ALL else (modality,)
    kind = _kind(modalities[0], type_)
    if kind != _GROUPS[group] or type_ == "drop":
        right = next(g for g, known in _GROUPS.items() if known == kind)
        article = "an" if kind == "adversarial" else "a"
        raise ValueError(
            f"{type_!r} in condition {whole!r} is {article} {kind} fault and does not belong to {group}. "
            f"Announced losses are written as C1, others of this kind as {right}, e.g. {_EXAMPLES[right]}."
        )
    if at and group == "C2":
        raise ValueError(f"The fault {fault!r} in condition {whole!r} takes no number: write {type_}.")
    severity = int(number) if group == "C3" else 0
    parameter = _number(number, whole) if at and group != "C3" else None
    return [
        Fault(m, type_, severity, (camera,) if camera else None, type_ in temporal.ANNOUNCED, parameter)
        for m in modalities
    ]


def _number(text: str, whole: str) -> float:
    """The number as it will be written, so that the canonical text parses back to the same value."""
    try:
        return float(f"{float(text):g}")
    except ValueError:
        raise ValueError(
            f"{text!r} in condition {whole!r} is not a number. Expected e.g. delay@5, shift@8."
        ) from None


def _body(faults: Sequence[Fault]) -> str:
    """Canonical text of sorted faults."""

    def text(fault: Fault, modality: str) -> str:
        camera = f".{fault.cameras[0]}" if fault.cameras else ""
        number = fault.severity or fault.parameter
        return f"{modality}{camera}={fault.type}" + (f"@{number:g}" if number else "")

    whole = [text(f, ALL) for f in faults]
    same = len(set(whole)) == 1 and len(whole) == len(MODALITIES)
    return whole[0] if same else "+".join(text(f, f.modality) for f in faults)


def parse_condition(text: str) -> Condition:
    """Read a condition from its text (grammar in the module's docstring).

    Returns:
        The condition with its canonical id, e.g. ``C1:-rgb`` becomes ``C1:depth+seg+thermal``.

    Raises:
        ValueError: the text does not follow the grammar, or names an unknown group, modality, type or
            severity. Camera names are checked by the environment.
    """
    text = text.strip()
    group, colon, body = text.partition(":")
    if text == "C0":
        return CLEAN
    if group == "C7":
        raise ValueError(
            f"{text!r} is no condition. LIBERO-Plus (C7) is a set of tasks, run as an environment: "
            "--env.type=libero_plus --env.task=libero_spatial --conditions=[C0]."
        )
    if group not in ("C1", *_GROUPS) or not colon or not body:
        raise ValueError(
            f"Cannot read the condition {text!r}. Known: C0, C1:<kept modalities>, C1:-<lost>, "
            f"C1:camera=<lost>, C2:<modality>=<{'|'.join(UNANNOUNCED_TYPES)}>, "
            f"C3:<modality>=<type>@<severity>, C4:<modality>=<{'|'.join(TEMPORAL_TYPES)}>, "
            f"C5:<modality>=<shift|rotated|swapped|scale|moved|turned>, "
            f"C6:rgb=<{'|'.join(ATTACK_TYPES)}>@<grey levels>; modalities: {[*MODALITIES, ALL]}."
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
        (fault for part in body.split("+") for fault in _parse_faults(part, group, text)),
        key=lambda f: (MODALITIES.index(f.modality), f.cameras or ()),
    )
    for first, second in combinations(faults, 2):
        if first.modality == second.modality and (
            first.cameras is None or second.cameras is None or set(first.cameras) & set(second.cameras)
        ):
            raise ValueError(f"Condition {text!r} has two faults for the same stream ({first.modality}).")
        if group == "C6" and (first.type, first.parameter) != (second.type, second.parameter):
            raise ValueError(
                f"Condition {text!r} names two attacks. One search moves all its cameras together; give each "
                "attack a condition of its own."
            )
    return Condition(f"{group}:{_body(faults)}", group, tuple(faults))
