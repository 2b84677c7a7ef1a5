"""Each network of a look on a GPU: milliseconds, bf16, compiled, and whether it gives what the CPU gives.

    sh benchmarks/gpu.sh            # this, and latency.py where LeRobot is installed

Needs the repository and PyTorch with its usual company (numpy, safetensors, tqdm; transformers for the
estimators of depth and segmentation, diffusers for ThermalGen, which are left out without): no LeRobot, no
weights, no dataset. Official sizes, random weights, two pictures, as of a robot with two cameras. fp32 is
float32 throughout, as the policy computes estimates and ids in: no TF32.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests" / "fixtures")]

import torch  # noqa: E402
from support.network_files import write_estimators  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from multismolvla.connector import GridConnector, VisualBridge  # noqa: E402
from multismolvla.estimators import load_estimator  # noqa: E402
from multismolvla.fourm import FourMConfig, FourMEncoder  # noqa: E402
from multismolvla.fusion import GatedFusion  # noqa: E402
from multismolvla.thermal.thermalgen import ThermalGen  # noqa: E402
from multismolvla.tokenizers.vit import full_float32  # noqa: E402

PICTURES = 2
DOMAINS = ("rgb@224", "tok_depth@224", "tok_semseg@224", "tok_imagebind@224")
#: Modality -> the package that its estimator is made of.
PACKAGES = {"depth": "transformers", "seg": "transformers", "thermal": "diffusers"}
#: Column -> (bf16, compiled).
WAYS = {
    "fp32": (False, False),
    "bf16": (True, False),
    "fp32, compiled": (False, True),
    "bf16, compiled": (True, True),
}


class Part(NamedTuple):
    """A network, and what it is shown.

    Attributes:
        network: gives one tensor.
        inputs: its arguments, tensors or mappings of them.
    """

    network: nn.Module
    inputs: tuple[Tensor | dict[str, Tensor], ...]


class Encoder(nn.Module):
    """The tower: all tokens (R, N, D) of the domains in a row."""

    def __init__(self, size: str, tiny: bool):
        super().__init__()
        config = FourMConfig(dim=32, encoder_depth=1, num_heads=2, domains_in=DOMAINS)
        self.encoder = FourMEncoder(config if tiny else FourMConfig.official(size), DOMAINS).eval()

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        """Encode everything; nothing is absent."""
        return torch.cat([tokens.flatten(1, -2) for tokens in self.encoder(values).values()], 1)


class Bridge(nn.Module):
    """Fusion and connector of four modalities, to SmolVLM2-500M's width."""

    def __init__(self, dim: int):
        super().__init__()
        names = ("rgb", "depth", "seg", "thermal")
        self.bridge = VisualBridge(GatedFusion(dim, names, 14), GridConnector(dim, 960, 16, 2, 2048))

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Visual tokens (R, N, 960)."""
        present = {
            name: torch.ones(x.shape[:3], dtype=torch.bool, device=x.device) for name, x in tokens.items()
        }
        return self.bridge(tokens, present).tokens


class Thermal(nn.Module):
    """ThermalGen with a number of Euler steps."""

    def __init__(self, model: ThermalGen, steps: int, side: int):
        super().__init__()
        self.model, self.steps, self.side = model, steps, side

    def forward(self, rgb: Tensor) -> Tensor:
        """Thermal pictures (B, 1, H, W)."""
        frames = [(0, 0)] * len(rgb)
        return self.model.generate(rgb, frames=frames, noise_mode="fixed", steps=self.steps, size=self.side)


class Logits(nn.Module):
    """A transformers network; its largest output tensor."""

    def __init__(self, network: nn.Module, output: str):
        super().__init__()
        self.network, self.output = network, output

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The named output."""
        return self.network(pixel_values=pixel_values)[self.output]


