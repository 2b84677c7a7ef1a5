"""Three ways from a thermal picture to inputs of the 4M encoder.

4M-21 knows ImageBind only as token ids that were made from RGB photographs by ImageBind's *vision* branch.
Rows of the thermal branch fit neither tokenizer (768 wide instead of 1280, 14x14 instead of 16x16) and were
never aligned with the vision rows; only the joint embeddings of the two branches were. Hence:

========= ========================================================= ======================= ================
route     way                                                       gives                   training
========= ========================================================= ======================= ================
`vision`  grey picture x 3 -> vision branch -> tokenizers           256 dense, 16 global    none
`bridge`  thermal branch -> joint space -> class row -> tokenizer   16 global               none, or one map
`soft`    thermal branch -> patch rows                              196 rows of numbers     map in the policy
========= ========================================================= ======================= ================

What to expect. `vision` gives ids in the vocabulary, but treats heat as brightness. `bridge` uses the thermal
branch as it was meant, carries the gist of the scene alone, and is untested upstream. `soft` keeps places,
but shows the encoder rows it has never seen. The thermal branch's stem is a convolution without bias under a
LayerNorm, so for `bridge` and `soft` the temperature of an evenly warm patch counts only as far as that
norm's epsilon lets it through; edges count. All networks have seen outdoor or everyday pictures, not thermal
table tops, and thermal synthesised from RGB holds nothing that RGB does not. So none of the routes is known
to help: measure against a policy without thermal.

Tokens depend on the networks and the dtype that they were loaded with, never on autocast or TF32 around the
    call: ids
cached by a tool and ids made inside a training step must be the same.

Weights: ImageBind CC-BY-NC-SA 4.0, tokenizers EPFL and Apple "Sample Code License"; both non-commercial.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from multismolvla import weights
from multismolvla.checks import check_picture, check_range, checked_validity
from multismolvla.geometry import cells_seen, resize_continuous
from multismolvla.thermal.imagebind import ImageBindHead, ImageBindThermal, ImageBindVision
from multismolvla.thermal.imagebind_layers import IMAGE_SIZE
from multismolvla.tokenizers.interface import Tokens
from multismolvla.tokenizers.vit import full_float32
from multismolvla.tokenizers.weight_free import MIN_VALID

DENSE_DOMAIN = "tok_imagebind@224"
GLOBAL_DOMAIN = "tok_imagebind_global"
#: Rows of numbers, not ids: 14x14, embedded by a map that is trained with the policy.
SOFT_DOMAIN = "soft_thermal@224"

#: Sensor noise and resizing may leave the range by rounding, not by more.
_SLACK = 1e-4


class FeatureTokenizer(Protocol):
    """What a route needs of `multismolvla.tokenizers.official.VQTokenizer`."""

    def encode_ids(self, x: Tensor, /) -> Tensor:
        """Float features (B, C, h, w) -> int64 (B, h, w); (B, C) -> (B, codebooks)."""
        ...


class VisionRoute:
    """The thermal picture as a grey photograph through ImageBind's vision branch.

    Args:
        vision: ImageBind's vision branch.
        dense: tokenizer of the 16x16 map of patch rows, ``None`` = no dense tokens.
        global_: tokenizer of the class row, ``None`` = no global tokens.
        rows: which rows the tokenizers were trained on, ``"trunk"`` or ``"norm"``. Not documented upstream;
            with the weights at hand ``benchmarks/imagebind_rows.py`` tells.

    Raises:
        ValueError: neither tokenizer.
    """

    def __init__(
        self,
        vision: ImageBindVision,
        dense: FeatureTokenizer | None = None,
        global_: FeatureTokenizer | None = None,
        *,
        rows: str,
    ) -> None:
        if dense is None and global_ is None:
            raise ValueError("VisionRoute: no tokenizer. Give dense, global_ or both.")
        self.vision, self.dense, self.global_, self.rows = vision, dense, global_, rows

    @property
    def domains(self) -> tuple[str, ...]:
        """``tok_imagebind@224`` and ``tok_imagebind_global``, as far as there are tokenizers."""
        pairs = ((DENSE_DOMAIN, self.dense), (GLOBAL_DOMAIN, self.global_))
        return tuple(name for name, tokenizer in pairs if tokenizer is not None)

    @torch.no_grad()
    def encode_domains(self, image: Tensor, valid: Tensor | None = None) -> dict[str, Tokens]:
        """Tokenize, with one pass through the vision branch for both domains.

        Args:
            image: floating (B, 1, H, H) in [0, 1], white = hot.
            valid: bool (B, 1, H, H), True = usable; ``None`` = all.

        Returns:
            Domain -> int64 ids: (B, 256) row-major and (B, 16). Present where at least 25 % of a cell (of the
            picture, for global tokens) is usable.

        Raises:
            ValueError: wrong shape or dtype, or a usable pixel is NaN, infinite or outside [0, 1].
        """
        pixels, usable = prepare_thermal(image, valid)
        grey = pixels.to(self.vision.device).expand(-1, 3, -1, -1)
        with full_float32(grey.device):
            rows = self.vision.rows(grey, self.rows).float()
        tokens = {}
        if self.dense is not None:
            maps = rows[:, 1:].transpose(1, 2).unflatten(2, self.vision.grid)  # (B, D, 16, 16)
            ids = self.dense.encode_ids(maps).flatten(1)
            tokens[DENSE_DOMAIN] = Tokens(ids.to(image.device), _cells_seen(usable, self.vision.grid))
        if self.global_ is not None:
            tokens[GLOBAL_DOMAIN] = _global_tokens(self.global_, rows[:, 0], usable)
        return tokens


class BridgeRoute:
    """Thermal branch -> joint space -> the vision class row that would lie there -> global ids.

    The vision head is e = W x with x the class row after its LayerNorm. Without any training x is estimated
    as the shortest vector with W x = e, which is pinv(W) e, scaled to the typical length of such a row,
    sqrt(sum(gamma^2) + sum(beta^2)) of that LayerNorm. (The scale cancels the length of e; the 256 directions
    that W drops stay unknown.) That holds for rows after the LayerNorm only. For raw rows, and as the better
    estimate for either, give a linear map fitted on pairs of joint embedding and class row, e.g. from RGB
    pictures through the vision branch.

    Args:
        thermal: ImageBind's thermal branch.
        head: the vision branch's head, see `ImageBindHead.from_pretrained`: three tensors, not the branch.
        global_: tokenizer of the class row.
        rows: which rows the tokenizer was trained on, as for `VisionRoute`.
        map_file: safetensors file with ``weight`` (1280, 1024) and ``bias`` (1280): row = weight u + bias,
            where u is the joint embedding scaled to length one.

    Raises:
        ValueError: raw rows without a map, heads of different joint spaces, or a map that does not fit.
        FileNotFoundError: there is no such map file.
    """

    def __init__(
        self,
        thermal: ImageBindThermal,
        head: ImageBindHead,
        global_: FeatureTokenizer,
        *,
        rows: str,
        map_file: str | Path | None = None,
    ) -> None:
        joint, own = head.projection.shape[0], thermal.head.projection.shape[0]
        if joint != own:
            raise ValueError(
                f"BridgeRoute: the vision head leads to a joint space of {joint} dimensions, the thermal "
                f"branch to one of {own}. Take both from one checkpoint."
            )
        if map_file is None and rows != "norm":
            raise ValueError(
                f"BridgeRoute: rows={rows!r} needs a learned map. The closed form inverts the linear layer "
                "of the vision head, which stands behind a LayerNorm; what that removed (mean and length of "
                "the raw row) "
                'cannot be inverted. Give map_file, choose rows="norm", or take the vision route.'
            )
        self.thermal, self.global_ = thermal, global_
        self._length: float | None = None
        if map_file is None:
            weight, bias, self._length = _closed_form(head)
        else:
            weight, bias = _read_map(map_file, head)
        self._weight, self._bias = weight.to(thermal.device), bias.to(thermal.device)

    @property
    def domains(self) -> tuple[str, ...]:
        """``tok_imagebind_global``."""
        return (GLOBAL_DOMAIN,)

    @torch.no_grad()
    def class_rows(self, embeddings: Tensor) -> Tensor:
        """Estimate vision class rows, float32 (B, 1280), from joint embeddings (B, 1024) of any length."""
        rows = F.linear(F.normalize(embeddings.float(), dim=-1), self._weight, self._bias)
        return rows if self._length is None else F.normalize(rows, dim=-1) * self._length

    @torch.no_grad()
    def encode_domains(self, image: Tensor, valid: Tensor | None = None) -> dict[str, Tokens]:
        """Tokenize: int64 (B, 16) of the one domain. Arguments and errors as `VisionRoute.encode_domains`."""
        pixels, usable = prepare_thermal(image, valid)
        with full_float32(self.thermal.device):
            rows = self.class_rows(self.thermal.embedding(pixels.to(self.thermal.device)))
        return {GLOBAL_DOMAIN: _global_tokens(self.global_, rows, usable)}


class SoftRoute:
    """Patch rows of the thermal branch, for a map that is trained with the policy.

    They are taken after the head's LayerNorm: at about unit scale a new linear map learns from them at once.

    Args:
        thermal: ImageBind's thermal branch.
    """

    def __init__(self, thermal: ImageBindThermal) -> None:
        self.thermal = thermal

    @property
    def domains(self) -> tuple[str, ...]:
        """``soft_thermal@224``."""
        return (SOFT_DOMAIN,)

    @torch.no_grad()
    def encode_domains(self, image: Tensor, valid: Tensor | None = None) -> dict[str, Tokens]:
        """Compute the rows; arguments and errors as `VisionRoute.encode_domains`.

        Returns:
            ``soft_thermal@224`` -> float32 (B, 196, 768) rows of the 14x14 patches, row-major.
        """
        pixels, usable = prepare_thermal(image, valid)
        with full_float32(self.thermal.device):
            rows = self.thermal.rows(pixels.to(self.thermal.device), "norm")[:, 1:]
        values = rows.float().to(image.device)
        return {SOFT_DOMAIN: Tokens(values, _cells_seen(usable, self.thermal.grid))}


def prepare_thermal(image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Check a canonical thermal picture and bring it to ImageBind's size.

    Args:
        image: floating (B, 1, H, H) in [0, 1].
        valid: bool (B, 1, H, H), True = usable; ``None`` = all.

    Returns:
        float32 (B, 1, 224, 224), unusable pixels filled with the mean of the usable ones (0 where there are
        none), and the validity, bool (B, 1, H, H).

    Raises:
        ValueError: wrong shape or dtype, not square, or a usable pixel is NaN, infinite or outside [0, 1].
    """
    name = "thermal route"
    check_picture(name, image, 1)
    if image.shape[2] != image.shape[3]:
        raise ValueError(
            f"{name}: {image.shape[2]}x{image.shape[3]} pixels; expected a square picture. Crop or stretch "
            "all streams of the view alike first (multismolvla.geometry.to_square)."
        )
    valid = checked_validity(name, image, valid)
    check_range(name, image[valid], -_SLACK, 1 + _SLACK, "relative temperature in [0, 1]")
    values = torch.where(valid, image.float().clamp(0, 1), 0.0)
    mean = values.sum((2, 3), keepdim=True) / valid.sum((2, 3), keepdim=True).clamp(min=1)
    return resize_continuous(torch.where(valid, values, mean), IMAGE_SIZE), valid


