"""Frames per second, peak memory and bytes per frame of `multismolvla-annotate` on a synthetic data set.

    python benchmarks/annotate.py                                   # 4 and 16 episodes of 40 frames, 128x128
    python benchmarks/annotate.py --episodes="[2, 8]" --device=cuda
    multismolvla-record --output=DIR --episodes=1 && python benchmarks/annotate.py --agreement=DIR

Tiny random networks in the official layouts: what is measured is everything around the networks (decoding,
encoding, joining, verifying) and whether memory grows with the dataset. Time of the published networks is
what `--dry-run` estimates.

`--agreement` measures something else: the share of ids that stay the same after lossy video, in batches, in
bfloat16 and on another device, against each recorded picture alone in float32 on the CPU. It shows which of
these matter, not what the published networks would give.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.measuring import Machine, machine_line, write_json

if TYPE_CHECKING:
    import numpy as np

    from multismolvla_data.annotate.setup import AnnotationSetup
    from multismolvla_data.annotate.source import SourceDataset

#: Name of a case -> options of the annotation.
CASES: dict[str, dict[str, Any]] = {
    "pictures and ids": {},
    "ids only": {"keep_pictures": False},
    "depth alone": {"modalities": ["depth"]},
}
_FPS = 20


@dataclass
class AnnotateBenchmark:
    """Options of benchmarks/annotate.py."""

    episodes: list[int] = field(
        default_factory=lambda: [4, 16]
    )  # sizes of the datasets, to see whether memory grows
    frames: int = 40  # per episode
    side: int = 128  # of the pictures, in pixels
    cases: list[str] = field(default_factory=lambda: list(CASES))
    batch_size: int = 8
    num_workers: int = 2
    device: str = "cpu"  # or cuda
    agreement: Path | None = None  # a data set with RGB stored without loss: compare ids instead
    compared: int = 20  # frames of it, spread evenly over the episodes, of every camera
    batch_sizes: list[int] = field(default_factory=lambda: [2, 8])  # that are compared with batches of one
    codecs: list[str] = field(default_factory=lambda: ["libsvtav1", "h264"])  # LeRobot's default first
    output: Path = Path("outputs/benchmarks/annotate.json")

    def __post_init__(self) -> None:
        if self.agreement is not None and not (self.agreement / "meta/info.json").is_file():
            raise ValueError(
                f"--agreement={self.agreement} is no LeRobotDataset. Record one: multismolvla-record "
                f"--output={self.agreement} --episodes=1"
            )
        if not all(size > 1 for size in self.batch_sizes):
            raise ValueError(f"--batch_sizes={self.batch_sizes}: expected sizes of at least 2.")
        for case in self.cases:
            if case not in CASES:
                raise ValueError(f"--cases={case}: expected some of {list(CASES)}.")
        if not self.episodes or min(self.episodes) < 1:
            raise ValueError(f"--episodes={self.episodes}: expected numbers of at least 1.")
        for name in ("frames", "side", "batch_size", "num_workers", "compared"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)}: expected at least 1.")


def run(cfg: AnnotateBenchmark) -> dict[str, Any]:
    """Measure every case on every dataset, each in a process of its own, and print and write the results."""
    from tiny_estimators import write_tiny_networks

    machine = Machine()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="annotate-") as scratch:
        networks = {**write_tiny_networks(Path(scratch) / "networks"), "thermal_size": 64}
        for count in cfg.episodes:
            source = write_source(Path(scratch) / f"source{count}", count, cfg.frames, cfg.side)
            for case in cfg.cases:
                options = {
                    **networks, **CASES[case], "dataset": str(source), "output": f"{scratch}/out",
                    "batch_size": cfg.batch_size, "num_workers": cfg.num_workers, "device": cfg.device,
                }  # fmt: skip
                results[f"{case}, {count} episodes"] = _in_child(options) | {"episodes": count, "case": case}
                shutil.rmtree(f"{scratch}/out")
    report = machine.report()
    heads = ("frames/s", "whole, s", "networks, MiB", "peak, MiB", "ids, B/frame", "stored")
    print(f"{'':28} " + " ".join(f"{head:>13}" for head in heads))
    names = ("frames_per_s", "whole_s", "loaded_mib", "peak_mib", "id_bytes", "id_bytes_stored")
    for name, result in results.items():
        print(f"{name:28} " + " ".join(f"{result[value]:13.1f}" for value in names))
    print(machine_line(report))
    content = {"options": asdict(cfg), "machine": report, "results": results}
    write_json(cfg.output, content)
    return content


def write_source(root: Path, episodes: int, frames: int, side: int) -> Path:
    """Two RGB cameras as LeRobot records them (H.264 video), a wandering square on noise."""
    import numpy as np
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = ["height", "width", "channels"]
    colour = {"dtype": "video", "shape": (side, side, 3), "names": names}
    features = {f"observation.images.{camera}": dict(colour) for camera in ("image", "image2")}
    features["action"] = {"dtype": "float32", "shape": (7,), "names": [f"a{i}" for i in range(7)]}
    rng = np.random.default_rng(0)
    data = LeRobotDataset.create(
        "benchmark/source",
        fps=_FPS,
        features=features,
        root=root,
        rgb_encoder=RGBEncoderConfig(vcodec="h264"),
    )
    for _ in range(episodes):
        for step in range(frames):
            picture = rng.integers(60, 90, (side, side, 3), dtype=np.uint8)
            place = step * (side // 2) // frames
            picture[place : place + side // 4, place : place + side // 4] = 220
            frame = {f"observation.images.{camera}": picture for camera in ("image", "image2")}
            data.add_frame({**frame, "action": rng.normal(size=7).astype(np.float32), "task": "move"})
        data.save_episode(parallel_encoding=False)
    data.finalize()
    return root


def _in_child(options: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise RuntimeError(f"The measured process failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Annotate in this process: frames per second while annotating, whole time, memory, bytes of ids."""
    import pyarrow.parquet as pq

    from multismolvla_data.annotate import job
    from multismolvla_data.annotate.config import AnnotateConfig
    from multismolvla_data.annotate.estimate import id_bytes
    from multismolvla_data.annotate.setup import AnnotationSetup

    cfg = AnnotateConfig(**options | {"output": Path(options["output"])})
    setup = AnnotationSetup.of(cfg)
    seconds: dict[str, float] = {}
    inner = job._annotate_episodes

    def timed(*arguments: Any) -> None:
        seconds["loaded"] = _peak()
        start = time.perf_counter()
        inner(*arguments)
        seconds["annotate"] = time.perf_counter() - start

    job._annotate_episodes = timed
    start = time.perf_counter()
    job.annotate(cfg)
    whole, frames = time.perf_counter() - start, sum(setup.lengths)
    stored = 0
    for path in (cfg.output / "data").glob("*/*.parquet"):
        meta = pq.read_metadata(path)
        columns = [
            meta.row_group(g).column(c) for g in range(meta.num_row_groups) for c in range(meta.num_columns)
        ]
        stored += sum(
            c.total_compressed_size for c in columns if c.path_in_schema.startswith("observation.tokens")
        )
    return {
        "frames": frames,
        "frames_per_s": frames / seconds["annotate"],
        "whole_s": whole,
        "loaded_mib": seconds["loaded"],
        "peak_mib": _peak(),
        "id_bytes": id_bytes(setup),
        "id_bytes_stored": stored / frames,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux: in KiB


# -- agreement -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """How ids are made."""

    codec: str | None = None
    batch_size: int = 1
    dtype: str = "float32"
    device: str = "cpu"


def variants(cfg: AnnotateBenchmark) -> dict[str, Variant]:
    """Name -> what is compared with the reference."""
    found = {"the same again": Variant()}
    found |= {f"batches of {size}": Variant(batch_size=size) for size in cfg.batch_sizes}
    found["bfloat16"] = Variant(dtype="bfloat16")
    if cfg.device != "cpu":
        for dtype in ("float32", "bfloat16"):
            found[f"{cfg.device}, {dtype}"] = Variant(dtype=dtype, device=cfg.device)
    return found | {f"RGB as {codec} video": Variant(codec) for codec in cfg.codecs}


def compare(cfg: AnnotateBenchmark, dataset: Path) -> dict[str, Any]:
    """Compare ids, print and write the shares that are the same. Returns what is written."""
    from tiny_estimators import write_tiny_networks
    from tqdm import tqdm

    from multismolvla.modalities import Modality, modality_of_key
    from multismolvla_data.annotate.config import AnnotateConfig
    from multismolvla_data.annotate.setup import AnnotationSetup
    from multismolvla_data.annotate.source import SourceDataset

    machine = Machine()
    with tempfile.TemporaryDirectory(prefix="agreement-") as scratch:
        networks = {**write_tiny_networks(Path(scratch) / "networks"), "thermal_size": 64}
        recorded = SourceDataset(str(dataset))
        cameras = [key for key in recorded.meta.camera_keys if modality_of_key(key) == Modality.RGB]
        rows = spread(recorded.lengths, cfg.compared)
        copies = {
            codec: write_copy(Path(scratch) / f"{codec}", recorded, cameras, codec)
            for codec in (None, *cfg.codecs)
        }

        def ids_of(variant: Variant) -> dict[str, np.ndarray]:
            options = {"dtype": variant.dtype, "device": variant.device, **networks}
            setup = AnnotationSetup.of(AnnotateConfig(dataset=str(copies[variant.codec]), **options))
            return make_ids(setup, rows, cameras, variant.batch_size)

        reference = ids_of(Variant())
        results = {name: shares(reference, ids_of(variant)) for name, variant in tqdm(variants(cfg).items())}
    pictures = len(rows) * len(cameras)
    print(f"ids of {pictures} pictures ({len(cameras)} cameras) as of each alone in float32 on the CPU")
    modalities = list(next(iter(results.values())))
    print(f"{'':24} " + " ".join(f"{modality:>9}" for modality in modalities))
    for name, result in results.items():
        print(f"{name:24} " + " ".join(f"{result[modality]:9.2%}" for modality in modalities))
    report = machine.report()
    print(machine_line(report))
    content = {"options": asdict(cfg), "machine": report, "pictures": pictures, "results": results}
    write_json(cfg.output, content)
    return content


def spread(lengths: list[int], count: int) -> list[tuple[int, int]]:
    """(episode, row) of at most ``count`` frames, spread evenly."""
    every = [(episode, row) for episode, length in enumerate(lengths) for row in range(length)]
    count = min(count, len(every))
    return [every[n * len(every) // count] for n in range(count)]


def write_copy(root: Path, source: SourceDataset, cameras: list[str], codec: str | None) -> Path:
    """A data set with the RGB of another one and nothing else; as pictures, or as LeRobot's video."""
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    kind, names = "image" if codec is None else "video", ["height", "width", "channels"]
    features = {
        key: {"dtype": kind, "shape": tuple(source.features[key]["shape"]), "names": names} for key in cameras
    }
    data = LeRobotDataset.create(
        "benchmark/copy",
        fps=source.meta.fps,
        features=features,
        root=root,
        use_videos=codec is not None,
        rgb_encoder=None if codec is None else RGBEncoderConfig(vcodec=codec),
    )
    for episode, length in enumerate(source.lengths):
        pictures = source.pictures(source.table(episode), episode, 0, length, cameras)
        for row in range(length):
            frame = {key: stack[row].permute(1, 2, 0).numpy() for key, stack in pictures.items()}
            data.add_frame({**frame, "task": "copy"})
        data.save_episode(parallel_encoding=False)
    data.finalize()
    return root


def make_ids(
    setup: AnnotationSetup, rows: list[tuple[int, int]], cameras: list[str], batch_size: int
) -> dict[str, np.ndarray]:
    """Modality -> ids (pictures, N) of the rows, cameras one after the other."""
    import numpy as np
    import torch

    from multismolvla_data.annotate.annotator import Annotator
    from multismolvla_data.annotate.tokenizing import FramePlace

    annotator = Annotator(setup.plan, setup.load_estimators(), setup.id_maker(), {})
    read = [setup.source.pictures(setup.source.table(e), e, row, row + 1, cameras) for e, row in rows]
    made = []
    for start in range(0, len(read), batch_size):
        batch = read[start : start + batch_size]
        pictures = {k: torch.cat([one[k] for one in batch]) for k in cameras}
        made.append(annotator.annotate(pictures, FramePlace(*rows[start])).ids)
    return {
        modality: np.concatenate(
            [
                part[stream.token_key]
                for stream in setup.plan.streams
                if stream.modality == modality
                for part in made
            ]
        )
        for modality in dict.fromkeys(stream.modality for stream in setup.plan.streams)
    }


def shares(reference: dict[str, np.ndarray], ids: dict[str, np.ndarray]) -> dict[str, float]:
    """Modality -> share of ids that are those of the reference."""
    return {modality: float((reference[modality] == ids[modality]).mean()) for modality in reference}


def main() -> None:
    """Command line entry."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
        return
    import draccus

    cfg = draccus.parse(AnnotateBenchmark)
    if cfg.agreement is None:
        run(cfg)
    else:
        compare(cfg, cfg.agreement)


if __name__ == "__main__":
    main()
