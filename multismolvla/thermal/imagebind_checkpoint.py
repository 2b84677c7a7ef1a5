"""What sizes an ImageBind checkpoint has."""

from __future__ import annotations

from pathlib import Path

from multismolvla import weights
from multismolvla.pretrained import IMAGEBIND

_STEMS = {"vision": "rgbt_stem.proj.1.weight", "thermal": "rgbt_stem.proj.weight"}
_OFFICIAL_WIDTHS = {"vision": 1280, "thermal": 768}


def branch_sizes(path: Path, branch: str, num_heads: int | None = None) -> dict[str, int]:
    """Arguments for the constructor of a branch.

    Args:
        path: the checkpoint.
        branch: ``"vision"`` or ``"thermal"``.
        num_heads: number of heads if known.

    Returns:
        Keyword arguments; those left out have the official values.

    Raises:
        ValueError: the file is damaged or has no such branch, or the number of heads of an unofficial width
            is unknown.
    """
    shapes = weights.stored_keys(path)
    heads = {} if num_heads is None else {"num_heads": num_heads}
    _require_branch(path, shapes, branch)
    stem = shapes.get(f"modality_preprocessors.{branch}.{_STEMS[branch]}")
    projection = shapes.get(f"modality_heads.{branch}.2.weight")
    # Official, or something is missing, and the strict read against the official sizes will name what.
    if not stem or not projection or stem[0] == _OFFICIAL_WIDTHS[branch]:
        return heads
    prefix = f"modality_trunks.{branch}.blocks."
    blocks = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    sizes = {
        "width": stem[0],
        "num_blocks": len(blocks),
        "joint_dim": projection[0],
        "patch_size": stem[-1],
    }
    return sizes | (heads or {"num_heads": _configured_heads(path, branch, stem[0])})


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
            f"no tensor tells its number of attention heads. Give num_heads, or {field!r} in {config.name} "
            f"beside it (it says {heads!r})."
        )
    return heads
