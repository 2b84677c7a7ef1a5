"""How many token ids stay the same after lossy video, in other batches, in bfloat16, on another device.

    multismolvla-record --output=outputs/agreement/dataset --episodes=1
    python benchmarks/agreement.py --dataset=outputs/agreement/dataset

Everything is estimated and tokenized as `multismolvla-annotate` and a policy do it. The reference is each
recorded picture alone, in float32, on the CPU. Tiny random networks in the official layouts, ids on the
official grids: the figures show which of these matter, not what the published networks would give.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.measuring import Machine, machine_line, write_json

if TYPE_CHECKING:
    import numpy as np

    from multismolvla_data.annotate.source import SourceDataset

REFERENCE = "each picture alone, float32"


@dataclass
class AgreementBenchmark:
    """Options of benchmarks/agreement.py."""

    dataset: Path = Path("outputs/agreement/dataset")  # RGB is read, stored without loss
    frames: int = 30  # that are compared, spread evenly over the episodes, of every camera
    batch_sizes: list[int] = field(default_factory=lambda: [2, 8])  # beside 1
    codecs: list[str] = field(default_factory=lambda: ["libsvtav1", "h264"])  # LeRobot's default first
    device: str = "cpu"  # another one is compared with the CPU
    output: Path = Path("outputs/benchmarks/agreement.json")

    def __post_init__(self) -> None:
        if not (self.dataset / "meta/info.json").is_file():
            raise ValueError(
                f"--dataset={self.dataset} is no LeRobotDataset. Record one: multismolvla-record "
                f"--output={self.dataset} --episodes=1"
            )
        if self.frames < 1 or not all(size > 1 for size in self.batch_sizes):
            raise ValueError(
                f"--frames={self.frames} and --batch_sizes={self.batch_sizes}: expected at least 1, and "
                "sizes of at least 2."
            )


@dataclass(frozen=True)
class Variant:
    """How ids are made."""

    codec: str | None = None
    batch_size: int = 1
    dtype: str = "float32"
    device: str = "cpu"


def variants(cfg: AgreementBenchmark) -> dict[str, Variant]:
    """Name -> what is compared with the reference."""
    found = {"the same again": Variant()}
    found |= {f"batches of {size}": Variant(batch_size=size) for size in cfg.batch_sizes}
    found["bfloat16"] = Variant(dtype="bfloat16")
    if cfg.device != "cpu":
        for dtype in ("float32", "bfloat16"):
            found[f"{cfg.device}, {dtype}"] = Variant(dtype=dtype, device=cfg.device)
    return found | {f"RGB as {codec} video": Variant(codec) for codec in cfg.codecs}


def run(cfg: AgreementBenchmark) -> dict[str, Any]:
    """Compare, print and write. Returns what is written."""
    from tiny_estimators import write_tiny_networks
    from tqdm import tqdm

    from multismolvla.modalities import Modality, modality_of_key
    from multismolvla_data.annotate.config import AnnotateConfig
    from multismolvla_data.annotate.setup import AnnotationSetup
    from multismolvla_data.annotate.source import SourceDataset

    machine = Machine()
    with tempfile.TemporaryDirectory(prefix="agreement-") as scratch:
        networks = {**write_tiny_networks(Path(scratch) / "networks"), "thermal_size": 64}
        recorded = SourceDataset(str(cfg.dataset))
        cameras = [key for key in recorded.meta.camera_keys if modality_of_key(key) == Modality.RGB]
        rows = spread(recorded.lengths, cfg.frames)
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
    print(f"ids that stay the same, {pictures} pictures ({len(cameras)} cameras), against {REFERENCE}")
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
    setup: Any, rows: list[tuple[int, int]], cameras: list[str], batch_size: int
) -> dict[str, np.ndarray]:
    """Modality -> ids (pictures, N) of the rows, cameras one after the other."""
    import numpy as np
    import torch

    from multismolvla_data.annotate.annotator import Annotator

    annotator = Annotator(setup.plan, setup.load_estimators(), setup.id_maker(), {})
    read = [setup.source.pictures(setup.source.table(e), e, row, row + 1, cameras) for e, row in rows]
    made = []
    for start in range(0, len(read), batch_size):
        batch = read[start : start + batch_size]
        made.append(annotator.annotate({k: torch.cat([one[k] for one in batch]) for k in cameras}).ids)
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
    import draccus

    run(draccus.parse(AgreementBenchmark))


if __name__ == "__main__":
    main()
