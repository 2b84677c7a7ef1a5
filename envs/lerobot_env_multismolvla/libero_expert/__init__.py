"""Scripted expert for LIBERO's four suites, from privileged state: skills, their composition, the search for variants.

Importing this package is cheap; ``search`` and ``world`` import MuJoCo, ``simulation`` the simulator.
"""

import hashlib
from functools import cache
from pathlib import Path


@cache
def expert_version() -> str:
    """Hash over this package's source: two recordings with equal versions come from the same expert."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
