"""Memory, time and disk of a training stage, computed from the configuration: estimates, not measurements.

Parameters and floating-point operations follow from the published sizes. What one sample keeps for the backward pass was
measured once (`_SAVED_MB`). The rest are the assumptions that `ASSUMPTIONS` tells. No PyTorch here: the driver's dry run must
answer at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multismolvla.pretrained import TOWER

GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """A class of GPUs: memory in GB, and dense bf16 peak in TFLOP/s of the model named, as its vendor states it."""

    memory_gb: int
    model: str
    peak_tflops: float


GPUS = (Gpu(24, "RTX 4090", 165), Gpu(48, "L40S", 362), Gpu(80, "H100", 989), Gpu(141, "H200", 989))
UTILISATION = 0.25
STEP_OVERHEAD_S = 0.15
CONTEXT_GB = 1.5
MARGIN = 1.15
ASSUMPTIONS = (
    f"{UTILISATION:.0%} of the vendor's dense bf16 peak is reached, {STEP_OVERHEAD_S} s per step pass beside the network (loading, "
    f"optimizer), weights are kept in fp32 and computed in bf16, {CONTEXT_GB} GB go to CUDA and {MARGIN - 1:.0%} to fragmentation"
)

#: (width, blocks, hidden width of the MLP) of 4M-21; checked against FourMConfig in the tests.
TOWERS = {
    "EPFL-VILAB/4M-21_B": (768, 12, 2048),
    "EPFL-VILAB/4M-21_L": (1024, 24, 2730),
    "EPFL-VILAB/4M-21_XL": (2048, 24, 5461),
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
# SmolVLM2-500M as SmolVLA 0.6.1 cuts it: 16 layers of the language model, an expert of 0.75 of its width.
_TEXT, _EXPERT, _LAYERS, _KV, _QUERY, _TEXT_MLP, _EXPERT_MLP, _VOCAB = (
    960, 720, 16, 320, 960, 2560, 2048, 49_280,
)  # fmt: skip
_SIGLIP_WIDTH, _SIGLIP_LAYERS, _SIGLIP_TOKENS = 768, 12, 1024
_SIGLIP = 86_433_024 + 12_288 * _TEXT  # with its connector
_LANGUAGE_TOKENS, _CHUNK = 48, 50
_VIEW_TOKENS = 64

#: MB that one sample keeps for the backward pass, measured by benchmarks/activations.py: real sizes, bf16, two views, this
#: many tokens before the actions, tower B with three modalities. The frozen towers keep nothing.
_SAVED_MB = {"base": 152.0, "connector": 154.0, "robust": 202.0}
_SAVED_PREFIX, _SAVED_FUSION = 145, 3 * 768


@dataclass(frozen=True)
class Estimate:
    """What one stage takes.

    Attributes:
        parameters: all, in numbers.
        trained: those with an optimizer state.
        fixed_gb: memory that does not depend on the batch.
        sample_gb: memory per sample of the batch.
        sample_tflop: operations per sample and step, forward and backward.
        checkpoint_gb: size of one checkpoint on the disk, with the optimizer's state.
    """

    parameters: int
    trained: int
    fixed_gb: float
    sample_gb: float
    sample_tflop: float
    checkpoint_gb: float

    def memory_gb(self, batch_size: int) -> float:
        """GPU memory at a batch size."""
        return CONTEXT_GB + MARGIN * (self.fixed_gb + batch_size * self.sample_gb)

    def largest_batch(self, gpu: Gpu) -> int:
        """Largest power of two that fits; 0 when none does."""
        batch = 0
        for size in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            if self.memory_gb(size) <= 0.95 * gpu.memory_gb:
                batch = size
        return batch

    def hours(self, gpu: Gpu, batch_size: int, steps: int) -> float:
        """Time of the stage on one GPU."""
        seconds = batch_size * self.sample_tflop / (gpu.peak_tflops * UTILISATION) + STEP_OVERHEAD_S
        return seconds * steps / 3600


def estimate(policy: Mapping[str, Any], peft: Mapping[str, Any]) -> Estimate:
    """Estimate a training stage.

    Args:
        policy: the policy's options, without ``policy.``; for a stage that starts from another one, its options under
            the own ones.
        peft: the adapters' options, without ``peft.``; empty = none.

    Returns:
        The estimate.

    Raises:
        ValueError: an encoder of unknown size.
    """
    net = _network(policy)
    trained = {"base": _expert() + _projections(), "connector": net.bridge}.get(
        net.kind, net.bridge + lora_parameters(int(peft.get("r", 0)))
    )
    parameters = _text() + _expert() + _projections() + net.tower + net.bridge + net.siglip * _SIGLIP
    # Checkpoints: all but the frozen tower and the teacher, or adapters and bridge alone; AdamW's moments beside them.
    written = trained if peft else parameters - net.tower - (net.kind == "connector") * _SIGLIP
    return Estimate(
        parameters=parameters,
        trained=trained,
        # fp32 weights, gradients and two moments; bf16 copies of what the gradient passes through (measured: 0.53 GB)
        fixed_gb=(4 * parameters + 12 * trained + 2 * (_text_layers() + _expert() + net.bridge)) / GB,
        sample_gb=_sample_bytes(net) / GB,
        sample_tflop=_sample_operations(net, int(policy.get("flow_samples", 1))) / 1e12,
        checkpoint_gb=(4 * written + 8 * trained) / GB,
    )


@dataclass(frozen=True)
class _Network:
    """Sizes of a policy: ``kind`` of training, views, tower (width, blocks, hidden), its domains, and what follows."""

    kind: str
    views: int
    size: tuple[int, int, int]
    domains: tuple[str, ...]
    tower: int  # parameters
    bridge: int  # parameters
    siglip: bool  # runs, as tower or as teacher
    tokens: int  # in the tower, per view
    prefix: int  # before the actions, all views


def _network(policy: Mapping[str, Any]) -> _Network:
    views = len(policy.get("views") or ("image", "image2"))
    text = _LANGUAGE_TOKENS + 1
    if policy.get("vision_tower", "fourm") == "siglip":
        return _Network("base", views, (0, 0, 0), (), 0, 0, True, 0, views * _VIEW_TOKENS + text)
    kind = str(policy.get("stage", "connector"))
    names = _domains(policy)
    dim, blocks, hidden = tower_size(policy.get("encoder", TOWER))
    globals_ = sum(DOMAINS[n][0] for n in names if n.endswith("_global"))
    return _Network(
        kind=kind,
        views=views,
        size=(dim, blocks, hidden),
        domains=names,
        tower=_block(dim, hidden) * blocks + sum(dim * DOMAINS[n][1] for n in names),
        bridge=_bridge(dim, names, int(policy.get("connector_hidden", 2048))),
        siglip=kind == "connector",
        tokens=sum(DOMAINS[n][0] for n in names),
        prefix=views * (_VIEW_TOKENS + globals_) + text,
    )


def _sample_operations(net: _Network, flow_samples: int) -> int:
    """Of one sample's forward and backward pass."""
    siglip = 2 * _SIGLIP * _SIGLIP_TOKENS + 4 * _SIGLIP_TOKENS**2 * _SIGLIP_WIDTH * _SIGLIP_LAYERS
    text = 2 * _text_layers() * net.prefix
    expert = 2 * _expert() * _CHUNK * flow_samples
    bridge = 4 * net.bridge * _VIEW_TOKENS * net.views  # twice: the fusion sees more cells than the connector
    # Through frozen weights a backward pass costs one forward pass, through trained ones two, and none where no gradient goes.
    through = 1 * text + 3 * expert if net.kind == "base" else 2 * text + 2 * expert
    return net.views * (tower_operations(*net.size, net.tokens) + net.siglip * siglip) + through + 3 * bridge


