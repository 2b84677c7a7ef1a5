r"""``multismolvla-thermalgen``: how many integration steps ThermalGen needs on one's own pictures.

Every method and number of steps is compared with the converged solution from the same noise. Few steps usually suffice, and
annotating a data set costs in proportion; how few depends on weights and pictures, so look before annotating.

Example:
    $ multismolvla-thermalgen --model=xjh19972/ThermalGen-B-2 --source=outputs/demo/dataset --output=outputs/steps

It writes ``curve.json``, ``curve.png`` and ``contact_sheet.png``. What is finished is kept under ``work/``, so that the same
command continues after an interruption.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from multismolvla.system.command import entry_point, parse_options, show_progress
from multismolvla.system.files import whole_file, write_json
from multismolvla_data.formats.workspace import occupied

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from multismolvla.thermal.thermalgen import ThermalGen

logger = logging.getLogger(__name__)

FIXED_METHODS = ("euler", "midpoint", "heun", "rk4")
DTYPES = ("float32", "bfloat16", "float16")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
REFERENCE = "reference"
_SHEET_PICTURES = 4


@dataclass
class CurveConfig:
    """Options of ``multismolvla-thermalgen``.

    Raises:
        ValueError: an option is out of range; the message names it.
    """

    # Folder of pictures, one picture, or folder of a LeRobotDataset.
    source: Path
    # ThermalGen: hub id, folder in the official layout, or Lightning checkpoint (.ckpt).
    model: str = "xjh19972/ThermalGen-XL-2"
    # Folder of the results. Must not exist, or be begun by this very command.
    output: Path = Path("outputs/thermalgen_steps")
    # Key of the RGB pictures in a dataset; default: its first RGB camera.
    camera: str | None = None
    # How many pictures, spread evenly over the source.
    pictures: int = 8
    # Of euler, midpoint, heun, rk4, and dopri5 (the reference implementation's own settings; has no steps).
    methods: list[str] = field(default_factory=lambda: ["euler", "midpoint", "heun"])
    # Numbers of steps (the reference's num_steps counts grid points, one more). Methods other than euler evaluate the
    # network 2 (rk4: 4) times per step.
    steps: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8, 12, 16])
    # Style label, one of multismolvla.thermal.thermalgen_config.TRAINED_LABELS (7: M3FD, 14: KAIST, 21: FLIR ...);
    # default: none (1000).
    label: int | None = None
    # Guidance towards the label; 1 = none. Above 1 every evaluation costs double.
    cfg_scale: float = 1.0
    # Side at which the network runs, a multiple of 16.
    size: int = 256
    # Noise per "frame", "episode" or "fixed" for all.
    noise: str = "frame"
    seed: int = 0
    batch_size: int = 1
    # cpu, cuda, mps; default: cuda where there is one.
    device: str | None = None
    # Of the compared settings: float32, bfloat16 or float16. The converged solution is in float32 always.
    dtype: str = "float32"
    # Tolerance, absolute and relative, of the converged solution (dopri5).
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        unknown = [m for m in self.methods if m not in (*FIXED_METHODS, "dopri5")]
        if unknown or not self.methods:
            raise ValueError(f"--methods={self.methods}: expected of {[*FIXED_METHODS, 'dopri5']}.")
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"--steps={self.steps}: expected numbers of steps, at least 1.")
        for name in ("pictures", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)}: expected at least 1.")
        if self.size < 16 or self.size % 16:
            raise ValueError(f"--size={self.size}: expected a multiple of 16.")
        if self.noise not in ("frame", "episode", "fixed"):
            raise ValueError(f"--noise={self.noise}: expected 'frame', 'episode' or 'fixed'.")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype={self.dtype}: expected one of {list(DTYPES)}.")
        if not 0 < self.tolerance < 0.1:
            raise ValueError(f"--tolerance={self.tolerance}: expected a small positive number.")
        if not (math.isfinite(self.cfg_scale) and self.cfg_scale >= 1):
            raise ValueError(f"--cfg_scale={self.cfg_scale}: expected at least 1 (none).")
        if self.cfg_scale > 1 and self.label is None:
            raise ValueError(f"--cfg_scale={self.cfg_scale}: guidance needs a --label.")
        self.steps, self.methods = sorted(set(self.steps)), list(dict.fromkeys(self.methods))

    @property
    def settings(self) -> list[tuple[str, int | None]]:
        """(method, steps) of all compared settings."""
        fixed = [(m, s) for m in self.methods if m != "dopri5" for s in self.steps]
        return [*fixed, *([("dopri5", None)] if "dopri5" in self.methods else [])]


class Pictures(NamedTuple):
    """RGB float (N, 3, size, size) in [0, 1], whose frames they are, and their names."""

    rgb: Tensor
    frames: list[tuple[int | str, int]]
    names: list[str]


class Run(NamedTuple):
    """Thermal float32 (N, size, size) in [0, 1], seconds (N,) and network evaluations per picture."""

    thermal: np.ndarray
    seconds: np.ndarray
    evaluations: float


def measure(cfg: CurveConfig) -> dict[str, Any]:
    """Generate, compare and write.

    Returns:
        Content of ``curve.json``.

    Raises:
        FileNotFoundError: no model or pictures there.
        FileExistsError: ``output`` was begun with other options.
        ValueError: the model, or a picture, is not what it claims to be.
    """
    import torch
    from tqdm import tqdm

    from multismolvla.thermal.thermalgen import ThermalGen
    from multismolvla.tokenizers.recipe import file_fingerprint, find_weights

    device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fingerprint = file_fingerprint(find_weights(cfg.model))
    model = ThermalGen.from_pretrained(cfg.model, dtype=torch.float32, device=device)
    pictures = _load(cfg, model)
    work = _open_work(cfg, {"weights": fingerprint, "device": str(device), "pictures": pictures.names})

    count = len(pictures.names)
    runs: dict[tuple[str, int | None], Run] = {}
    with tqdm(total=count * (1 + len(cfg.settings)), unit="picture") as bar:

        def run(method: str, steps: int | None, name: str) -> Run:
            bar.set_description(name)
            kept = work / f"{name}.npz"
            if kept.is_file():
                bar.update(count)
                return _read(kept)
            made = _generate(model, pictures, cfg, method, steps, name == REFERENCE, bar.update)
            _write(kept, made)
            return made

        reference = run("dopri5", None, REFERENCE)
        if cfg.dtype != "float32":
            model = ThermalGen.from_pretrained(cfg.model, dtype=getattr(torch, cfg.dtype), device=device)
        for method, steps in cfg.settings:
            runs[method, steps] = run(method, steps, method if steps is None else f"{method}-{steps:03d}")
    return _report(cfg, pictures, reference, runs, str(device))


def _generate(
    model: ThermalGen,
    pictures: Pictures,
    cfg: CurveConfig,
    method: str,
    steps: int | None,
    tight: bool,
    advance: Callable[[int], object],
) -> Run:
    import numpy as np

    # Adaptive steps are chosen for a batch as a whole; one by one, a picture's solution is its own.
    size = 1 if method == "dopri5" else cfg.batch_size
    options: dict[str, Any] = {"method": method, "cfg_scale": cfg.cfg_scale, "label": cfg.label}
    options |= {"steps": steps} if steps else {}
    options |= {"atol": cfg.tolerance, "rtol": cfg.tolerance} if tight else {}
    thermal, seconds, evaluations = [], [], []
    if method != "dopri5":
        _one_batch(
            model, pictures, range(min(size, len(pictures.names))), cfg, options
        )  # warm-up; makes the tables
    for start in range(0, len(pictures.names), size):
        rows = range(start, min(start + size, len(pictures.names)))
        began = time.perf_counter()
        made, needed = _one_batch(model, pictures, rows, cfg, options)
        thermal.append(made[:, 0].numpy())
        seconds += [(time.perf_counter() - began) / len(rows)] * len(rows)
        evaluations.append(needed)
        advance(len(rows))
    return Run(np.concatenate(thermal), np.array(seconds), float(np.mean(evaluations)))


def _one_batch(
    model: ThermalGen, pictures: Pictures, rows: range, cfg: CurveConfig, options: dict[str, Any]
) -> tuple[Tensor, int]:
    """`ThermalGen.generate`, which does not tell the number of evaluations."""
    from multismolvla.thermal.sampler import noise_for

    frames = [pictures.frames[i] for i in rows]
    noise = noise_for(frames, cfg.noise, model.latent_shape(cfg.size), seed=cfg.seed)
    x_rgb = model.encode_rgb(model.preprocess(pictures.rgb[rows.start : rows.stop], cfg.size))
    solution = model.sample(noise, x_rgb, **options)
    return model.decode(solution.latent).cpu(), solution.evaluations


def _load(cfg: CurveConfig, model: ThermalGen) -> Pictures:
    """Pictures of the source at the network's size, so that those of different sizes make batches."""
    import torch

    if (cfg.source / "meta" / "info.json").is_file():
        raw, frames, names = _from_dataset(cfg)
    else:
        raw, frames, names = _from_files(cfg)
    rgb = torch.cat([(model.preprocess(picture[None], cfg.size).cpu().float() + 1) / 2 for picture in raw])
    return Pictures(rgb.clamp(0, 1), frames, names)


