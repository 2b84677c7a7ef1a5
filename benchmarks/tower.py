"""The 4M-21 tower at its published sizes: forward pass against SigLIP-512, and memory while loading.

    python benchmarks/tower.py                         # B and L, one to four modalities, on the CPU
    python benchmarks/tower.py --device=cuda --dtype=bfloat16 --sizes=[B,L,XL] --batch_size=32
    python benchmarks/tower.py --sizes=[] --load=[B,L,XL]    # memory alone

Random weights: neither time nor memory depends on their values. The encoder alone is measured, from pixels
and ids; tokenizers are frozen and their ids cached.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.loading import measure_loading, write_official
from support.measuring import Case, Machine, interleave, machine_line, ratios, table, write_json

if TYPE_CHECKING:
    import torch

BASELINE = "SigLIP-512"
SIZES = ("B", "L", "XL")
#: Modalities are added in this order; thermal has dense and global tokens.
DOMAINS = {
    "rgb": ("rgb@224",),
    "depth": ("tok_depth@224",),
    "seg": ("tok_semseg@224",),
    "thermal": ("tok_imagebind@224", "tok_imagebind_global"),
}


@dataclass
class TowerBenchmark:
    """Options of benchmarks/tower.py."""

    sizes: list[str] = field(default_factory=lambda: ["B", "L"])  # towers whose forward pass is timed
    load: list[str] = field(default_factory=lambda: ["B", "L"])  # towers whose loading is measured (Linux)
    batch_size: int = 1  # pictures, i.e. views
    depth: int = 0  # blocks of every network; 0 = the published number (for tests)
    rounds: int = 7
    warmup: int = 1
    device: str = "cpu"  # or cuda
    dtype: str = "float32"  # or bfloat16: weights and arithmetic
    threads: int = 1  # of PyTorch on the CPU; 0 = PyTorch's choice
    seed: int = 0
    scratch: Path | None = None  # where temporary folders are made; the files are sparse and take no room
    output: Path = Path("outputs/benchmarks/tower.json")

    def __post_init__(self) -> None:
        for name in ("sizes", "load"):
            if unknown := [size for size in getattr(self, name) if size not in SIZES]:
                raise ValueError(f"--{name}={unknown}: expected of {list(SIZES)}.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype={self.dtype}: expected float32 or bfloat16.")


def run(cfg: TowerBenchmark) -> dict[str, Any]:
    """Measure, print and write. Returns what is written."""
    import torch

    if cfg.threads > 0:
        torch.set_num_threads(cfg.threads)
    machine = Machine()
    content: dict[str, Any] = {"benchmark": "tower", "config": asdict(cfg), "loading": _loading(cfg)}
    for name, row in content["loading"].items():
        print(
            f"loading {name}: {row['kept_bytes'] / 1e9:.2f} GB kept of {row['file_bytes'] / 1e9:.2f} GB, "
            f"peak {row['ratio']:.2f} times that, {row['seconds']} s"
        )
    if cfg.sizes:
        cases = _cases(cfg)
        series = interleave(cases, cfg.rounds, cfg.warmup, "forward pass")
        content["ratios"] = ratios(series, BASELINE)
        content["results"] = {name: own.to_dict() for name, own in series.items()}
        threads = f"{cfg.threads or 'default'} thread(s)"
        title = f"forward pass, {cfg.batch_size} view(s), {cfg.device} {cfg.dtype}, {threads}"
        print(table(title, series, content["ratios"], BASELINE))
    content["machine"] = machine.report()
    if cfg.device.startswith("cuda"):
        content["device"] = torch.cuda.get_device_name()
    print(machine_line(content["machine"]))
    write_json(cfg.output, content)
    return content


def _loading(cfg: TowerBenchmark) -> dict[str, dict[str, Any]]:
    """Per tower and dtype: bytes kept, peak beyond the process before, their ratio, and seconds."""
    found = {}
    for size in cfg.load:
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=cfg.scratch) as scratch:
            length = write_official(Path(scratch), size, cfg.depth or None)
            for dtype in ("float32", "bfloat16"):
                row = measure_loading(Path(scratch), dtype)
                ratio = round(row.peak_bytes / row.kept_bytes, 3)
                found[f"{size} {dtype}"] = asdict(row) | {"file_bytes": length, "ratio": ratio}
    return found


def _cases(cfg: TowerBenchmark) -> dict[str, Case]:
    """SigLIP first, then every size with one to four modalities."""
    import torch

    device, dtype = torch.device(cfg.device), getattr(torch, cfg.dtype)
    generator = torch.Generator().manual_seed(cfg.seed)
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    cases = {BASELINE: Case(_siglip(cfg, device, dtype, generator), wait=wait)}
    for size in cfg.sizes:
        encoder = _encoder(cfg, size, device, dtype)
        inputs: dict[str, torch.Tensor] = {}
        for number, domains in enumerate(DOMAINS.values(), start=1):
            inputs |= {
                name: _content(encoder, name, cfg.batch_size, generator).to(device) for name in domains
            }
            cases[f"4M-21 {size}, {'+'.join(list(DOMAINS)[:number])}"] = Case(
                _forward(encoder, dict(inputs)), wait=wait
            )
    return cases


def _forward(encoder: Any, inputs: dict[str, torch.Tensor]) -> Any:
    import torch

    def run() -> None:
        with torch.inference_mode():
            encoder(inputs)

    return run


def _encoder(cfg: TowerBenchmark, size: str, device: torch.device, dtype: torch.dtype) -> Any:
    import dataclasses

    import torch

    from multismolvla.fourm import FourMConfig, FourMEncoder

    config = FourMConfig.official(size)
    if cfg.depth:
        config = dataclasses.replace(config, encoder_depth=cfg.depth)
    names = [name for domains in DOMAINS.values() for name in domains]
    with torch.device("meta"):
        encoder = FourMEncoder(config, names).to(dtype)
    encoder = encoder.to_empty(device=device).requires_grad_(False).eval()
    encoder.init_weights()  # drawn on the device
    return encoder


def _content(encoder: Any, name: str, batch: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    info = encoder.modality(name)
    if info.kind == "pixels":
        return torch.rand(batch, 3, *info.image_size, generator=generator)
    return torch.randint(info.vocab, (batch, info.num_tokens), generator=generator)


def _siglip(cfg: TowerBenchmark, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """SmolVLM2-500M's vision network at 512 pixels: 1024 tokens, as SmolVLA runs it."""
    import torch
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

    config = SmolVLMVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=cfg.depth or 12, num_attention_heads=12,
        image_size=512, patch_size=16,
    )  # fmt: skip
    network = SmolVLMVisionTransformer._from_config(config, attn_implementation="sdpa")
    network = network.to(device, dtype).requires_grad_(False).eval()
    pixels = torch.rand(cfg.batch_size, 3, 512, 512, generator=generator).to(device, dtype)

    def run() -> None:
        with torch.inference_mode():
            network(pixel_values=pixels)

    return run


def main() -> None:
    """Command line entry."""
    import draccus

    run(draccus.parse(TowerBenchmark))


if __name__ == "__main__":
    main()
