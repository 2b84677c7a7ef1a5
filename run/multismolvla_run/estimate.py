"""Memory, time and disk of a training stage, computed from its options: estimates, not measurements.

Parameters and operations follow from the published sizes; what a sample keeps for the backward pass was
measured once (`_SAVED_MB`); the rest is assumed (`ASSUMPTIONS`). Without PyTorch, because the dry run must
answer at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from multismolvla.modalities import ViewMap
from multismolvla.pretrained import TOWER
from multismolvla_run.presets import Options

GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """A class of GPUs: memory in GB, and the dense bf16 peak in TFLOP/s that its vendor states."""

    memory_gb: int
    model: str
    peak_tflops: float


GPUS = (Gpu(24, "RTX 4090", 165), Gpu(48, "L40S", 362), Gpu(80, "H100", 989), Gpu(141, "H200", 989))
_UTILISATION = 0.25
_STEP_OVERHEAD_S = 0.15
#: Processor time of a worker for one sample's view, RGB as video and ids beside it: benchmarks/samples.py.
_LOADING_S = 0.032
_CONTEXT_GB = 1.5
_MARGIN = 1.15
ASSUMPTIONS = (
    f"{_UTILISATION:.0%} of the vendor's dense bf16 peak is reached, {_STEP_OVERHEAD_S} s per step pass "
    f"beside the network, a loader's worker takes {_LOADING_S} s for a sample's view (RGB as video, and ids) "
    "and has a core of its own, weights are kept in fp32 and computed in bf16, "
    f"{_CONTEXT_GB} GB go to CUDA and {_MARGIN - 1:.0%} to fragmentation"
)


class TowerSize(NamedTuple):
    """Size of a 4M encoder."""

    width: int  # of a token
    blocks: int  # number of them
    hidden: int  # width of the gated MLP

    @property
    def block_parameters(self) -> int:
        """Of one block: attention, gated MLP, two scales."""
        return 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width

    def operations(self, tokens: int) -> int:
        """Floating-point operations of the forward pass on one view: linear layers and attention."""
        return self.blocks * (2 * self.block_parameters * tokens + 4 * tokens**2 * self.width)


#: Of the published encoders.
TOWERS = {
    "EPFL-VILAB/4M-21_B": TowerSize(768, 12, 2048),
    "EPFL-VILAB/4M-21_L": TowerSize(1024, 24, 2730),
    "EPFL-VILAB/4M-21_XL": TowerSize(2048, 24, 5461),
}
#: Encoder domain -> (tokens per view, entries of its table).
DOMAINS = {
    "rgb@224": (196, 768),
    "tok_depth@224": (196, 8192),
    "tok_semseg@224": (196, 4096),
    "tok_imagebind@224": (256, 8192),
    "tok_imagebind_global": (16, 8192),
    "soft_thermal@224": (196, 768),
}
_DEFAULT_DOMAINS = {"rgb": "rgb@224", "depth": "tok_depth@224", "seg": "tok_semseg@224"}

# Parameters of SmolVLA 0.6.1: 16 layers of SmolVLM2-500M, an expert of 0.75 of its width, the projections of
# state, actions and time; LoRA on all of their linear layers, per rank; SigLIP with its connector.
# tests/run/test_dry_run.py checks them.
_TEXT_WIDTH = 960
_TEXT_LAYERS, _TEXT, _EXPERT, _PROJECTIONS = 157_317_120, 251_935_680, 98_245_840, 1_635_152
_LORA = 490_960
_SIGLIP, _SIGLIP_WIDTH, _SIGLIP_LAYERS, _SIGLIP_TOKENS = 98_229_504, 768, 12, 1024
_LANGUAGE_TOKENS, _CHUNK, _VIEW_TOKENS = 48, 50, 64

#: MB that one sample keeps for the backward pass, measured by benchmarks/activations.py: real sizes, bf16,
#: two views, `_SAVED_PREFIX` tokens before the actions, tower B with three modalities. Frozen towers keep
#: nothing.
_SAVED_MB = {"base": 152.0, "connector": 154.0, "robust": 202.0}
_SAVED_PREFIX, _SAVED_FUSION = 145, 3 * 768


@dataclass(frozen=True)
class Estimate:
    """What one stage takes."""

    parameters: int  # all, in numbers
    trained: int  # those with an optimizer state
    fixed_gb: float  # memory that does not depend on the batch
    sample_gb: float  # memory per sample of the batch
    sample_tflop: float  # operations per sample and step, forward and backward
    checkpoint_gb: float  # size of one checkpoint on the disk, with the optimizer's state
    views: int  # of a sample

    def memory_gb(self, batch_size: int) -> float:
        """GPU memory at a batch size."""
        return _CONTEXT_GB + _MARGIN * (self.fixed_gb + batch_size * self.sample_gb)

    def largest_batch(self, gpu: Gpu) -> int:
        """Largest power of two up to 256 that fits; 0 when none does."""
        fitting = [2**n for n in range(9) if self.memory_gb(2**n) <= 0.95 * gpu.memory_gb]
        return max(fitting, default=0)

    def computing_s(self, gpu: Gpu, batch_size: int) -> float:
        """Seconds of one step on one GPU, with its batch at hand."""
        return batch_size * self.sample_tflop / (gpu.peak_tflops * _UTILISATION) + _STEP_OVERHEAD_S

    def loading_s(self, batch_size: int, workers: int) -> float:
        """Seconds in which the loader has the next batch; without workers nothing else is done meanwhile."""
        return batch_size * self.views * _LOADING_S / max(1, workers)

    def hours(self, gpu: Gpu, batch_size: int, steps: int, workers: int) -> float:
        """Time of the stage on one GPU: what takes longer, loading or computing, decides."""
        parts = self.computing_s(gpu, batch_size), self.loading_s(batch_size, workers)
        return (max(parts) if workers else sum(parts)) * steps / 3600


class _PolicyOptions(msgspec.Struct):
    """The options of a policy that decide its size, with the policy's defaults."""

    vision_tower: str = "fourm"
    stage: str = "connector"
    views: ViewMap | None = None
    domains: dict[str, str] | None = None
    encoder: str = TOWER
    connector_hidden: int = 2048
    flow_samples: int = 1


