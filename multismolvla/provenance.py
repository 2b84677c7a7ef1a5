"""Where each stream comes from, a sensor of its own or the RGB of its view, and what follows from that.

A *sensor* is an own measurement: a camera, or the simulator's independent rendering. A *derived* stream is
computed from its view's RGB: it is absent when that RGB is, shows nothing clean when that RGB is disturbed,
and is never called sensor redundancy.

The rule in its three forms: presence in training samples whose RGB is lost or disturbed
(`ProvenanceMap.drop_with_rgb` and `.drop_where_disturbed`), and the faults of an evaluation (`with_derived`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from multismolvla.corruption.conditions import Fault
from multismolvla.modalities import MODALITIES, Feature, Modality, Provenance, ViewMap, token_key

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

#: The option: ``{modality: provenance}`` for all views, and ``{view: {modality: provenance}}``, which takes
#: precedence. A depth camera in front and an estimate at the wrist: ``{"front": {"depth": "sensor"}, "wrist":
#: {"depth": "derived"}}``.
ProvenanceOption = dict[str, Any]
_PROVENANCES = tuple(p.value for p in Provenance)
_RGB = MODALITIES.index(Modality.RGB)
#: Faults of a derived stream that show nothing of the picture it was computed from.
_EMPTY = ("drop", "zero", "grey")


@dataclass(frozen=True)
class ProvenanceMap:
    """The provenance of a policy's streams; what nothing is said about is a sensor.

    Attributes:
        views: the view map.
        said: (view, modality) -> what is said about a stream.
    """

    views: ViewMap
    said: Mapping[tuple[str, str], Provenance]

    @classmethod
    def parse(cls, option: ProvenanceOption, views: ViewMap) -> ProvenanceMap:
        """Read the option.

        Raises:
            ValueError: an unknown view, modality or provenance.
        """
        for name, said in option.items():
            per_view = isinstance(said, Mapping)
            if name not in (views if per_view else MODALITIES):
                raise ValueError(
                    f"--policy.provenance keys={name!r} is unknown. Expected some of {list(MODALITIES)} with "
                    f"sensor or derived, or some of the views {list(views)} with {{modality: provenance}}."
                )
            for modality, kind in said.items() if per_view else [(name, said)]:
                if modality not in MODALITIES or kind not in _PROVENANCES:
                    where = f"{name}.{modality}" if per_view else name
                    raise ValueError(
                        f"--policy.provenance[{where}]={kind!r} is unknown. Expected one of "
                        f"{list(_PROVENANCES)} for one of {list(MODALITIES)}."
                    )
        everywhere = {name: said for name, said in option.items() if isinstance(said, str)}
        found: dict[tuple[str, str], Provenance] = {}
        for view in views:
            own = option.get(view)
            kinds = everywhere | (dict(own) if isinstance(own, Mapping) else {})
            found |= {(view, modality): Provenance(kind) for modality, kind in kinds.items()}
        return cls(views, found)

    def is_derived(self, view: str, modality: str) -> bool:
        """Whether a stream is computed from its view's RGB."""
        return self.said.get((view, modality)) is Provenance.DERIVED

    def derived(self) -> list[tuple[int, int]]:
        """The declared derived streams as indices on the axes V and M."""
        return [
            (v, MODALITIES.index(m))
            for v, (view, streams) in enumerate(self.views.items())
            for m in streams
            if self.is_derived(view, m)
        ]

    def drop_with_rgb(self, presence: Tensor) -> Tensor:
        """Presence bool (B, V, M) without the derived streams whose RGB is absent; in place."""
        for v, m in self.derived():
            presence[:, v, m] &= presence[:, v, _RGB]
        return presence

    def drop_where_disturbed(self, presence: Tensor, severity: Tensor) -> Tensor:
        """Presence bool (B, V, M) without the derived streams whose RGB has a severity (B, V, M); in place.

        They were computed from the clean picture, and would show what RGB no longer does.
        """
        for v, m in self.derived():
            presence[:, v, m] &= severity[:, v, _RGB] == 0
        return presence

    def table(self) -> dict[str, str]:
        """Provenance of the declared streams by modality, or by ``view.modality`` where views differ."""
        table: dict[str, str] = {}
        for modality, found in self._by_modality().items():
            same = len(set(found.values())) == 1
            table |= {modality if same else f"{view}.{modality}": kind for view, kind in found.items()}
        return table

    def option(self) -> ProvenanceOption:
        """The shortest option that says the same."""
        option: ProvenanceOption = {}
        for modality, found in self._by_modality().items():
            if len(set(found.values())) == 1:
                option[modality] = next(iter(found.values()))
            else:
                for view, kind in found.items():
                    option.setdefault(view, {})[modality] = kind
        return option

    def _by_modality(self) -> dict[str, dict[str, str]]:
        """Modality -> view -> provenance, of the declared streams."""
        return {
            m: {v: self.said.get((v, m), Provenance.SENSOR).value for v in self.views if m in self.views[v]}
            for m in MODALITIES
        }

    def adopt(self, features: Mapping[str, Feature]) -> ProvenanceMap:
        """Complete what is said by what the dataset says (``info.provenance`` of pictures and ids).

        Raises:
            ValueError: the dataset contradicts what is said, or a derived stream's view has no RGB to follow.
        """
        stated = _stated(self.views, features)
        wrong = {s: kind for s, kind in stated.items() if self.said.get(s, kind) != kind}
        if wrong:
            contradictions = [
                f"{v}.{m} is {kind} (policy: {self.said[v, m]})" for (v, m), kind in wrong.items()
            ]
            remedy: dict[str, dict[str, str]] = {}
            for (view, modality), kind in wrong.items():
                remedy.setdefault(view, {})[modality] = kind.value
            raise ValueError(
                "--policy.provenance, or the checkpoint that it comes from, contradicts the dataset: "
                f"{', '.join(contradictions)}. Leave it out to take the dataset's, or correct it: "
                f"--policy.provenance='{json.dumps(remedy)}'."
            )
        new = {stream: kind for stream, kind in stated.items() if stream not in self.said}
        if new:
            shown = ProvenanceMap({v: {m: "" for w, m in new if w == v} for v, _ in new}, new).table()
            words = ", ".join(f"{name} {kind}" for name, kind in shown.items())
            logger.info("Provenance as the dataset says: %s.", words)
        adopted = replace(self, said={**self.said, **new})
        adopted.check_rgb()
        return adopted

    def check_rgb(self) -> None:
        """See that the view of every derived stream has an RGB.

        Raises:
            ValueError: one has none.
        """
        for view, streams in self.views.items():
            orphans = [m for m in streams if self.is_derived(view, m) and Modality.RGB not in streams]
            if orphans:
                raise ValueError(
                    f"{view}.{orphans[0]} is derived from the RGB of view {view!r}, which --policy.views "
                    "does not declare, so it would always count as lost. Declare that RGB; leave rgb out of "
                    "--policy.domains if it shall not be read."
                )