def _sample_bytes(net: _Network) -> float:
    """That one sample adds to the GPU's memory."""
    kept = _SAVED_MB[net.kind] * 1e6 * net.prefix / _SAVED_PREFIX
    if net.domains:
        kept += (
            16 * 196 * net.views * (net.size[0] * len(net.domains) - _SAVED_FUSION)
        )  # the fusion's share in it
    # Frozen towers keep nothing, but one block's work on all views is there at a time; SigLIP's attention is not fused.
    siglip = 30 * _SIGLIP_WIDTH * _SIGLIP_TOKENS + 24 * 2**20
    return kept + net.views * (30 * net.size[0] * net.tokens + net.siglip * siglip)


def tower_size(encoder: str) -> tuple[int, int, int]:
    """(width, blocks, hidden width) of an encoder: one of `TOWERS`, or a folder with a ``config.json``.

    Raises:
        ValueError: neither.
    """
    if encoder in TOWERS:
        return TOWERS[encoder]
    config = Path(encoder) / "config.json"
    if not config.is_file():
        raise ValueError(
            f"The size of the encoder {encoder!r} is unknown: neither one of {list(TOWERS)} nor a folder here."
        )
    values = json.loads(config.read_text())
    return values["dim"], values["encoder_depth"], 2 * int(values["dim"] * values["mlp_ratio"]) // 3


