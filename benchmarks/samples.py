"""What a training sample costs to load, by how its pictures are stored: `python benchmarks/samples.py`.

LeRobot 0.6.1 reads whole rows, and as many of them as an action chunk has steps; a picture in a row is
decoded with it. So pictures in rows are what costs, and frames of a video, decoded one at a time, are not.
`multismolvla_run.estimate` computes with the figures of this table.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.measuring import Case, Machine, interleave, machine_line, ratios, table, write_json

from multismolvla.modalities import MODALITIES, Modality, ViewMap, default_view_map, token_key
from multismolvla.system.command import entry_point, parse_options

PICTURES, IDS, VIDEO = "all pictures", "RGB pictures, ids", "RGB video, ids"
FPS = 10


@dataclass
class SamplesBenchmark:
    """Options of benchmarks/samples.py."""

    size: int = 256  # of a picture, pixels
    cameras: int = 2  # with all modalities each
    chunk: int = 50  # actions of a sample
    ids: int = 196  # of a picture; thermal has 272
    episodes: int = 4
    frames: int = 60  # of an episode
    samples: int = 8  # of a round
    rounds: int = 7
    warmup: int = 1
    threads: int = 1  # of PyTorch
    output: Path = Path("outputs/benchmarks/samples.json")

    def __post_init__(self) -> None:
        if self.size < 16 or min(self.cameras, self.episodes) < 1 or self.frames < self.chunk:
            raise ValueError(
                f"--frames={self.frames} and --chunk={self.chunk}: expected episodes at least as long as a "
                "chunk, one or more of them and of cameras, and pictures of at least 16 pixels."
            )


def run(cfg: SamplesBenchmark) -> dict[str, Any]:
    """Write the data sets, measure, print and write. Returns what is written."""
    import numpy as np
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(cfg.threads)
    views = default_view_map(tuple(f"camera{n}" for n in range(cfg.cameras)), MODALITIES)
    offsets = {"action": [n / FPS for n in range(cfg.chunk)]}
    folder = Path(tempfile.mkdtemp())
    try:
        cases = {}
        for name in (VIDEO, IDS, PICTURES):
            root = folder / name.replace(" ", "_")
            _write(cfg, name, views, root)
            data = LeRobotDataset("benchmark/samples", root=root, delta_timestamps=offsets)
            rng = np.random.default_rng(0)
            order = iter(rng.integers(len(data), size=(cfg.rounds + cfg.warmup) * cfg.samples).tolist())
            cases[name] = Case(
                lambda data=data, order=order: [data[next(order)] for _ in range(cfg.samples)],
                units=cfg.samples,
            )
        machine = Machine()
        series = interleave(cases, cfg.rounds, cfg.warmup, "sample")
    finally:
        shutil.rmtree(folder)
    relative = ratios(series, VIDEO)
    content: dict[str, Any] = {
        "benchmark": "samples",
        "config": asdict(cfg),
        "results": {name: own.to_dict() for name, own in series.items()},
        "ratios": relative,
        "machine": machine.report(),
    }
    title = f"a sample of {cfg.cameras} cameras, {cfg.size} pixels, chunk of {cfg.chunk}"
    print(table(title, series, relative, VIDEO))
    print(machine_line(content["machine"]))
    write_json(cfg.output, content)
    return content


def _write(cfg: SamplesBenchmark, kind: str, views: ViewMap, root: Path) -> None:
    """A data set whose pictures move and compress about as a scene does: smooth, with a little noise."""
    import datasets
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from multismolvla_data.formats.features import declare_pictures

    datasets.disable_progress_bars()
    rng = np.random.default_rng(0)
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    for view, streams in views.items():
        for modality, key in streams.items():
            if modality == Modality.RGB or kind == PICTURES:
                features[key] = declare_pictures(modality, cfg.size, cfg.size, "sensor", ["none"])
                if modality == Modality.RGB and kind == VIDEO:
                    features[key]["dtype"] = "video"
            else:
                count = cfg.ids + 76 * (modality == Modality.THERMAL)
                features[token_key(view, modality)] = {"dtype": "int16", "shape": (count,), "names": None}
    data = LeRobotDataset.create(
        "benchmark/samples", FPS, features, root=root, robot_type="none", use_videos=kind == VIDEO
    )
    ramp = np.linspace(0, 1, cfg.size, dtype=np.float32)
    for _ in range(cfg.episodes):
        for t in range(cfg.frames):
            wave = 100 + 80 * np.sin(9 * ramp[:, None] + 0.1 * t) * np.cos(7 * ramp[None] - 0.07 * t)
            level = wave[..., None] + rng.normal(0, 2, (cfg.size, cfg.size, 3))
            frame: dict[str, Any] = {"task": "none"}
            for key, feature in features.items():
                if feature["dtype"] in ("image", "video"):
                    depth = feature["shape"][-1] == 1
                    frame[key] = wave[..., None].astype(np.float32) / 100 if depth else level.astype(np.uint8)
                elif feature["dtype"] == "int16":
                    frame[key] = rng.integers(0, 4096, feature["shape"], dtype=np.int16)
                else:
                    frame[key] = rng.normal(size=feature["shape"]).astype(np.float32)
            data.add_frame(frame)
        data.save_episode()
    data.finalize()


@entry_point("benchmark")
def main() -> int:
    """Entry point."""
    run(parse_options(SamplesBenchmark))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