def parts(folder: Path, estimators: Collection[str], *, tiny: bool) -> dict[str, Callable[[], Part]]:
    """Name -> makes the network; one after the other, so that they need not be in memory together.

    Args:
        folder: with the files of the estimators.
        estimators: modalities.
        tiny: the tests' sizes.
    """
    draw = torch.Generator().manual_seed(0)
    grid = 64 if tiny else 256

    def rgb(side: int) -> Tensor:
        return torch.rand(PICTURES, 3, side, side, generator=draw)

    def tower(size: str) -> Part:
        encoder = Encoder(size, tiny)
        values = {"rgb@224": rgb(224)}
        for name in DOMAINS[1:]:
            info = encoder.encoder.modality(name)
            values[name] = torch.randint(info.vocab, (PICTURES, *info.grid), generator=draw)
        return Part(encoder, (values,))

    def bridge() -> Part:
        names = ("rgb", "depth", "seg", "thermal")
        tokens = {name: torch.randn(PICTURES, 14, 14, 768, generator=draw) for name in names}
        return Part(Bridge(768), (tokens,))

    def thermal(steps: int) -> Part:
        return Part(Thermal(ThermalGen.from_pretrained(str(folder / "thermal")), steps, grid), (rgb(grid),))

    def estimator(modality: str, output: str, side: int) -> Part:
        network = load_estimator(modality, str(folder / modality)).model  # type: ignore[attr-defined]
        return Part(Logits(network, output), (rgb(side),))

    found: dict[str, Callable[[], Part]] = {
        "tower 4M-21 B, four modalities": lambda: tower("B"),
        "tower 4M-21 L, four modalities": lambda: tower("L"),
        "fusion and connector": bridge,
    }
    if "thermal" in estimators:
        found |= {f"ThermalGen B/2, {n} steps": (lambda n=n: thermal(n)) for n in (1, 2, 4, 8)}
    if "depth" in estimators:
        found["Depth Anything V2 Small"] = lambda: estimator("depth", "predicted_depth", 28 if tiny else 518)
    if "seg" in estimators:
        found["Mask2Former Swin-B"] = lambda: estimator("seg", "masks_queries_logits", 64 if tiny else 384)
    return found


def measure(
    part: Part, device: torch.device, *, bf16: bool, compiled: bool, rounds: int
) -> tuple[float, Tensor]:
    """Median seconds of a call, and its result on the CPU."""
    network = copy.deepcopy(part.network).to(device).eval()
    inputs = [
        {k: v.to(device) for k, v in x.items()} if isinstance(x, dict) else x.to(device) for x in part.inputs
    ]
    call = torch.compile(network) if compiled else network
    times = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for number in range(rounds + 3):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            result = call(*inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 3:
                times.append(time.perf_counter() - start)
    return statistics.median(times), result.float().cpu()


def difference(result: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference, relative to the reference's spread."""
    return ((result - reference).square().mean().sqrt() / reference.std()).item()


def beyond(off: dict[str, float], tolerance: float) -> dict[str, float]:
    """The differences that are too large in fp32, or no number in any format."""
    return {way: v for way, v in off.items() if not (v <= tolerance or (way[:4] != "fp32" and v == v))}


def main() -> None:
    """Measure, print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="the tests' networks, to try the script")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of fp32 against the CPU")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}")
    ways = {way: how for way, how in WAYS.items() if not (options.eager and how[1])}
    heads = "".join(f"{way:>16}" for way in ways)
    print(f"{'milliseconds, two pictures':34}{heads}{'fp32 - CPU':>14}{'bf16 - CPU':>14}")
    wrong = []
    estimators = [m for m, package in PACKAGES.items() if importlib.util.find_spec(package)]
    for modality in PACKAGES.keys() - set(estimators):
        print(f"{PACKAGES[modality]} is not installed: the estimator of {modality} is left out.")
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch, full_float32(device):
        write_estimators(Path(scratch), estimators, tiny=options.tiny)
        for name, make in parts(Path(scratch), estimators, tiny=options.tiny).items():
            part = make()
            with torch.inference_mode():
                reference = part.network.eval()(*part.inputs).float()
            cells, off = [], {}
            for way, (bf16, compiled) in ways.items():
                seconds, result = measure(part, device, bf16=bf16, compiled=compiled, rounds=options.rounds)
                cells.append(f"{seconds * 1e3:16.2f}")
                off[way] = difference(result, reference)
            print(f"{name:34}{''.join(cells)}{off['fp32']:14.1e}{off['bf16']:14.1e}", flush=True)
            wrong += [f"{name}, {way}: {v:.1e}" for way, v in beyond(off, options.tolerance).items()]
    if wrong:
        raise SystemExit(f"Differs from the CPU by more than {options.tolerance}: {'; '.join(wrong)}.")


if __name__ == "__main__":
    main()
