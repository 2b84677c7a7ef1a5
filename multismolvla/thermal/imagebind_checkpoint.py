"""What sizes an ImageBind checkpoint has."""

from __future__ import annotations

from pathlib import Path

from multismolvla import weights
from multismolvla.pretrained import IMAGEBIND

_STEMS = {"vision": "rgbt_stem.proj.1.weight", "thermal": "rgbt_stem.proj.weight"}
_OFFICIAL_WIDTHS = {"vision": 1280, "thermal": 768}


def branch_sizes(path: Path, branch: str) -> dict[str, int]:
    """Arguments for the constructor of a branch.

    Args:
        path: the checkpoint.
        branch: ``"vision"`` or ``"thermal"``.

    Returns:
        Keyword arguments; those left out have the official values.

    Raises:
        ValueError: damaged file, no such branch, or an unofficial width whose number of heads is unknown.
    """
    shapes = weights.stored_keys(path)
    _require_branch(path, shapes, branch)
    stem = shapes.get(f"modality_preprocessors.{branch}.{_STEMS[branch]}")
    projection = shapes.get(f"modality_heads.{branch}.2.weight")
    # Official, or something is missing, and the strict read against the official sizes will name what.
    if not stem or not projection or stem[0] == _OFFICIAL_WIDTHS[branch]:
        return {}
    prefix = f"modality_trunks.{branch}.blocks."
    blocks = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    return {
        "width": stem[0],
        "num_blocks": len(blocks),
        "num_heads": _configured_heads(path, branch, stem[0]),
        "joint_dim": projection[0],
        "patch_size": stem[-1],
    }


def head_sizes(path: Path, branch: str) -> dict[str, int]:
    """Arguments for the constructor of a branch's head; errors as `branch_sizes`."""
    shapes = weights.stored_keys(path)
    _require_branch(path, shapes, branch)
    projection = shapes.get(f"modality_heads.{branch}.2.weight")
    return {} if not projection else {"joint_dim": projection[0], "width": projection[1]}


def _require_branch(path: Path, shapes: dict[str, tuple[int, ...]], branch: str) -> None:
    """Refuse a file of another layout; a mere prefix is left to the strict read."""
    mark = f"modality_trunks.{branch}."
    if any(mark in key or f"modality_heads.{branch}." in key for key in shapes):
        return
    example = next(iter(shapes), "none at all")
    raise ValueError(
        f"{path} has no {branch} branch: no tensor is named {mark}* ({len(shapes)} tensors, the first is "
        f"{example!r}). Conversions for transformers use other names and leave out the thermal branch; take "
        f"the official imagebind_huge.pth or {IMAGEBIND}."
    )


def _configured_heads(path: Path, branch: str, width: int) -> int:
    field = f"{branch}_num_heads"
    config = path.parent / weights.CONFIG_FILE
    heads = weights.read_json(config).get(field) if config.is_file() else None
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise ValueError(
            f"{path}: the {branch} branch is {width} wide (ImageBind-Huge: {_OFFICIAL_WIDTHS[branch]}), and "
            f"no tensor tells its number of attention heads. Give {field!r} in {config.name} beside it "
            f"(it says {heads!r})."
        )
    return heads
