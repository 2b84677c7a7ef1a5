"""Frames per second, peak memory and bytes per frame of `multismolvla-annotate` on a synthetic data set.

    python benchmarks/annotate.py                                   # 4 and 16 episodes of 40 frames, 128x128
    python benchmarks/annotate.py --episodes="[2, 8]" --device=cuda

Tiny random networks in the official layouts: what is measured is everything around the networks (decoding,
encoding, joining, verifying) and whether memory grows with the dataset. Time of the published networks is
what `--dry-run` estimates.
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
from typing import Any

from support.measuring import Machine, machine_line, write_json

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
    output: Path = Path("outputs/benchmarks/annotate.json")

    def __post_init__(self) -> None:
        for case in self.cases:
            if case not in CASES:
                raise ValueError(f"--cases={case}: expected some of {list(CASES)}.")
        if not self.episodes or min(self.episodes) < 1:
            raise ValueError(f"--episodes={self.episodes}: expected numbers of at least 1.")
        for name in ("frames", "side", "batch_size", "num_workers"):
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


def main() -> None:
    """Command line entry."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
        return
    import draccus

    run(draccus.parse(AnnotateBenchmark))


if __name__ == "__main__":
    main()
