"""Which assets a suite was rendered with, and whether its figures can stand beside published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Hashes of asset folders that were looked at: whether they are LIBERO's own, and what is to be said about them. The
#: hash is that of the environment (`assets_hash`).
KNOWN_ASSETS: dict[str, tuple[bool, str]] = {}
#: The same by what the environment found in the files itself (`assets_standins`, see `multismolvla.libero_assets`).
_BY_CONTENT: dict[bool | None, tuple[bool, str]] = {
    True: (False, "this project's visual stand-ins for some of the files"),
    False: (True, "LIBERO's own"),
}


def assets_facts(suites: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per set of assets: ``suites``, ``hash``, ``official`` (``None`` = unknown) and ``note`` ("" = no doubt).

    Args:
        suites: the manifest's suites. Suites other than LIBERO's bring their own assets, so nothing is to be noted.
    """
    by_hash: dict[str, list[str]] = {}
    for name, suite in suites.items():
        by_hash.setdefault(str(suite.get("assets") or ""), []).append(name)
    facts = []
    for digest, names in by_hash.items():
        seen = _BY_CONTENT.get(suites[names[0]].get("assets_standins"), (None, ""))
        official, words = KNOWN_ASSETS.get(digest, seen)
        libero = [n for n in names if n.startswith("libero_")]
        facts.append(
            {
                "suites": names,
                "hash": digest,
                "official": official,
                "note": _note(", ".join(libero), digest, official, words) if libero else "",
            }
        )
    return facts


def _note(suites: str, digest: str, official: bool | None, words: str) -> str:
    if official:
        return ""
    if official is False:
        return f"{suites}: made with {words} (assets {digest}): figures made with these assets are not comparable with published ones."
    if not digest:
        return f"{suites}: the assets were not hashed, so nobody can tell whether these figures are comparable with published ones."
    return (
        f"{suites}: the assets {digest} are not known as LIBERO's published set: compare figures only with reports that name "
        "the same hash."
    )
