"""Where each stream comes from: an own sensor, or computed from its view's RGB, with which it dies.

Two forms, also mixed: ``{modality: provenance}`` for all views, and ``{view: {modality: provenance}}``, which goes before it: a depth
camera in front and an estimate at the wrist are ``{"front": {"depth": "sensor"}, "wrist": {"depth": "derived"}}``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from multismolvla.modalities import MODALITIES, Modality, Provenance, ViewMap, token_key

logger = logging.getLogger(__name__)

#: See the module; values are strings or dictionaries of strings.
ProvenanceMap = dict[str, Any]
_PROVENANCES = tuple(o.value for o in Provenance)


def check_provenance(provenance: Mapping[str, Any], views: ViewMap) -> None:
    """Check names and values.

    Raises:
        ValueError: an unknown view, modality or provenance.
    """
    for name, said in provenance.items():
        per_view = isinstance(said, Mapping)
        if name not in (views if per_view else MODALITIES):
            raise ValueError(
                f"--policy.provenance keys={name!r} is unknown. Expected some of {list(MODALITIES)} with sensor or derived, or some of "
                f"the views {list(views)} with {{modality: provenance}}."
            )
        for modality, kind in said.items() if per_view else [(name, said)]:
            if modality not in MODALITIES or kind not in _PROVENANCES:
                where = f"[{name}]" if per_view else ""
                raise ValueError(
                    f"--policy.provenance{where}[{modality}]={kind!r} is unknown. Expected one of {list(_PROVENANCES)} for one of "
                    f"{list(MODALITIES)}."
                )


def given_provenance(provenance: Mapping[str, Any], view: str, modality: str) -> Provenance | None:
    """What is said about one stream; ``None`` where nothing is."""
    own = provenance.get(view)
    said = own.get(modality) if isinstance(own, Mapping) else None
    if said is None and isinstance(provenance.get(modality), str):
        said = provenance[modality]
    return None if said is None else Provenance(said)


def provenance_table(provenance: Mapping[str, Any], views: ViewMap) -> dict[str, str]:
    """Provenance of the declared streams, for reports: key is the modality, or ``view.modality`` where views differ."""
    table: dict[str, str] = {}
    for modality in MODALITIES:
        found = _by_view(provenance, views, modality)
        same = len(set(found.values())) == 1
        table |= {modality if same else f"{view}.{modality}": kind for view, kind in found.items()}
    return table


def adopt_provenance(
    provenance: Mapping[str, Any], views: ViewMap, features: Mapping[str, Mapping[str, Any]]
) -> ProvenanceMap:
    """Complete provenance by what the dataset says (``info.provenance`` of pictures and ids); what nobody says is a sensor.

    Args:
        provenance: of the policy, as far as given.
        views: the view map.
        features: of the dataset.

    Returns:
        ``{modality: provenance}``, and ``{view: {modality: provenance}}`` where views differ.

    Raises:
        ValueError: the dataset contradicts what is given, or a derived stream's view has no RGB to die with.
    """
    stated = _stated(views, features)
    given = {stream: given_provenance(provenance, *stream) for stream in stated}
    wrong = {s: o for s, o in stated.items() if given[s] not in (None, o)}
    if wrong:
        told = ", ".join(f"{v}.{m} is {o} (policy: {given[v, m]})" for (v, m), o in wrong.items())
        raise ValueError(
            f"--policy.provenance={json.dumps(dict(provenance))}, or the checkpoint that it comes from, contradicts the dataset, where "
            f"{told}. A derived stream must die with its RGB, a sensor must not. Leave --policy.provenance out to take the "
            f"dataset's, or correct it: --policy.provenance='{json.dumps(_nested(wrong))}'."
        )
    adopted = {s: o for s, o in stated.items() if given[s] is None}
    if adopted:
        table = provenance_table(
            _nested(adopted), {v: {m: "" for w, m in adopted if w == v} for v, _ in adopted}
        )
        logger.info("Provenance as the dataset says: %s.", ", ".join(f"{k} {o}" for k, o in table.items()))
    known = _nested(
        {(v, m): o for v in views for m in MODALITIES if (o := given_provenance(provenance, v, m))}
    )
    for (view, modality), kind in adopted.items():
        known.setdefault(view, {})[modality] = kind.value
    _check_source(known, views)
    return _short(known, provenance, views)


def _stated(views: ViewMap, features: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Provenance]:
    """(view, modality) -> provenance, of the declared streams about which the dataset says something."""
    stated: dict[tuple[str, str], Provenance] = {}
    for view, streams in views.items():
        for modality, picture in streams.items():
            for key in (picture, token_key(view, modality)):
                said = (features.get(key, {}).get("info") or {}).get("provenance")
                if said is None:
                    continue
                if said not in _PROVENANCES:
                    raise ValueError(
                        f"{key}: the dataset's info.provenance is {said!r}. Expected one of {list(_PROVENANCES)}; correct it in "
                        "meta/info.json."
                    )
                if stated.get((view, modality)) != Provenance.DERIVED:  # one word of caution counts for both
                    stated[view, modality] = Provenance(said)
    return stated


def _check_source(provenance: Mapping[str, Any], views: ViewMap) -> None:
    for view, streams in views.items():
        for modality in streams:
            derived = given_provenance(provenance, view, modality) == Provenance.DERIVED
            if derived and Modality.RGB not in streams:
                raise ValueError(
                    f"{view}.{modality} is derived from the RGB of view {view!r}, which --policy.views does not declare, so it would "
                    "always count as lost. Declare that RGB; leave rgb out of --policy.domains if it shall not be read."
                )


def _by_view(provenance: Mapping[str, Any], views: ViewMap, modality: str) -> dict[str, str]:
    """View -> provenance of a modality, of the views that declare it."""
    return {
        view: (given_provenance(provenance, view, modality) or Provenance.SENSOR).value
        for view, streams in views.items()
        if modality in streams
    }


def _short(known: Mapping[str, Any], given: Mapping[str, Any], views: ViewMap) -> ProvenanceMap:
    short: ProvenanceMap = {}
    for modality in MODALITIES:
        found = _by_view(known, views, modality)
        if len(set(found.values())) == 1:
            short[modality] = next(iter(found.values()))
        elif not found:  # declared nowhere
            said = given.get(modality)
            short[modality] = said if isinstance(said, str) else Provenance.SENSOR.value
        for view, kind in found.items() if modality not in short else ():
            short.setdefault(view, {})[modality] = kind
    return short


def _nested(streams: Mapping[tuple[str, str], Provenance]) -> ProvenanceMap:
    """``{(view, modality): provenance}`` as ``{view: {modality: provenance}}``."""
    nested: ProvenanceMap = {}
    for (view, modality), kind in streams.items():
        nested.setdefault(view, {})[modality] = kind.value
    return nested
