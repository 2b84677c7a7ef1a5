"""What cached ids save: a stage-2 training step from ids against one that tokenizes its pictures.

    python benchmarks/cached_ids.py

Official architectures of depth, segmentation and thermal (route vision: ImageBind's vision branch, dense and
global ids), every network at half the official width and a third of its depth, so that a CPU can do it; so
each costs about a twelfth of what it officially does, and the ratio stays near the official one. Random
weights: time does not depend on their values.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.measuring import Case, Machine, interleave, machine_line, ratios, table, write_json
from support.network_files import DOMAINS, SCALES, policy_sizes
from support.policy_models import Options, PolicyFactory

if TYPE_CHECKING:
    import torch

BASELINE = "ids of all"
PRESETS = ("third", "smallest")


@dataclass
class CachedIdsBenchmark:
    """Options of benchmarks/cached_ids.py."""

    preset: str = "third"  # half the official width, a third of the depth; or smallest (for tests)
    batch_size: int = 1  # observations, each of two views
    rounds: int = 7
    warmup: int = 1
    device: str = "cpu"  # or cuda
    threads: int = 1  # of PyTorch on the CPU; 0 = PyTorch's choice
    seed: int = 0
    scratch: Path | None = None  # where a temporary folder for random weights is made (0.5 GB)
    output: Path = Path("outputs/benchmarks/cached_ids.json")

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"--preset={self.preset!r}: expected one of {list(PRESETS)}.")


def run(cfg: CachedIdsBenchmark) -> dict[str, Any]:
    """Build, measure, print and write. Returns what is written."""
    import torch

    if cfg.threads > 0:
        torch.set_num_threads(cfg.threads)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=cfg.scratch) as folder:
        policy, factory = _build(cfg, Path(folder))
        pictures = factory.batch(cfg.batch_size, policy.config.chunk_size)
        ids, lengths = _ids(policy, pictures)  # also loads the tokenizers, before anything is timed
        only_thermal_live = {k: v for k, v in pictures.items() if "depth" not in k and "seg" not in k}
        batches = {
            BASELINE: ids,
            "ids, thermal live": only_thermal_live | {k: v for k, v in ids.items() if "thermal" not in k},
            "all live": pictures,
        }
        machine = Machine()
        cases = {name: _step(policy, batch, cfg.device) for name, batch in batches.items()}
        series = interleave(cases, cfg.rounds, cfg.warmup, "training step")
    content: dict[str, Any] = {
        "benchmark": "cached_ids",
        "config": asdict(cfg),
        "ids_per_view": lengths,
        "bytes_per_view": 2 * sum(lengths.values()),
        "ratios": ratios(series, BASELINE),
        "results": {name: own.to_dict() for name, own in series.items()},
        "machine": machine.report(),
    }
    title = (
        f"stage-2 training step, preset {cfg.preset}, batch size {cfg.batch_size}, two views, {cfg.device}"
    )
    print(table(title, series, content["ratios"], BASELINE))
    print(f"cache: {content['bytes_per_view']} bytes per view and frame ({lengths})")
    print(machine_line(content["machine"]))
    write_json(cfg.output, content)
    return content


def _build(cfg: CachedIdsBenchmark, folder: Path) -> tuple[Any, PolicyFactory]:
    """A policy in stage ``robust`` whose tokenizers are on disk, and the factory that makes its batches."""
    preset = policy_sizes(SCALES[cfg.preset], folder / "tokenizers")
    preset = replace(preset, bridge=preset.bridge | {"seg_labels": "mini"})
    options = Options(list(DOMAINS), "robust", "expert", cfg.device, cfg.seed)
    factory = PolicyFactory(preset, options, folder)
    return factory.build("fourm").train(), factory


def _ids(policy: Any, pictures: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """The batch with ids in place of pictures, and the number of ids per modality."""
    import torch

    from multismolvla.modalities import DEPTH_VALID, Modality, token_key, valid_key

    tower, out, lengths = policy.model.tower, dict(pictures), {}
    for view, streams in policy.config.views.items():
        for modality, key in streams.items():
            if modality == Modality.RGB:
                continue
            picture = {modality: out.pop(key)}
            if modality == Modality.DEPTH:
                picture[DEPTH_VALID] = out.pop(valid_key(key))
            ids = tower.tokenize(modality, picture)
            out[token_key(view, modality)] = ids.to(torch.int16)
            lengths[modality] = ids.shape[1]
    return out, lengths


def _step(policy: Any, batch: dict[str, torch.Tensor], device: str) -> Case:
    """Forward, backward, clipping and AdamW."""
    import torch

    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def step() -> None:
        policy.forward(dict(batch))[0].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        optimizer.zero_grad()

    return Case(step, wait=torch.cuda.synchronize if device.startswith("cuda") else None)


def main() -> None:
    """Command line entry."""
    import draccus

    run(draccus.parse(CachedIdsBenchmark))


if __name__ == "__main__":
    main()
