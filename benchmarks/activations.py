"""What one more sample of the batch keeps for the backward pass, at real sizes.

    python benchmarks/activations.py

Prints MB per sample for the stages of the official presets: the measured part of the estimates, see
`multismolvla_run.estimate`. Saved tensors are counted by their storage, once each, under bf16 autocast on the
CPU; parameters and their bf16 copies are the same for every batch size and drop out of the difference. Needs
6 GiB of memory and some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from support.policy_models import Options, PolicyFactory, sizes

#: Kind of training in the estimates -> (tower, stage, what is trained).
KINDS = {
    "base": ("siglip", "robust", "expert"),
    "connector": ("fourm", "connector", "lora"),
    "robust": ("fourm", "robust", "lora"),
}


def saved_bytes(policy: Any, batch: dict[str, Any]) -> int:
    """Bytes that a forward pass keeps for the backward pass, without the parameters themselves."""
    import torch

    parameters = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # freed storage would be counted as new

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        policy.forward(dict(batch))
    return sum(kept.values())


def per_sample(kind: str, preset: str = "real") -> float:
    """Bytes that the second sample of a batch adds."""
    tower, stage, trained = KINDS[kind]
    chosen = sizes(preset, stage)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        factory = PolicyFactory(
            chosen, Options(["rgb", "depth", "seg"], stage, trained, "cpu", 0), Path(scratch)
        )
        policy = factory.build(tower).train()
    one, two = (saved_bytes(policy, factory.batch(n, policy.config.chunk_size)) for n in (1, 2))
    return two - one


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Bytes kept for the backward pass, per sample.")
    parser.add_argument("--preset", default="real", help="sizes of benchmarks/support/policy_models.py")
    options = parser.parse_args()
    for kind in KINDS:
        print(f"{kind}: {per_sample(kind, options.preset) / 1e6:.1f} MB per sample")


if __name__ == "__main__":
    main()