def _from_files(cfg: CurveConfig) -> tuple[list[Tensor], list[tuple[int | str, int]], list[str]]:
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    if cfg.source.is_dir():
        files = sorted(p for p in cfg.source.iterdir() if p.suffix.lower() in SUFFIXES)
    else:
        files = [cfg.source] if cfg.source.is_file() else []
    if not files:
        raise FileNotFoundError(
            f"--source={cfg.source} is no LeRobotDataset (no meta/info.json) and has no pictures ({', '.join(SUFFIXES)})."
        )
    chosen = [files[i] for i in _spread(len(files), cfg.pictures)]
    pictures = []
    for path in chosen:
        try:
            with Image.open(path) as image:
                values = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is no picture that can be read: {error}") from error
        pictures.append(torch.from_numpy(values).permute(2, 0, 1))
    return pictures, [(path.name, 0) for path in chosen], [path.name for path in chosen]


def _from_dataset(cfg: CurveConfig) -> tuple[list[Tensor], list[tuple[int | str, int]], list[str]]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from multismolvla.modalities import Modality
    from multismolvla_data.annotate.source import modality_of

    data = LeRobotDataset(f"local/{cfg.source.name}", root=cfg.source)
    cameras = [k for k in data.meta.camera_keys if modality_of(k, data.features[k]) == Modality.RGB]
    camera = cfg.camera or (cameras[0] if cameras else "")
    if camera not in cameras:
        raise ValueError(f"--camera={cfg.camera}: {cfg.source} has the RGB cameras {cameras}.")
    pictures: list[Tensor] = []
    frames: list[tuple[int | str, int]] = []
    names: list[str] = []
    for i in _spread(len(data), cfg.pictures):
        row = data[i]
        episode, frame = int(row["episode_index"]), int(row["frame_index"])
        pictures.append(row[camera])
        frames.append((episode, frame))
        names.append(f"episode {episode}, frame {frame}")
    return pictures, frames, names


