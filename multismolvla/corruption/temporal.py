"""Faults in time: which of its pictures a sensor shows, as a pure function of seed and step.

Whoever holds the pictures keeps the ones that are still needed; nothing here depends on what was asked
before, so the steps of an episode can be asked for in any order.

"The episode" is its step limit, never its length: that is not known while it runs, and a fault that depended
on it would differ between the policies that are compared. A window therefore lies anywhere within the limit,
and an episode that succeeds early may end before it: one that ends after a share s of the limit meets a
``burst`` with probability s / 0.8 (its start is uniform over what leaves room for it) and ``frozen`` with s /
0.5, at most 1. Rates count every episode, met or not; the environment's ``info["fault_active"]`` tells which
ones met it, and rates over those alone would compare the slow episodes of each policy.

=================  ==========================================================================================
``frozen``         From a random step in the first half of the episode on, the picture stays. Not announced.
``delay``          The picture is k steps old (in the first k steps: the first picture). Not announced.
``frame_drop``     Each frame is lost with probability p; the last one that arrived stays. Not announced.
``burst``          Nothing arrives during a fifth of the episode from a random step on. Announced, since
                   a driver that gets no frames knows it: the presence flag is 0 meanwhile.
``burst_silent``   The same window, but the pictures are zeros and the presence flag stays 1.
=================  ==========================================================================================
"""

from __future__ import annotations

from multismolvla.corruption.seeds import uniform

TYPES: tuple[str, ...] = ("frozen", "delay", "frame_drop", "burst", "burst_silent")
ANNOUNCED: tuple[str, ...] = ("burst",)
#: Types whose window is drawn once per episode: all streams of a condition fail together, and conditions that
#: differ in their streams only fail at the same time. Otherwise a second camera could fill the gap.
WINDOW_TYPES: tuple[str, ...] = ("frozen", "burst", "burst_silent")
#: The protocol's values of the types that have a number: steps of delay, probability of a loss.
PARAMETERS: dict[str, tuple[float, ...]] = {"delay": (2, 5, 10), "frame_drop": (0.1, 0.3, 0.5)}
BURST_SHARE = 0.2
#: The picture freezes in this first share of the step limit. Later, most episodes would be over.
FROZEN_SHARE = 0.5
LONGEST_DELAY = 1000


def check_parameter(type: str, parameter: float | None) -> str | None:
    """What is wrong with a parameter, in words; ``None`` if nothing."""
    if type == "delay":
        if parameter is not None and parameter in range(1, LONGEST_DELAY + 1):
            return None
        return f"needs a whole number of steps from 1 to {LONGEST_DELAY}, e.g. delay@5"
    if type == "frame_drop":
        if parameter is not None and 0 < parameter < 1:
            return None
        return "needs a probability between 0 and 1, e.g. frame_drop@0.3"
    return None if parameter is None else f"has no number: write {type}"


def shown_step(type: str, parameter: float | None, seed: int, step: int, limit: int) -> int | None:
    """The step whose picture is shown at ``step``.

    Args:
        type: one of ``TYPES``.
        parameter: steps of ``delay``, probability of ``frame_drop``, else ``None``.
        seed: from :func:`multismolvla.corruption.episode_seed`.
        step: number of the frame in the episode, from 0.
        limit: step limit of the episode.

    Returns:
        A step in [0, ``step``], never smaller than for an earlier ``step``; ``None`` if nothing is shown.
    """
    if type == "delay":
        return max(0, step - int(parameter or 0))
    if type == "frame_drop":
        while step > 0 and uniform(seed, step) < (parameter or 0.0):
            step -= 1
        return step
    if type == "frozen":
        return min(step, int(uniform(seed) * FROZEN_SHARE * limit))
    length = max(1, round(BURST_SHARE * limit))
    start = int(uniform(seed) * (limit - length + 1))
    return None if start <= step < start + length else step
