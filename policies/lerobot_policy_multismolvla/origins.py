"""Where each stream comes from: an own sensor, or computed from its view's RGB, with which it dies.

Two forms, also mixed: ``{modality: origin}`` for all views, and ``{view: {modality: origin}}``, which goes before it: a depth
camera in front and an estimate at the wrist are ``{"front": {"depth": "sensor"}, "wrist": {"depth": "derived"}}``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from multismolvla.modalities import MODALITIES, Modality, Origin, ViewMap, token_key

logger = logging.getLogger(__name__)

#: See the module; values are strings or dictionaries of strings.
Origins = dict[str, Any]
_ORIGINS = tuple(o.value for o in Origin)


def check_origins(origins: Mapping[str, Any], views: ViewMap) -> None:
    """Check names and values.

    Raises:
        ValueError: an unknown view, modality or origin.
    """
    for name, said in origins.items():
        per_view = isinstance(said, Mapping)
        if name not in (views if per_view else MODALITIES):
            raise ValueError(
                f"--policy.origins keys={name!r} is unknown. Expected some of {list(MODALITIES)} with an origin, or some of "
                f"the views {list(views)} with {{modality: origin}}."
            )
        for modality, origin in said.items() if per_view else [(name, said)]:
            if modality not in MODALITIES or origin not in _ORIGINS:
                where = f"[{name}]" if per_view else ""
                raise ValueError(
                    f"--policy.origins{where}[{modality}]={origin!r} is unknown. Expected one of {list(_ORIGINS)} for one of "
                    f"{list(MODALITIES)}."
                )


def given_origin(origins: Mapping[str, Any], view: str, modality: str) -> Origin | None:
    """What is said about one stream; ``None`` where nothing is."""
    own = origins.get(view)
    said = own.get(modality) if isinstance(own, Mapping) else None
    if said is None and isinstance(origins.get(modality), str):
        said = origins[modality]
    return None if said is None else Origin(said)


def origin_table(origins: Mapping[str, Any], views: ViewMap) -> dict[str, str]:
    """Origins of the declared streams, for reports: key is the modality, or ``view.modality`` where views differ."""
    table: dict[str, str] = {}
    for modality in MODALITIES:
        found = _by_view(origins, views, modality)
        same = len(set(found.values())) == 1
        table |= {modality if same else f"{view}.{modality}": origin for view, origin in found.items()}
    return table


def adopt_origins(
    origins: Mapping[str, Any], views: ViewMap, features: Mapping[str, Mapping[str, Any]]
) -> Origins:
    """Complete origins by what the dataset says (``info.origin`` of pictures and ids); what nobody says is a sensor.

    Args:
        origins: of the policy, as far as given.
        views: the view map.
        features: of the dataset.

    Returns:
        ``{modality: origin}``, and ``{view: {modality: origin}}`` where views differ.

    Raises:
        ValueError: the dataset contradicts what is given, or a derived stream's view has no RGB to die with.
    """
    stated = _stated(views, features)
    given = {stream: given_origin(origins, *stream) for stream in stated}
    wrong = {s: o for s, o in stated.items() if given[s] not in (None, o)}
    if wrong:
        told = ", ".join(f"{v}.{m} is {o} (policy: {given[v, m]})" for (v, m), o in wrong.items())
        raise ValueError(
            f"--policy.origins={json.dumps(dict(origins))}, or the checkpoint that it comes from, contradicts the dataset, where "
            f"{told}. A derived stream must die with its RGB, a sensor must not. Leave --policy.origins out to take the "
            f"dataset's, or correct it: --policy.origins='{json.dumps(_nested(wrong))}'."
        )
    adopted = {s: o for s, o in stated.items() if given[s] is None}
    if adopted:
        table = origin_table(_nested(adopted), {v: {m: "" for w, m in adopted if w == v} for v, _ in adopted})
        logger.info("Origins as the dataset says: %s.", ", ".join(f"{k} {o}" for k, o in table.items()))
    known = _nested({(v, m): o for v in views for m in MODALITIES if (o := given_origin(origins, v, m))})
    for (view, modality), origin in adopted.items():
        known.setdefault(view, {})[modality] = origin.value
    _check_source(known, views)
    return _short(known, origins, views)


def _stated(views: ViewMap, features: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Origin]:
    """(view, modality) -> origin, of the declared streams about which the dataset says something."""
    stated: dict[tuple[str, str], Origin] = {}
    for view, streams in views.items():
        for modality, picture in streams.items():
            for key in (picture, token_key(view, modality)):
                said = (features.get(key, {}).get("info") or {}).get("origin")
                if said is None:
                    continue
                if said not in _ORIGINS:
                    raise ValueError(
                        f"{key}: the dataset's info.origin is {said!r}. Expected one of {list(_ORIGINS)}; correct it in "
                        "meta/info.json."
                    )
                if stated.get((view, modality)) != Origin.DERIVED:  # one word of caution counts for both
                    stated[view, modality] = Origin(said)
    return stated


def _check_source(origins: Mapping[str, Any], views: ViewMap) -> None:
    for view, streams in views.items():
        for modality in streams:
            derived = given_origin(origins, view, modality) == Origin.DERIVED
            if derived and Modality.RGB not in streams:
                raise ValueError(
                    f"{view}.{modality} is derived from the RGB of view {view!r}, which --policy.views does not declare, so it would "
                    "always count as lost. Declare that RGB; leave rgb out of --policy.domains if it shall not be read."
                )


def _by_view(origins: Mapping[str, Any], views: ViewMap, modality: str) -> dict[str, str]:
    """View -> origin of a modality, of the views that declare it."""
    return {
        view: (given_origin(origins, view, modality) or Origin.SENSOR).value
        for view, streams in views.items()
        if modality in streams
    }


def _short(known: Mapping[str, Any], given: Mapping[str, Any], views: ViewMap) -> Origins:
    short: Origins = {}
    for modality in MODALITIES:
        found = _by_view(known, views, modality)
        if len(set(found.values())) == 1:
            short[modality] = next(iter(found.values()))
        elif not found:  # declared nowhere
            said = given.get(modality)
            short[modality] = said if isinstance(said, str) else Origin.SENSOR.value
        for view, origin in found.items() if modality not in short else ():
            short.setdefault(view, {})[modality] = origin
    return short


def _nested(streams: Mapping[tuple[str, str], Origin]) -> Origins:
    """``{(view, modality): origin}`` as ``{view: {modality: origin}}``."""
    nested: Origins = {}
    for (view, modality), origin in streams.items():
        nested.setdefault(view, {})[modality] = origin.value
    return nested