def _spread(total: int, wanted: int) -> list[int]:
    """Up to ``wanted`` of ``range(total)``, in the middle of equal parts."""
    wanted = min(total, wanted)
    return [int((2 * i + 1) * total / (2 * wanted)) for i in range(wanted)]


def _open_work(cfg: CurveConfig, origin: dict[str, Any]) -> Path:
    """Folder of finished parts; refuses one that was begun otherwise."""
    options = {k: v for k, v in asdict(cfg).items() if k not in ("output", "methods", "steps")}
    # More methods or steps continue what is there; anything else would compare unlike with unlike.
    wanted = json.loads(json.dumps(options | origin, default=str))
    begun = cfg.output / "work" / "settings.json"
    if begun.is_file():
        known = json.loads(begun.read_text())
        other = [k for k in wanted if known.get(k) != wanted[k]]
        if other:
            raise FileExistsError(
                f"{cfg.output} was begun with {other[0]} = {known.get(other[0])!r}, now it is {wanted[other[0]]!r}. "
                "Choose another --output or delete that folder."
            )
        return begun.parent
    if occupied(cfg.output):
        raise FileExistsError(
            f"{cfg.output} exists and was not made by this command. Choose another --output."
        )
    begun.parent.mkdir(parents=True)
    write_json(begun, wanted)
    return begun.parent


def _report(
    cfg: CurveConfig,
    pictures: Pictures,
    reference: Run,
    runs: dict[tuple[str, int | None], Run],
    device: str,
) -> dict[str, Any]:
    from thermalgen_report import METRICS, compare, plot, sheet, summary, text_table

    curve: list[dict[str, Any]] = []
    for (method, steps), made in runs.items():
        values = [compare(a, b) for a, b in zip(made.thermal, reference.thermal, strict=True)]
        row: dict[str, Any] = {"method": method, "steps": steps, "evaluations": made.evaluations}
        row["seconds"] = summary(made.seconds.tolist())
        curve.append(row | {name: summary([v[name] for v in values]) for name in METRICS})
    content = {
        "options": json.loads(json.dumps(asdict(cfg), default=str)),
        "device": device,
        "pictures": pictures.names,
        "reference": {
            "method": "dopri5",
            "tolerance": cfg.tolerance,
            "evaluations": reference.evaluations,
            "seconds": summary(reference.seconds.tolist()),
        },
        "curve": curve,
    }
    name = Path(cfg.model).name if Path(cfg.model).exists() else cfg.model
    title = (
        f"{name}: difference to the converged solution, {len(pictures.names)} pictures, {cfg.dtype}, {device}"
    )
    shown = slice(0, _SHEET_PICTURES)
    settings = {(m, s): r.thermal[shown] for (m, s), r in runs.items() if s is not None}
    rgb = pictures.rgb[shown].permute(0, 2, 3, 1).numpy()
    with whole_file(cfg.output / "curve.png") as partial:
        plot(curve, title, partial)
    with whole_file(cfg.output / "contact_sheet.png") as partial:
        sheet(rgb, reference.thermal[shown], settings, partial)
    write_json(cfg.output / "curve.json", content)
    logger.info("%s", text_table(curve))
    logger.info("Converged solution: %g evaluations. Written to %s.", reference.evaluations, cfg.output)
    return content


def _read(path: Path) -> Run:
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        return Run(stored["thermal"], stored["seconds"], float(stored["evaluations"]))


def _write(path: Path, run: Run) -> None:
    import numpy as np

    with whole_file(path) as partial:
        np.savez(partial, **run._asdict())


@entry_point("multismolvla-thermalgen")
def main() -> int:
    """Entry point of ``multismolvla-thermalgen``.

    Returns:
        0 when done, 1 on an error named on stderr, 130 when interrupted.
    """
    show_progress("multismolvla_data")
    measure(parse_options(CurveConfig))
    return 0


if __name__ == "__main__":
    sys.exit(main())
