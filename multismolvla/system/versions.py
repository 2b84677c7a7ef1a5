"""The packages that decide results and their installed versions, for doctor and recorded results."""

from __future__ import annotations

import platform
from importlib import metadata

#: Distribution names: ours, the engine, the models, the simulator.
PACKAGES = (
    "lerobot_policy_multismolvla", "lerobot", "torch", "numpy", "scipy", "transformers", "peft", "accelerate",
    "diffusers", "torchdiffeq", "mujoco", "robosuite", "hf-libero", "h5py", "imagecorruptions",
)  # fmt: skip


def installed() -> dict[str, str | None]:
    """Version of each of `PACKAGES`; ``None`` where it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def package_versions() -> dict[str, str]:
    """Python's version and those of the installed packages."""
    return {"python": platform.python_version()} | {n: v for n, v in installed().items() if v is not None}
