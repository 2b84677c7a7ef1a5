"""What a built-in policy is, so that episodes of two versions of one are never counted as one policy's."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

#: The scripted experts as ``--policies`` names them.
EXPERT = "builtin:expert"
#: In plain words, for manifest and reports.
EXPERT_DESCRIPTION = (
    "privileged oracle: reads the simulator's state and, before it acts, tries variants of its motions in the episode's own "
    "simulator, which it then puts back (retries); an upper bound on what the tasks allow, no policy"
)
#: Of the package of LIBERO's expert, what decides no action of an evaluation: measuring, recording.
_NOT_ACTING = ("__main__.py", "measure.py", "noise.py", "simulation.py")


def builtin_identity(path: str) -> str:
    """What a row's ``checkpoint`` says of a built-in policy: its name, for the expert with the hash of its code.

    Args:
        path: as in ``--policies``, e.g. ``builtin:zero``.
    """
    return f"{path}@{_expert_hash(_environment_package())}" if path == EXPERT else path


def _environment_package() -> Path:
    """Folder of the environment package, found without importing it: that would import LeRobot."""
    spec = importlib.util.find_spec("lerobot_env_multismolvla")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{EXPERT} needs lerobot_env_multismolvla, which is part of this project's installation. Install it again."
        )
    return Path(spec.origin).parent


@cache
def _expert_hash(package: Path) -> str:
    """12 hexadecimal digits over the source of LIBERO's expert and of the mini suite's.

    Args:
        package: folder of the environment package.
    """
    files = [f for f in sorted((package / "libero_expert").glob("*.py")) if f.name not in _NOT_ACTING]
    digest = hashlib.sha256()
    for file in (*files, package / "mini" / "expert.py"):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