def _stated(views: ViewMap, features: Mapping[str, Feature]) -> dict[tuple[str, str], Provenance]:
    """(view, modality) -> what the dataset says of a stream; derived if its picture and ids disagree."""
    stated: dict[tuple[str, str], Provenance] = {}
    for view, streams in views.items():
        for modality, picture in streams.items():
            keys = (picture, token_key(view, modality))
            said = {
                key: (features[key].get("info") or {}).get("provenance") for key in keys if key in features
            }
            kinds = [kind for kind in said.values() if kind is not None]
            unknown = [key for key, kind in said.items() if kind not in (None, *_PROVENANCES)]
            if unknown:
                raise ValueError(
                    f"{unknown[0]}: the dataset's info.provenance is {said[unknown[0]]!r}. Expected one of "
                    f"{list(_PROVENANCES)}; correct it in meta/info.json."
                )
            if kinds:
                derived = Provenance.DERIVED in kinds
                stated[view, modality] = Provenance.DERIVED if derived else Provenance.SENSOR
    return stated


def with_derived(
    faults: Sequence[Fault], derived: Collection[str], cameras: Sequence[str]
) -> tuple[Fault, ...]:
    """Extend an evaluation's faults to the modalities computed from RGB, so that no clean RGB shows in them.

    Where RGB has a fault, a derived stream of that camera

    - keeps a fault of its own that shows nothing (``drop``, ``zero``, ``grey``);
    - has the same fault if RGB shows another of its own pictures (faults in time, ``freeze``, ``swapped``):
      what is computed from an earlier picture is the earlier derived picture. The condition may name that
      fault, too;
    - is dropped and announced in all other cases, also when the condition names another fault for it: what
      would be computed from the broken picture is not known here, and a clean one with a fault on top still
      shows what RGB no longer does.

    Where RGB has none, a derived stream has the fault that the condition names for it. Cameras can be
    exchanged only together: a derived modality whose cameras do not all agree is dropped where it would have
    been exchanged.

    Args:
        faults: of a condition.
        derived: modalities that the environment computes from RGB.
        cameras: of the environment.
    """
    extended = [f for f in faults if f.modality not in derived]
    for modality in (m for m in MODALITIES if m in derived):
        found = {
            c: _of_derived(modality, _hitting(faults, c, Modality.RGB), _hitting(faults, c, modality))
            for c in cameras
        }
        if len(set(found.values())) == 1:
            extended += [f for f in found.values() if f is not None][:1]
            continue
        for camera, fault in found.items():
            if fault is not None:
                one = Fault(modality, "drop") if fault.type == "swapped" else fault
                extended.append(replace(one, cameras=(camera,)))
    return tuple(extended)


def _hitting(faults: Sequence[Fault], camera: str, modality: str) -> Fault | None:
    """The fault of one stream, said without its cameras; a condition has at most one."""
    return next((replace(f, cameras=None) for f in faults if f.hits(camera, modality)), None)


def _of_derived(modality: str, rgb: Fault | None, own: Fault | None) -> Fault | None:
    """The fault of a derived stream, from that of its RGB and the one that the condition names for it."""
    if rgb is None or (own is not None and own.type in _EMPTY):
        return own
    if rgb.kind == "temporal" or rgb.type in ("freeze", "swapped"):
        same = replace(rgb, modality=modality)
        if own in (None, same):
            return same
    return Fault(modality, "drop")
