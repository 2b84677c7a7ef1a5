"""How much memory loading an encoder takes at its peak, beyond what was there before; in a process of its own.

    python benchmarks/loading.py FOLDER --dtype=bfloat16     # prints one line of JSON

Linux only: the peak is the kernel's VmHWM, which counts mapped pages of the file as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: What a policy with all four modalities and both thermal domains needs.
DOMAINS = ("rgb@224", "tok_depth@224", "tok_semseg@224", "tok_imagebind@224", "tok_imagebind_global")


def measure(folder: Path, dtype: str, domains: tuple[str, ...] = DOMAINS) -> dict[str, Any]:
    """Load ``folder`` in a fresh process. Returns ``kept_bytes``, ``peak_bytes`` beyond the start, ``seconds``.

    Raises:
        RuntimeError: loading failed; the message ends with the process's own.
    """
    command = [sys.executable, __file__, str(folder), f"--dtype={dtype}", "--domains", *domains]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _resident(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:", 1)[1].split()[0]) * 1024


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
    encoder = FourMEncoder.from_pretrained(
        options.folder, options.domains, dtype=getattr(torch, options.dtype)
    )
    seconds = time.perf_counter() - start
    kept = sum(t.nbytes for t in encoder.state_dict().values())
    print(
        json.dumps(
            {"kept_bytes": kept, "peak_bytes": _resident("VmHWM") - before, "seconds": round(seconds, 2)}
        )
    )


if __name__ == "__main__":
    main()
