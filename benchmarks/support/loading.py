"""How much memory loading an encoder takes at its peak, beyond what was there before.

    python benchmarks/support/loading.py FOLDER --dtype=bfloat16     # prints one line of JSON

Linux only: the peak is the kernel's VmHWM, which counts mapped pages of the file as well. `write_official`
makes checkpoints to measure with: every tensor of the official file, all zero. They are sparse, so they have
the official length and take no room on the disk; what loads them maps, reads and counts the same pages as for
the real ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multismolvla.fourm import FourMConfig

#: What a policy with all four modalities and both thermal domains needs.
DOMAINS = ("rgb@224", "tok_depth@224", "tok_semseg@224", "tok_imagebind@224", "tok_imagebind_global")


@dataclass(frozen=True)
class Loading:
    """Bytes of the tensors that are kept, greatest bytes in use beyond those before, and seconds."""

    kept_bytes: int
    peak_bytes: int
    seconds: float


def measure_loading(folder: Path, dtype: str, domains: tuple[str, ...] = DOMAINS) -> Loading:
    """Load ``folder`` in a fresh process.

    Raises:
        RuntimeError: loading failed; the message ends with the process's own.
    """
    command = [sys.executable, __file__, str(folder), f"--dtype={dtype}", "--domains", *domains]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Loading(**json.loads(done.stdout.splitlines()[-1]))


def _resident(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:", 1)[1].split()[0]) * 1024


def inventory(config: FourMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an official file: the encoder's, and what its reader must skip.

    Numbers of tensors and elements agree with the published files, see the test of this module.
    """
    import torch

    from multismolvla.fourm import MODALITY_INFO, FourMEncoder

    with torch.device("meta"):
        encoder = FourMEncoder(config, config.domains_in)
    tensors = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    dim, hidden = config.dim, config.mlp_hidden
    for i in range(config.decoder_depth):
        block = f"decoder.{i}."
        for norm in ("norm1", "query_norm", "context_norm", "norm2"):
            tensors |= {f"{block}{norm}.weight": (dim,), f"{block}{norm}.bias": (dim,)}
        tensors |= {
            f"{block}self_attn.qkv.weight": (3 * dim, dim),
            f"{block}self_attn.proj.weight": (dim, dim),
            f"{block}cross_attn.q.weight": (dim, dim),
            f"{block}cross_attn.kv.weight": (2 * dim, dim),
            f"{block}cross_attn.proj.weight": (dim, dim),
            f"{block}mlp.fc1.weight": (hidden, dim),
            f"{block}mlp.fc2.weight": (dim, hidden),
            f"{block}mlp.fc3.weight": (hidden, dim),
        }
    for name in config.domains_out:
        info = MODALITY_INFO[name]
        if info.vocab is not None:
            tensors |= {
                f"decoder_embeddings.{name}.mod_emb": (1, 1, dim),
                f"decoder_embeddings.{name}.pos_emb": (1, info.num_positions, dim),
                f"decoder_embeddings.{name}.token_emb.weight": (info.vocab, dim),
                f"decoder_embeddings.{name}.to_logits.weight": (info.vocab, dim),
            }
    return tensors | {
        "decoder_norm.weight": (dim,),
        "decoder_norm.bias": (dim,),
        "decoder_proj_context.weight": (dim, dim),
        "decoder_proj_context.bias": (dim,),
        "mask_token": (1, 1, dim),
    }


def write_official(folder: Path, size: str, depth: int | None = None) -> int:
    """Write ``config.json`` and a sparse ``model.safetensors`` of 4M-21.

    Args:
        folder: where; made when missing.
        size: ``B``, ``L`` or ``XL``.
        depth: blocks of encoder and decoder; ``None`` = the official number.

    Returns:
        Length of the weights file in bytes.
    """
    from multismolvla.fourm import FourMConfig

    config = FourMConfig.official(size)
    if depth is not None:
        config = dataclasses.replace(config, encoder_depth=depth, decoder_depth=depth)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in inventory(config).items():
        start, end = end, end + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1))
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path.stat().st_size


def main() -> None:
    """Load in this process and print what it took."""
    parser = argparse.ArgumentParser(description="Memory taken by loading a 4M encoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    options = parser.parse_args()
    import torch

    from multismolvla.fourm import FourMEncoder

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before, start = _resident("VmRSS"), time.perf_counter()
    dtype = getattr(torch, options.dtype)
    encoder = FourMEncoder.from_pretrained(options.folder, options.domains, dtype=dtype)
    seconds = round(time.perf_counter() - start, 2)
    kept = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    print(json.dumps(dataclasses.asdict(Loading(kept, _resident("VmHWM") - before, seconds))))


if __name__ == "__main__":
    main()
