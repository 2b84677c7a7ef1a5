"""The verdict of the gate: measured errors -> table with intervals -> messages that close it, and the table as text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

CONTROLS = ("zeroed", "shuffled")
#: By how much of the true error each control must be worse, besides an interval that excludes zero.
MIN_RELATIVE = 0.10
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 20_240_607
BOOTSTRAP_DRAWS = 10_000


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of (N,) values; always the same draws."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.concatenate([values[rng.integers(0, len(values), (500, len(values)))].mean(1)
                            for _ in range(BOOTSTRAP_DRAWS // 500)])  # fmt: skip
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def table(errors: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Arm -> its error with interval, and the paired difference to the true pictures, absolute and relative.

    Both over the frames on which the arm was measured.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, values in errors.items():
        measured = np.isfinite(values)
        values, true = values[measured], errors["true"][measured]
        low, high = interval(values)
        rows[name] = {"n": len(values), "error": float(values.mean()), "low": low, "high": high}
        if name != "true":
            low, high = interval(values - true)
            difference = float((values - true).mean())
            rows[name] |= {"difference": difference, "difference_low": low, "difference_high": high}
            rows[name]["relative"] = difference / max(float(true.mean()), 1e-12)
    return rows


def failures(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One message for each control that is not clearly worse than the true pictures; empty = the gate is open."""
    found = []
    for name in CONTROLS:
        row = rows[name]
        if row["difference_low"] <= 0 or row["relative"] < MIN_RELATIVE:
            found.append(
                f"gate closed by {name} pictures: error {row['error']:.3f} against {rows['true']['error']:.3f} with the "
                f"true ones, difference {row['difference']:+.3f} [{row['difference_low']:+.3f}, "
                f"{row['difference_high']:+.3f}] = {row['relative']:+.1%}. Expected an interval above 0 and at least "
                f"{MIN_RELATIVE:+.0%}. The policy hardly looks at its pictures: train longer, or check view map, "
                "orientation and units of the streams; --strict=false goes on regardless."
            )
    return found


def render(rows: Mapping[str, Mapping[str, float]], where: str) -> str:
    """The table as text."""
    lines = [
        f"action error, normalised units, {where}; difference to the true pictures of the same frames with 95 % interval",
        f"{'pictures':<18}{'n':>5}{'error':>8}{'difference':>14}{'interval':>20}{'relative':>11}",
    ]
    for name, row in rows.items():
        line = f"{name:<18}{row['n']:>5.0f}{row['error']:>8.3f}"
        if "difference" in row:
            bounds = f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
            line += f"{row['difference']:>+14.3f}{bounds:>20}{row['relative']:>+11.1%}"
        lines.append(line)
    return "\n".join(lines)
