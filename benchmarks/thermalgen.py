"""How many integration steps ThermalGen needs on one's own pictures.

    python benchmarks/thermalgen.py --source=outputs/demo/dataset --model=xjh19972/ThermalGen-B-2

Every method and number of steps is compared with the converged solution from the same noise, and
``curve.json``, ``curve.png`` and ``contact_sheet.png`` are written. Few steps usually suffice, and annotating
a data set costs in proportion; how few depends on weights and pictures, so look before annotating.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from support.measuring import Machine, machine_line, spread, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from multismolvla.thermal.thermalgen import ThermalGen

ADAPTIVE = "dopri5"
METRICS = ("mae", "psnr_db", "ssim")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TOLERANCE = 1e-5  # of the converged solution, absolute and relative
_SHEET_PICTURES = 4


@dataclass
class ThermalGenBenchmark:
    """Options of benchmarks/thermalgen.py."""

    source: Path  # folder of pictures, one picture, or a LeRobotDataset
    model: str = "xjh19972/ThermalGen-XL-2"  # hub id, folder in the official layout, or Lightning checkpoint
    camera: str | None = None  # key of the RGB pictures in a dataset; default: its first RGB camera
    pictures: int = 8  # how many, spread evenly over the source
    methods: list[str] = field(default_factory=lambda: ["euler", "midpoint", "heun"])  # or rk4, dopri5
    # The reference's num_steps counts grid points, one more than steps. Methods other than euler evaluate the
    # network 2 (rk4: 4) times per step; dopri5 has no steps.
    steps: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8, 12, 16])
    label: int | None = None  # style, of thermalgen_config.TRAINED_LABELS (7: M3FD, 14: KAIST, 21: FLIR ...)
    cfg_scale: float = 1.0  # guidance towards the label; above 1 every evaluation costs double
    size: int = 256  # side at which the network runs, a multiple of 16
    batch_size: int = 1
    device: str = "cpu"  # or cuda, mps
    dtype: str = "float32"  # or bfloat16, float16; the converged solution is in float32 always
    seed: int = 0
    output: Path = Path("outputs/benchmarks/thermalgen")  # folder


#: Method and number of steps; episode and frame.
type Setting = tuple[str, int | None]
type Frame = tuple[int | str, int]


class Solutions(NamedTuple):
    """Thermal float32 (N, size, size) in [0, 1], seconds per picture, network evaluations per picture."""

    thermal: np.ndarray
    seconds: list[float]
    evaluations: float


def draw_curve(cfg: ThermalGenBenchmark) -> dict[str, Any]:
    """Compare all settings with the converged solution. Returns the content of ``curve.json``."""
    import torch
    from tqdm import tqdm

    from multismolvla.thermal.thermalgen import ThermalGen

    machine = Machine()
    model = ThermalGen.from_pretrained(cfg.model, dtype=torch.float32, device=cfg.device)
    pictures = read_pictures(cfg)
    frames = list(pictures)
    rgb = torch.cat([(model.preprocess(p[None], cfg.size).cpu() + 1) / 2 for p in pictures.values()])
    converged = solve(model, rgb, frames, cfg, ADAPTIVE, None, TOLERANCE)
    if cfg.dtype != "float32":
        model = ThermalGen.from_pretrained(cfg.model, dtype=getattr(torch, cfg.dtype), device=cfg.device)
    settings: list[Setting] = [(m, s) for m in cfg.methods if m != ADAPTIVE for s in sorted(cfg.steps)]
    settings += [(ADAPTIVE, None)] if ADAPTIVE in cfg.methods else []
    solutions = {
        (method, steps): solve(model, rgb, frames, cfg, method, steps)
        for method, steps in tqdm(settings, unit="setting")
    }
    curve = []
    for (method, steps), made in solutions.items():
        values = [compare(a, b) for a, b in zip(made.thermal, converged.thermal, strict=True)]
        row: dict[str, Any] = {"method": method, "steps": steps, "evaluations": made.evaluations}
        row["seconds"] = spread(made.seconds)
        curve.append(row | {name: spread([v[name] for v in values]) for name in METRICS})
    content = {
        "benchmark": "thermalgen",
        "config": asdict(cfg),
        "pictures": frames,
        "converged": {"evaluations": converged.evaluations, "seconds": spread(converged.seconds)},
        "curve": curve,
        "machine": machine.report(),
    }
    cfg.output.mkdir(parents=True, exist_ok=True)
    _plot(curve, f"{cfg.model}: difference to the converged solution, {cfg.dtype}", cfg.output / "curve.png")
    _sheet(rgb, converged, solutions, cfg.output / "contact_sheet.png")
    print(_text_table(curve))
    print(f"Converged solution: {converged.evaluations:g} evaluations. {machine_line(content['machine'])}")
    write_json(cfg.output / "curve.json", content)
    return content


def solve(
    model: ThermalGen,
    rgb: Tensor,
    frames: Sequence[Frame],
    cfg: ThermalGenBenchmark,
    method: str,
    steps: int | None,
    tolerance: float | None = None,
) -> Solutions:
    """What `ThermalGen.generate` does, which does not tell the number of evaluations."""
    import numpy as np

    from multismolvla.thermal.sampler import noise_for

    # Adaptive steps are chosen for a batch as a whole; one by one, a picture's solution is its own.
    size = 1 if method == ADAPTIVE else cfg.batch_size
    options: dict[str, Any] = {"method": method, "cfg_scale": cfg.cfg_scale}
    if steps:
        options["steps"] = steps
    if tolerance:
        options |= {"atol": tolerance, "rtol": tolerance}
    starts = list(range(0, len(rgb), size))
    thermal: list[np.ndarray] = []
    seconds: list[float] = []
    evaluations = []
    for start in [starts[0], *starts]:  # the first one twice: a warm-up that makes the tables
        began = time.perf_counter()
        batch = rgb[start : start + size]
        noise = noise_for(frames[start : start + size], "frame", model.latent_shape(cfg.size), seed=cfg.seed)
        x_rgb = model.encode_rgb(model.preprocess(batch, cfg.size))
        solution = model.sampler.sample(noise, x_rgb, cfg.label, **options)
        thermal.append(model.decode(solution.latent).cpu()[:, 0].numpy())
        seconds += [(time.perf_counter() - began) / len(batch)] * len(batch)
        evaluations.append(solution.evaluations)
    warm = len(thermal[0])
    return Solutions(np.concatenate(thermal[1:]), seconds[warm:], float(np.mean(evaluations[1:])))


def read_pictures(cfg: ThermalGenBenchmark) -> dict[Frame, Tensor]:
    """Pictures of a folder, a file or a LeRobotDataset, spread evenly: float (3, H, W) in [0, 1]."""
    if not (cfg.source / "meta" / "info.json").is_file():
        files = sorted(cfg.source.iterdir()) if cfg.source.is_dir() else [cfg.source]
        files = [path for path in files if path.is_file() and path.suffix.lower() in SUFFIXES]
        if not files:
            raise FileNotFoundError(
                f"--source={cfg.source} is no LeRobotDataset (no meta/info.json) and has no pictures "
                f"({', '.join(SUFFIXES)})."
            )
        return {(files[i].name, 0): read_file(files[i]) for i in evenly(len(files), cfg.pictures)}
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from multismolvla.modalities import Modality
    from multismolvla_data.formats.features import picture_features

    data = LeRobotDataset(f"local/{cfg.source.name}", root=cfg.source)
    pictures = picture_features(data.features)
    cameras = [key for key, picture in pictures.items() if picture.modality == Modality.RGB]
    camera = cfg.camera or (cameras[0] if cameras else "")
    if camera not in cameras:
        raise ValueError(f"--camera={cfg.camera}: {cfg.source} has the RGB cameras {cameras}.")
    rows = [data[i] for i in evenly(len(data), cfg.pictures)]
    return {(int(row["episode_index"]), int(row["frame_index"])): row[camera] for row in rows}


def read_file(path: Path) -> Tensor:
    """A picture as float (3, H, W) in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    return torch.from_numpy(values).permute(2, 0, 1)