class _AdapterOptions(msgspec.Struct):
    """The option of adapters that decides their size."""

    r: int = 0


def _options[T](values: Options, kind: type[T]) -> T:
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"No estimate for these options: {error}.") from error


def estimate(policy: Options, peft: Options) -> Estimate:
    """Estimate a training stage.

    Args:
        policy: the policy's options, without ``policy.``; for a stage that starts from another one, its
            options under the own ones.
        peft: the adapters' options, without ``peft.``; empty = none.

    Raises:
        ValueError: an encoder of unknown size, an unknown domain, or an option of another type.
    """
    options = _options(policy, _PolicyOptions)
    vanilla = options.vision_tower == "siglip"
    kind = "base" if vanilla else options.stage
    views = len(options.views or ("image", "image2"))
    domains = () if vanilla else _domains(options.domains or _DEFAULT_DOMAINS)
    size = TowerSize(0, 0, 0) if vanilla else tower_size(options.encoder)
    tower = size.block_parameters * size.blocks + sum(size.width * DOMAINS[name][1] for name in domains)
    bridge = 0 if vanilla else _bridge(size.width, domains, options.connector_hidden)
    trained = {
        "base": _EXPERT + _PROJECTIONS,
        "connector": bridge,
        "robust": bridge + _LORA * _options(peft, _AdapterOptions).r,
    }[kind]
    siglip = kind != "robust"  # as tower or as teacher
    parameters = _TEXT + _EXPERT + _PROJECTIONS + tower + bridge + siglip * _SIGLIP
    # Checkpoints: all but the frozen tower and the teacher, or adapters and bridge alone; AdamW's moments
    # beside them.
    written = trained if peft else parameters - tower - (kind == "connector") * _SIGLIP

    tokens = sum(DOMAINS[name][0] for name in domains)
    globals_ = sum(DOMAINS[name][0] for name in domains if name.endswith("_global"))
    prefix = views * (_VIEW_TOKENS + globals_) + _LANGUAGE_TOKENS + 1
    kept = _SAVED_MB[kind] * 1e6 * prefix / _SAVED_PREFIX
    if domains:  # the fusion's share in it
        kept += 16 * 196 * views * (size.width * len(domains) - _SAVED_FUSION)
    # Frozen towers keep nothing, but the work of one block is there at a time; SigLIP's attention is not
    # fused.
    work = 30 * size.width * tokens + siglip * (30 * _SIGLIP_WIDTH * _SIGLIP_TOKENS + 24 * 2**20)

    text = 2 * _TEXT_LAYERS * prefix
    expert = 2 * _EXPERT * _CHUNK * options.flow_samples
    # A backward pass costs one forward pass through frozen weights, two through trained ones, none without a
    # gradient.
    through = text + 3 * expert if kind == "base" else 2 * text + 2 * expert
    attention = 4 * _SIGLIP_TOKENS**2 * _SIGLIP_WIDTH * _SIGLIP_LAYERS
    look = size.operations(tokens) + siglip * (2 * _SIGLIP * _SIGLIP_TOKENS + attention)
    fusing = 3 * 4 * bridge * _VIEW_TOKENS  # twice 2: the fusion sees more cells than the connector
    return Estimate(
        parameters=parameters,
        trained=trained,
        # fp32 weights, gradients and two moments; bf16 copies of what the gradient passes through (measured:
        # 0.53 GB)
        fixed_gb=(4 * parameters + 12 * trained + 2 * (_TEXT_LAYERS + _EXPERT + bridge)) / GB,
        sample_gb=(kept + views * work) / GB,
        sample_tflop=(through + views * (look + fusing)) / 1e12,
        checkpoint_gb=(4 * written + 8 * trained) / GB,
        views=views,
    )


