"""Which assets a suite was rendered with, and whether its figures can stand beside published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def assets_facts(suites: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per set of assets.

    Args:
        suites: the manifest's suites. Suites other than LIBERO's bring their own assets, so nothing is to be noted.

    Returns:
        Per set ``suites``, ``hash``, ``standins`` (as :class:`multismolvla.system.libero_assets.AssetIdentity`; ``None`` =
        unknown) and ``note`` ("" = no doubt).
    """
    sets: dict[tuple[str, bool], list[str]] = {}
    for name, suite in suites.items():
        sets.setdefault((str(suite.get("assets") or ""), name.startswith("libero_")), []).append(name)
    facts = []
    for (digest, libero), names in sets.items():
        first = suites[names[0]]
        note = _note(", ".join(names), digest, first) if libero else ""
        facts.append(
            {"suites": names, "hash": digest, "standins": first.get("assets_standins"), "note": note}
        )
    return facts


def _note(suites: str, digest: str, facts: Mapping[str, Any]) -> str:
    standins = facts.get("assets_standins")
    if not digest:
        return f"{suites}: the assets were not hashed, so nobody can tell whether these figures are comparable with published ones."
    if standins:
        return (
            f"{suites}: some assets are this project's stand-ins (hash {digest}): figures made with these assets are not "
            "comparable with published ones."
        )
    if standins is None:
        differing = len(facts.get("assets_differing") or ())
        what = f"{differing} files are missing or changed" if differing else "nobody has looked at them"
        return (
            f"{suites}: the assets {digest} are not known as LIBERO's published ones ({what}): compare figures only with "
            "reports that name the same hash."
        )
    return ""
