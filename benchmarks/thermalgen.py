"""Seconds per ThermalGen latent: each part computed once against everything at every evaluation, as in the reference.

    python benchmarks/thermalgen.py                          # B/2, 256 px, 4 Euler steps, batch 1
    python benchmarks/thermalgen.py --arch=S --cfg_scale=4   # guided

Random weights: time does not depend on their values. Only the denoiser runs; encoding RGB and decoding thermal are the same in
all cases and not measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import Case, Machine, interleave, machine_line, ratios, table, write_json

NAIVE = "naive"
FRESH = "cached, tables made anew"
CACHED = "cached"
ARCHITECTURES = ("tiny", "S", "B", "L", "XL")
METHODS = ("euler", "midpoint", "heun", "rk4")


@dataclass
class ThermalGenBenchmark:
    """Options of benchmarks/thermalgen.py."""

    arch: str = "B"  # tiny (for tests), S, B, L or XL
    injection: str = "cross"  # or concat
    size: int = 256  # side of the picture, a multiple of 16; the latent has an eighth of it
    steps: int = 4
    method: str = "euler"  # or midpoint, heun, rk4
    batch_size: int = 1
    cfg_scale: float = 1.0  # above 1: guided, twice the batch
    rounds: int = 7
    warmup: int = 1
    device: str = "cpu"  # or cuda, mps
    dtype: str = "float32"  # or bfloat16
    threads: int = 1  # of PyTorch on the CPU; 0 = PyTorch's choice
    seed: int = 0
    output: Path = Path("outputs/benchmarks/thermalgen.json")

    def __post_init__(self) -> None:
        choices: list[tuple[str, Any, tuple[str, ...]]] = [
            ("arch", self.arch, ARCHITECTURES),
            ("injection", self.injection, ("cross", "concat")),
            ("method", self.method, METHODS),
            ("dtype", self.dtype, ("float32", "bfloat16")),
        ]
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"--{name}={value}: expected one of {list(allowed)}.")
        if self.size < 16 or self.size % 16:
            raise ValueError(f"--size={self.size}: expected a multiple of 16.")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)}: expected at least 1.")


def run(cfg: ThermalGenBenchmark) -> dict[str, Any]:
    """Build, measure, print and write. Returns what is written."""
    import torch

    from multismolvla.thermal.sampler import Sampler, evaluations
    from multismolvla.thermal.sit import SiT
    from multismolvla.thermal.thermalgen_config import ThermalGenConfig

    if cfg.threads > 0:
        torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    net = SiT(ThermalGenConfig(arch=cfg.arch, injection=cfg.injection).denoiser)
    net = net.to(cfg.device, getattr(torch, cfg.dtype)).eval().requires_grad_(False)
    sampler, forgetful = Sampler(net), Sampler(net)
    shape = (2, cfg.batch_size, net.config.channels, cfg.size // 8, cfg.size // 8)
    z, x_rgb = torch.randn(shape, device=cfg.device)
    label = 7 if cfg.cfg_scale > 1 else net.config.null_label
    labels = torch.full((cfg.batch_size,), label, device=cfg.device)

    def sample(cache: bool, by: Sampler = sampler) -> torch.Tensor:
        options: dict[str, Any] = {"steps": cfg.steps, "method": cfg.method, "cfg_scale": cfg.cfg_scale}
        return by.sample(z, x_rgb, labels, cache=cache, **options).latent

    wait = torch.cuda.synchronize if cfg.device.startswith("cuda") else None
    cases = {
        NAIVE: Case(lambda: sample(False), units=cfg.batch_size, wait=wait),
        FRESH: Case(
            lambda: sample(True, forgetful), units=cfg.batch_size, prepare=forgetful.forget, wait=wait
        ),
        # what a data set's second and every later picture costs: the tables are there
        CACHED: Case(lambda: sample(True), units=cfg.batch_size, wait=wait),
    }
    naive = sample(False)  # and the first cached run makes the tables
    difference = float((sample(True) - naive).abs().max() / naive.abs().max().clamp(min=1))
    machine = Machine()
    series = interleave(cases, cfg.rounds, cfg.warmup, f"{cfg.arch}/2, {cfg.steps} x {cfg.method}")
    relative = ratios(series, NAIVE)
    count = evaluations(cfg.method, cfg.steps)
    content = {
        "benchmark": "thermalgen",
        "config": asdict(cfg),
        "parameters_m": round(sum(p.numel() for p in net.parameters()) / 1e6, 1),
        "evaluations": count,
        "largest_relative_difference": difference,
        "results": {name: own.to_dict() for name, own in series.items()},
        "ratios": relative,
        "machine": machine.report(),
    }
    print(
        f"\n{cfg.arch}/2 ({content['parameters_m']} M), {cfg.injection}, {cfg.size} px, {count} evaluations ({cfg.method}), "
        f"batch {cfg.batch_size}, guidance {cfg.cfg_scale:g}, {cfg.device} {cfg.dtype}; cached differs from naive by {difference:.1e}"
    )
    print(table("one latent", series, relative, NAIVE))
    print(machine_line(content["machine"]))
    write_json(cfg.output, content)
    return content


def main() -> None:
    """Command line entry."""
    import draccus

    run(draccus.parse(ThermalGenBenchmark))


if __name__ == "__main__":
    main()