def tower_size(encoder: str) -> TowerSize:
    """Size of an encoder: one of `TOWERS`, or a folder with a ``config.json``.

    Raises:
        ValueError: neither.
    """
    if encoder in TOWERS:
        return TOWERS[encoder]
    config = Path(encoder) / "config.json"
    if not config.is_file():
        known = f"one of {list(TOWERS)} or a folder with a config.json"
        raise ValueError(f"The size of the encoder {encoder!r} is unknown; expected {known}.")
    values = json.loads(config.read_text())
    hidden = 2 * int(values["dim"] * values["mlp_ratio"]) // 3
    return TowerSize(values["dim"], values["encoder_depth"], hidden)


def _bridge(width: int, domains: tuple[str, ...], hidden: int) -> int:
    """Parameters of fusion, connector and, with global tokens, their projection."""
    grids = sum(not name.endswith("_global") for name in domains)
    fusion = grids * (2 * width + width * width + width + width + 1)
    connector = 8 * width + (4 * width * hidden + hidden) + (hidden * _TEXT_WIDTH + _TEXT_WIDTH) + _TEXT_WIDTH
    return fusion + connector + (grids < len(domains)) * (2 * width + width * _TEXT_WIDTH + _TEXT_WIDTH)


def _domains(by_modality: Mapping[str, str]) -> tuple[str, ...]:
    names = tuple(name for joined in by_modality.values() for name in joined.split("+"))
    unknown = [name for name in names if name not in DOMAINS]
    if unknown:
        raise ValueError(f"No estimate for the encoder domain {unknown[0]!r}; known are {list(DOMAINS)}.")
    return names