def tower_operations(dim: int, blocks: int, hidden: int, tokens: int) -> int:
    """Floating-point operations of the encoder's forward pass on one view: linear layers and attention."""
    return 2 * _block(dim, hidden) * blocks * tokens + 4 * tokens**2 * dim * blocks


def lora_parameters(rank: int) -> int:
    """Parameters of LoRA of a rank on all linear layers of language model and expert and on the projections."""
    text = [(_TEXT, _QUERY), (_TEXT, _KV), (_TEXT, _KV), (_QUERY, _TEXT), *_mlp(_TEXT, _TEXT_MLP)]
    shared = [(_EXPERT, _QUERY), (_QUERY, _EXPERT), *_mlp(_EXPERT, _EXPERT_MLP)]
    own = [(_EXPERT, _KV)] * 2  # keys and values of a layer with self-attention
    cross = [(_KV, _KV)] * 2  # those of a layer that looks at the language model's
    layers = _LAYERS * (text + shared) + _LAYERS // 2 * (own + cross)
    return rank * sum(a + b for a, b in layers + _PROJECTIONS)


_PROJECTIONS = [(32, _TEXT), (32, _EXPERT), (_EXPERT, 32), (2 * _EXPERT, _EXPERT), (_EXPERT, _EXPERT)]


def _mlp(width: int, hidden: int) -> list[tuple[int, int]]:
    return [(width, hidden), (width, hidden), (hidden, width)]


def _text_layers() -> int:
    return _LAYERS * (2 * _TEXT * _QUERY + 2 * _TEXT * _KV + 3 * _TEXT * _TEXT_MLP + 2 * _TEXT)


def _text() -> int:
    return _text_layers() + 2 * _VOCAB * _TEXT + _TEXT  # embedding and output head


def _expert() -> int:
    shared = 2 * _EXPERT * _QUERY + 3 * _EXPERT * _EXPERT_MLP + 2 * _EXPERT
    return _LAYERS * shared + _LAYERS // 2 * (2 * _EXPERT * _KV + 2 * _KV * _KV) + _EXPERT


def _projections() -> int:
    return sum(a * b + b for a, b in _PROJECTIONS)


def _block(dim: int, hidden: int) -> int:
    return 4 * dim * dim + 3 * dim * hidden + 2 * dim  # attention, gated MLP, two scales


def _bridge(dim: int, names: tuple[str, ...], hidden: int) -> int:
    grids = sum(not n.endswith("_global") for n in names)
    fusion = grids * (2 * dim + dim * dim + dim + dim + 1)
    connector = 8 * dim + (4 * dim * hidden + hidden) + (hidden * _TEXT + _TEXT) + _TEXT
    return fusion + connector + (grids < len(names)) * (2 * dim + dim * _TEXT + _TEXT)


def _domains(policy: Mapping[str, Any]) -> tuple[str, ...]:
    default = {"rgb": "rgb@224", "depth": "tok_depth@224", "seg": "tok_semseg@224"}
    names = tuple(n for joined in (policy.get("domains") or default).values() for n in joined.split("+"))
    unknown = [n for n in names if n not in DOMAINS]
    if unknown:
        raise ValueError(f"No estimate for the encoder domain {unknown[0]!r}; known are {list(DOMAINS)}.")
    return names