def _cells_seen(valid: Tensor, grid: tuple[int, int]) -> Tensor:
    """Whether enough of each cell is usable: bool (B, 1, H, H) -> (B, rows * columns)."""
    return cells_seen(valid, grid, MIN_VALID).flatten(1)


def _global_tokens(tokenizer: FeatureTokenizer, rows: Tensor, valid: Tensor) -> Tokens:
    ids = tokenizer.encode_ids(rows).flatten(1).to(valid.device)
    return Tokens(ids, _cells_seen(valid, (1, 1)).expand_as(ids))


def _closed_form(head: ImageBindHead) -> tuple[Tensor, Tensor, float]:
    """Weight, bias and length of the rows for `BridgeRoute` without training."""
    inverse = torch.linalg.pinv(head.projection.detach().cpu().double()).float()
    gamma, beta = head.norm.weight.detach().double(), head.norm.bias.detach().double()
    return inverse, torch.zeros(len(inverse)), float((gamma.square() + beta.square()).sum().sqrt())


def _read_map(path: str | Path, head: ImageBindHead) -> tuple[Tensor, Tensor]:
    """Weight and bias of a learned map, which gives the rows their length itself."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"BridgeRoute: no map at {file}. Expected a safetensors file with weight and bias."
        )
    extra = sorted(set(weights.stored_keys(file)) - {"weight", "bias"})
    if extra:
        raise ValueError(
            f"{file}: unexpected tensor {extra[0]!r}; a bridge map holds weight and bias only. Is it another "
            "file?"
        )
    joint, width = head.projection.shape
    expected = {
        "weight": torch.empty(width, joint, device="meta"),
        "bias": torch.empty(width, device="meta"),
    }
    state = weights.read_weights(file, expected, dtype=torch.float32)
    return state["weight"], state["bias"]