def evenly(total: int, wanted: int) -> list[int]:
    """Up to ``wanted`` of ``range(total)``, in the middle of equal parts."""
    wanted = min(total, wanted)
    return [int((2 * i + 1) * total / (2 * wanted)) for i in range(wanted)]


def compare(picture: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Mean absolute difference, PSNR in dB (at most 120) and SSIM of two pictures, float (H, W) in [0, 1]."""
    import numpy as np
    from skimage.metrics import structural_similarity

    difference = picture.astype(np.float64) - reference
    # as in Wang et al. 2004: a Gaussian window of 1.5 pixels
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return {
        "mae": float(np.abs(difference).mean()),
        "psnr_db": -10 * float(np.log10(max(float((difference**2).mean()), 1e-12))),
        "ssim": float(structural_similarity(picture, reference, data_range=1, **window)),
    }


def _text_table(curve: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'method':10}{'steps':>6}{'evaluations':>12}{'s/picture':>11}{'MAE':>9}{'PSNR dB':>9}{'SSIM':>8}"
    ]
    for row in curve:
        seconds, mae, psnr, ssim = (row[name]["median"] for name in ("seconds", *METRICS))
        cost = f"{row['method']:10}{row['steps'] or '-':>6}{row['evaluations']:>12g}{seconds:>11.3g}"
        lines.append(f"{cost}{mae:>9.5f}{psnr:>9.2f}{ssim:>8.4f}")
    return "\n".join(lines)


def _plot(curve: Sequence[dict[str, Any]], title: str, target: Path) -> None:
    """The mean difference against network evaluations and time: medians over the pictures, and quartiles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, cost in zip(figure.subplots(1, 2), ("network evaluations", "seconds"), strict=True):
        for method in dict.fromkeys(row["method"] for row in curve):
            rows = [row for row in curve if row["method"] == method]
            x = [row["seconds"]["median"] if cost == "seconds" else row["evaluations"] for row in rows]
            low, middle, high = ([row["mae"][q] for row in rows] for q in ("q25", "median", "q75"))
            axis.plot(x, middle, "o-", label=method)
            axis.vlines(x, low, high, alpha=0.4)
        axis.set(xscale="log", yscale="log", xlabel=f"{cost} per picture", ylabel="mean absolute difference")
        axis.grid(alpha=0.3)
    figure.get_axes()[0].legend()
    figure.suptitle(title)
    figure.savefig(target, dpi=110)


def _sheet(rgb: Tensor, converged: Solutions, solutions: dict[Setting, Solutions], target: Path) -> None:
    """A row per picture and method: RGB, the converged solution, the method's pictures by number of steps."""
    from multismolvla.pictures import SheetRow, Tile, colourise, contact_sheet

    rows = []
    for number in range(min(len(rgb), _SHEET_PICTURES)):
        for method in dict.fromkeys(m for m, steps in solutions if steps):
            tiles = [Tile(colourise("rgb", rgb[number].numpy()), "rgb")]
            shown = {"converged": converged} | {
                f"{steps} steps": made for (m, steps), made in solutions.items() if m == method
            }
            for label, made in shown.items():
                tiles.append(Tile(colourise("thermal", made.thermal[number][None]), label))
            rows.append(SheetRow(f"{number}: {method}", tiles))
    if rows:
        contact_sheet(rows, side=128, label_width=80).save(target)


def main() -> None:
    """Command line entry."""
    import draccus

    draw_curve(draccus.parse(ThermalGenBenchmark))


if __name__ == "__main__":
    main()
