"""Whether the mini recipe reaches what was aimed at: the table of aims in ``docs/ablation.md``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd


class Cell(NamedTuple):
    """Episodes of one arm under one condition, with health on or off."""

    arm: str
    health: str
    condition: str


@dataclass(frozen=True)
class Aim:
    """What one cell shall reach, measured by another one.

    Attributes:
        says: the aim in words.
        cell: that shall reach it.
        reference: that it is measured by.
        least: smallest difference of the two success rates, cell minus reference, or with ``kept`` their
            smallest ratio.
        kept: whether the aim is a share of the reference's successes.
    """

    says: str
    cell: Cell
    reference: Cell
    least: float
    kept: bool = False


def _ours(condition: str) -> Cell:
    return Cell("robust", "on", condition)


_CLEAN, _NO_RGB = _ours("C0"), _ours("C1:depth+seg+thermal")
_CAMERAS = {"image": "third-person camera", "image2": "wrist camera (the second one stays)"}


def _aims() -> Iterator[Aim]:
    vanilla = Cell("base_continued", "off", "C0")
    yield Aim("clean: within 5 points of `base_continued`", _CLEAN, vanilla, -0.05)
    yield Aim("RGB gone, announced: keeps 85 % of clean", _NO_RGB, _CLEAN, 0.85, kept=True)
    for fault, named in (("zero", "black"), ("grey", "grey"), ("freeze", "frozen")):
        says = f"RGB {named}, unannounced: within 5 points of the announced loss"
        yield Aim(says, _ours(f"C2:rgb={fault}"), _NO_RGB, -0.05)
    for camera, named in _CAMERAS.items():
        says = f"all of the {named} black, unannounced: within 5 points of the announced loss"
        yield Aim(says, _ours(f"C2:all.{camera}=zero"), _ours(f"C1:camera={camera}"), -0.05)
    for camera, named in _CAMERAS.items():
        says, ceiling = f"{named} gone, announced: keeps 90 % of", f"ceiling_{camera}"
        reference = Cell(ceiling, "off", "C0")
        yield Aim(f"{says} `{ceiling}`", _ours(f"C1:camera={camera}"), reference, 0.9, kept=True)
    for fault, named in (
        ("gaussian_noise", "Gaussian noise, severity 3 (training may meet this type)"),
        ("motion_blur", "motion blur, severity 3"),
        ("covered_lens", "covered lens, severity 3"),
    ):
        cell, says = _ours(f"C3:rgb={fault}@3"), f"RGB: {named}"
        yield Aim(f"{says}: keeps 90 % of clean", cell, _CLEAN, 0.9, kept=True)
        yield Aim(f"{says}: within 10 points of the announced loss", cell, _NO_RGB, -0.1)


_ROUNDING = 1e-9
AIMS: tuple[Aim, ...] = tuple(_aims())


def aims_table(rows: pd.DataFrame) -> list[str]:
    """Lines of the table."""
    head = "| aim of `robust`, health on | figure | 95 % interval | pairs (training seeds) | met |"
    return [head, "|---" * 5 + "|", *(f"| {aim.says} | {_figures(rows, aim)} |" for aim in AIMS)]


def _figures(rows: pd.DataFrame, aim: Aim) -> str:
    """The other columns, of the starts that both cells have run with the same training seed."""
    from multismolvla_eval.analysis.bootstrap import Pairs, paired_differences

    own, other = _successes(rows, aim.cell), _successes(rows, aim.reference)
    shared = own.index.intersection(other.index).sort_values()
    n, seeds = len(shared), shared.get_level_values("seed")
    if not n:
        missing = [cell.arm for cell, part in ((aim.cell, own), (aim.reference, other)) if part.empty]
        why = f"no rows of `{missing[0]}` yet" if missing else "no training seed in common"
        return f"{why} | | 0 |"
    own, other = own[shared].to_numpy(float), other[shared].to_numpy(float)
    (found,) = paired_differences([Pairs(other, own, seeds.to_numpy(), n)])
    value, low, high = found.difference, found.low, found.high
    number, unit = "{:+.0f}", "points"
    if aim.kept:
        value, low, high = found.ratio, found.ratio_low, found.ratio_high
        number, unit = "{:.0f}", "%"
    counts = f"{own.sum():.0f}/{n} against {other.sum():.0f}/{n}"
    pairs = f"{n} ({', '.join(map(str, seeds.unique()))})"
    if value is None:  # there is nothing to keep a share of
        return f"{counts} | | {pairs} |"
    reached = value > aim.least - _ROUNDING
    met, interval = "yes" if reached else "no", ""
    if low is not None and high is not None:
        interval = f"{number.format(100 * low)} to {number.format(100 * high)}"
    if not interval or low < aim.least <= high:
        met += ", open"
    return f"{number.format(100 * value)} {unit} ({counts}) | {interval} | {pairs} | {met}"


def _successes(rows: pd.DataFrame, cell: Cell) -> pd.Series:
    """0 or 1 by training seed, task and start."""
    chosen = rows[(rows.arm == cell.arm) & (rows.health == cell.health) & (rows.condition == cell.condition)]
    return chosen.set_index(["seed", "task", "start"]).success
