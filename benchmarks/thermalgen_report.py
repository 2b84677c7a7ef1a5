"""Tables and pictures of ``multismolvla-thermalgen``: how far few steps are from the converged solution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

METRICS = ("mae", "psnr_db", "ssim")

# Of the Gaussian window and the two stabilising constants, as in Wang et al. 2004.
_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03
_COLOURS = ("#1b6ca8", "#d1495b", "#2a9d5c", "#8a5a9e", "#555555")


def compare(picture: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Difference of two pictures.

    Args:
        picture: float (H, W) in [0, 1], at least 11 pixels in each direction.
        reference: the same.

    Returns:
        ``mae``: mean absolute difference. ``psnr_db``: peak signal-to-noise ratio, at most 120 dB (equal pictures).
        ``ssim``: structural similarity with a Gaussian window of 1.5 pixels, 1 = equal.
    """
    difference = picture.astype(np.float64) - reference
    mse = float((difference**2).mean())
    return {
        "mae": float(np.abs(difference).mean()),
        "psnr_db": -10 * float(np.log10(max(mse, 1e-12))),
        "ssim": _ssim(picture.astype(np.float64), reference.astype(np.float64)),
    }


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.ndimage import gaussian_filter

    def blur(x: np.ndarray) -> np.ndarray:
        smooth: np.ndarray = gaussian_filter(x, _SIGMA, truncate=3.5)
        return smooth

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    local = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    local /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    edge = round(3.5 * _SIGMA)  # windows that reach over the border are left out
    return float(local[edge:-edge, edge:-edge].mean())


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and the values themselves."""
    low, middle, high = np.quantile(np.asarray(values), [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "q25": low, "q75": high, "per_picture": list(values)}


def text_table(curve: Sequence[dict[str, Any]]) -> str:
    """The curve as lines of text; medians over the pictures."""
    lines = [
        f"{'method':10} {'steps':>5} {'evaluations':>11} {'s/picture':>10} {'MAE':>8} {'PSNR dB':>8} {'SSIM':>7}"
    ]
    for row in curve:
        steps = "-" if row["steps"] is None else str(row["steps"])
        lines.append(
            f"{row['method']:10} {steps:>5} {row['evaluations']:>11g} {row['seconds']['median']:>10.3g} "
            f"{row['mae']['median']:>8.5f} {row['psnr_db']['median']:>8.2f} {row['ssim']['median']:>7.4f}"
        )
    return "\n".join(lines)


def plot(curve: Sequence[dict[str, Any]], title: str, target: Path) -> None:
    """Write the curves as PNG: each difference against evaluations, and the mean difference against time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).flat
    panels = (
        (
            "mae",
            "evaluations",
            "mean absolute difference (lower is better)",
            "network evaluations per picture",
        ),
        ("psnr_db", "evaluations", "PSNR in dB (higher is better)", "network evaluations per picture"),
        ("ssim", "evaluations", "SSIM (higher is better)", "network evaluations per picture"),
        ("mae", "seconds", "mean absolute difference (lower is better)", "seconds per picture"),
    )
    methods = list(dict.fromkeys(row["method"] for row in curve))
    for axis, (metric, cost, what, over) in zip(axes, panels, strict=True):
        for colour, method in zip(_COLOURS, methods, strict=False):
            rows = [row for row in curve if row["method"] == method]
            x = [row[cost] if cost == "evaluations" else row[cost]["median"] for row in rows]
            axis.plot(x, [row[metric]["median"] for row in rows], "o-", color=colour, label=method)
            low, high = ([row[metric][q] for row in rows] for q in ("q25", "q75"))
            if len(rows) > 1:
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            else:
                axis.vlines(x, low, high, color=colour, alpha=0.4)
        axis.set_xscale("log")
        ticks = sorted({row["evaluations"] for row in curve}) if cost == "evaluations" else None
        if ticks:
            axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axis.minorticks_off()
        if metric == "mae":
            axis.set_yscale("log")
        axis.set_xlabel(over)
        axis.set_ylabel(what)
        axis.grid(alpha=0.3)
    figure.get_axes()[0].legend()
    figure.suptitle(title)
    figure.savefig(target, dpi=110)


def sheet(
    rgb: np.ndarray,
    reference: np.ndarray,
    settings: dict[tuple[str, int], np.ndarray],
    target: Path,
    *,
    pixels: int = 128,
    gap: int = 4,
) -> None:
    """Write a PNG with a row per picture and method: RGB, the reference, and the method's pictures by number of steps.

    Args:
        rgb: (N, H, W, 3) in [0, 1].
        reference: (N, H, W) in [0, 1].
        settings: (method, steps) -> (N, H, W) in [0, 1].
        target: PNG file to write.
        pixels: side of a picture on the sheet.
        gap: pixels between pictures.
    """
    from PIL import Image, ImageDraw

    methods = list(dict.fromkeys(method for method, _ in settings))
    steps = sorted({count for _, count in settings})
    left, top, pitch = 70, 20, pixels + gap
    size = (left + pitch * (2 + len(steps)), top + pitch * len(rgb) * max(1, len(methods)))
    page = Image.new("RGB", size, color=(250, 250, 250))
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(["rgb", "reference", *(f"{s} step{'s' * (s > 1)}" for s in steps)]):
        draw.text((left + column * pitch, 4), title, fill=(20, 20, 20))

    def paste(picture: np.ndarray, row: int, column: int) -> None:
        image = Image.fromarray(np.rint(picture * 255).astype(np.uint8)).convert("RGB")
        place = (left + column * pitch, top + row * pitch)
        page.paste(image.resize((pixels, pixels), Image.Resampling.BILINEAR), place)

    for number in range(len(rgb)):
        for m, method in enumerate(methods or [""]):
            row = number * max(1, len(methods)) + m
            draw.text((4, top + row * pitch + 4), f"{number}: {method}", fill=(20, 20, 20))
            paste(rgb[number], row, 0)
            paste(reference[number], row, 1)
            for column, count in enumerate(steps):
                if (method, count) in settings:
                    paste(settings[method, count][number], row, 2 + column)
    page.save(target)
