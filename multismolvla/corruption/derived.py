"""What a fault of RGB means for the modalities that are computed from RGB."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from multismolvla.corruption.conditions import Fault
from multismolvla.modalities import MODALITIES, Modality

#: Faults of a derived stream that show nothing of the picture it was computed from.
_EMPTY = ("drop", "zero", "grey")


def with_derived(
    faults: Sequence[Fault], derived: Collection[str], cameras: Sequence[str]
) -> tuple[Fault, ...]:
    """Faults extended to the modalities that are computed from RGB, so that clean RGB cannot leak through them.

    Where RGB has a fault, a derived stream of that camera

    - keeps a fault of its own that shows nothing (``drop``, ``zero``, ``grey``);
    - has the same fault if RGB shows another of its own pictures (faults in time, ``freeze``, ``swapped``): computed from
      an earlier picture it is the earlier derived picture. A fault of its own may name the very same thing;
    - is dropped with its RGB, and announced, in all other cases, also when the condition names another fault for it: what
      would be computed from the broken picture is not known here, and a clean one with a fault on top still shows what RGB
      no longer does.

    Where RGB has none, a derived stream has the fault that the condition names for it. Cameras can be exchanged only
    together: a derived modality whose cameras do not all agree on that is dropped where it would have been exchanged.

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
