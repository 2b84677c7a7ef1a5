"""ImageBind-Huge: the vision and the thermal branch, under the official parameter names.

Reimplemented from the published description (Girdhar et al., CVPR 2023; facebookresearch/ImageBind); no code
of it is used. Weights: CC-BY-NC-SA 4.0 by the licence file (CC-BY-NC 4.0 by the README): research,
non-commercial use only.

What the thermal branch knows: it was trained on LLVIP, white-hot street scenes at night seen from above.
    Pictures of a
table top from a robot's camera, and thermal synthesised from RGB all the more, are outside that domain; its
own zero-shot score on LLVIP's two classes is 63 %. Expect scene gist at most, and measure before relying on
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from multismolvla import weights
from multismolvla.checks import shape_and_dtype
from multismolvla.fourm.embeddings import normalise_rgb
from multismolvla.thermal.imagebind_checkpoint import branch_sizes, head_sizes
from multismolvla.thermal.imagebind_layers import (
    IMAGE_SIZE,
    NORM_EPS,
    ClassRow,
    LogitScale,
    Preprocessor,
    ThermalStem,
    Trunk,
    UnitLength,
    VisionStem,
)

#: Which rows: raw output of the last block, or after the LayerNorm that opens the branch's head.
ROW_CONVENTIONS = ("trunk", "norm")

#: Per RGB channel, as ImageBind was trained. 4M-21's tokens were made with ImageNet's statistics instead.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageBindHead(nn.Sequential):
    """LayerNorm, class row, linear map into the joint space; keys ``0.*`` and ``2.weight`` as officially.

    Args:
        width: width of the branch.
        joint_dim: width of the joint space.
    """

    def __init__(self, width: int = 1280, joint_dim: int = 1024) -> None:
        super().__init__(
            nn.LayerNorm(width, eps=NORM_EPS), ClassRow(), nn.Linear(width, joint_dim, bias=False)
        )

    @property
    def norm(self) -> nn.LayerNorm:
        """The LayerNorm before the projection."""
        layer = self[0]
        assert isinstance(layer, nn.LayerNorm)
        return layer

    @property
    def projection(self) -> Tensor:
        """Weight of the linear map, (joint_dim, width)."""
        layer = self[2]
        assert isinstance(layer, nn.Linear)
        return layer.weight

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        branch: str = "vision",
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Read only a branch's head (three tensors); arguments as for `ImageBindBranch.from_pretrained`."""
        path = weights.find_weights(source)
        with torch.device("meta"):
            head = cls(**head_sizes(path, branch))
        state = weights.read_weights(
            path, head.state_dict(), prefix=f"modality_heads.{branch}.", dtype=dtype, device=device
        )
        head.load_state_dict(state, strict=True, assign=True)
        return head.eval().requires_grad_(False)


class ImageBindBranch(nn.Module):
    """What both branches share; use `ImageBindVision` or `ImageBindThermal`.

    A branch that is built directly has PyTorch's default weights and is of use on the meta device or for
    tests; trained weights come from `from_pretrained`.

    Attributes:
        grid: (rows, columns) of the patches.
        width: width of the rows.
    """

    branch: ClassVar[str]
    channels: ClassVar[int]
    _stem: ClassVar[type[VisionStem] | type[ThermalStem]]
    _bias_kv: ClassVar[bool]
    _pre_norm: ClassVar[bool]

    def __init__(self, width: int, num_blocks: int, num_heads: int, joint_dim: int, patch_size: int) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(
                f"ImageBind: width {width} is no multiple of its {num_heads} heads. Check num_heads."
            )
        if patch_size < 1 or IMAGE_SIZE % patch_size:
            raise ValueError(f"ImageBind: patch_size {patch_size} does not divide {IMAGE_SIZE}.")
        self.width, self.grid = width, (IMAGE_SIZE // patch_size, IMAGE_SIZE // patch_size)
        name = self.branch
        preprocessor = Preprocessor(width, patch_size, self._stem(width, patch_size))
        trunk = Trunk(width, num_blocks, num_heads, self._bias_kv, self._pre_norm)
        self.modality_preprocessors = nn.ModuleDict({name: preprocessor})
        self.modality_trunks = nn.ModuleDict({name: trunk})
        self.modality_heads = nn.ModuleDict({name: ImageBindHead(width, joint_dim)})
        self.modality_postprocessors = nn.ModuleDict({name: self._postprocessor()})

    def _postprocessor(self) -> nn.Module:
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Read this branch, and nothing else, from an ImageBind checkpoint.

        A branch of the official width has the official sizes; any other width is a test model, whose sizes
        are taken from the tensors, and the number of heads from the field ``<branch>_num_heads`` of a
        ``config.json`` beside the weights.

        Args:
            source: hub id (``"nielsr/imagebind-huge"``), folder with ``model.safetensors``, or path of the
                official ``imagebind_huge.pth`` (opened without running code from it).
            dtype: dtype of the weights; ``None`` = as stored (float32 officially).
            device: where to put them; ``None`` = CPU.

        Returns:
            The branch in evaluation mode, frozen.

        Raises:
            FileNotFoundError: the checkpoint is not there; the message says how to get it.
            ValueError: it is damaged, lacks the branch, or its number of heads is unknown.
        """
        path = weights.find_weights(source)
        sizes = branch_sizes(path, cls.branch)
        with torch.device("meta"):
            model = cls(**sizes)
        state = weights.read_weights(path, model.state_dict(), dtype=dtype, device=device)
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    @property
    def head(self) -> ImageBindHead:
        """LayerNorm and projection into the joint space."""
        head = self.modality_heads[self.branch]
        assert isinstance(head, ImageBindHead)
        return head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.projection.device

    def tokens(self, pixels: Tensor) -> Tensor:
        """Input rows of the transformer, class token first, for prepared pixels (B, C, 224, 224)."""
        rows: Tensor = self.modality_preprocessors[self.branch](pixels.to(self.head.projection.dtype))
        return rows

    def trunk_rows(self, pixels: Tensor, rows: str = "trunk") -> Tensor:
        """Output rows (B, 1 + patches, width) for prepared pixels; ``rows`` as in `ROW_CONVENTIONS`."""
        if rows not in ROW_CONVENTIONS:
            raise ValueError(f"Unknown row convention {rows!r}. Expected one of {ROW_CONVENTIONS}.")
        output: Tensor = self.modality_trunks[self.branch](self.tokens(pixels))
        return output if rows == "trunk" else self.head.norm(output)

    def project(self, pixels: Tensor) -> Tensor:
        """Head's output (B, joint_dim) for prepared pixels, before the post-processor."""
        projected: Tensor = self.head(self.trunk_rows(pixels))
        return projected

    def embed(self, pixels: Tensor) -> Tensor:
        """Joint embedding, float32 (B, joint_dim), for prepared pixels."""
        embedding: Tensor = self.modality_postprocessors[self.branch](self.project(pixels))
        return embedding

    def _check(self, images: Tensor) -> None:
        """Refuse anything but floating (B, C, 224, 224) in [0, 1]."""
        name, side = f"ImageBind's {self.branch} branch", IMAGE_SIZE
        if images.ndim != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise ValueError(
                f"{name}: got {shape_and_dtype(images)}; expected floating (B, {self.channels}, {side}, "
                f"{side}) in [0, 1]."
            )
        if tuple(images.shape[2:]) != (side, side):
            raise ValueError(
                f"{name}: pictures of {images.shape[2]}x{images.shape[3]} pixels; its position table fits "
                f"{side}x{side} only. Resize them first (multismolvla.geometry.resize_continuous)."
            )
        if images.numel() == 0:
            return
        low, high = (float(v) for v in images.aminmax())  # NaN passes on
        if not (low >= -1e-4 and high <= 1 + 1e-4):
            raise ValueError(
                f"{name}: values from {low:g} to {high:g}; expected [0, 1], finite and not normalised. "
                "Divide 8-bit pictures by 255."
            )


class ImageBindVision(ImageBindBranch):
    """Vision branch (ViT-H/14), the feature extractor behind 4M-21's ``tok_imagebind`` tokens.

    Example:
        >>> vision = ImageBindVision(width=40, num_blocks=1, num_heads=4, joint_dim=24)
        >>> vision.rows(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 257, 40])

    Args:
        width: width of the rows.
        num_blocks: number of transformer blocks.
        num_heads: attention heads.
        joint_dim: width of the joint space.
        patch_size: side of a patch in pixels; must divide 224.

    Raises:
        ValueError: sizes that do not fit together.
    """

    branch = "vision"
    channels = 3
    _stem, _bias_kv, _pre_norm = VisionStem, False, True

    def __init__(
        self,
        width: int = 1280,
        num_blocks: int = 32,
        num_heads: int = 16,
        joint_dim: int = 1024,
        patch_size: int = 14,
    ) -> None:
        super().__init__(width, num_blocks, num_heads, joint_dim, patch_size)

    def _postprocessor(self) -> nn.Module:
        return UnitLength()

    def rows(self, images: Tensor, rows: str = "trunk") -> Tensor:
        """All rows of the transformer: 0 = class row, then the patches row-major.

        Args:
            images: floating (B, 3, 224, 224) in [0, 1]; normalised with ImageNet's statistics, as for 4M-21.
            rows: of `ROW_CONVENTIONS`.

        Returns:
            (B, 257, 1280) in the weights' dtype.

        Raises:
            ValueError: another size, shape, dtype or range, or unknown ``rows``.
        """
        self._check(images)
        return self.trunk_rows(normalise_rgb(images), rows)

    def embedding(self, images: Tensor) -> Tensor:
        """Joint embedding of unit length, float32 (B, 1024), as ImageBind itself makes it."""
        self._check(images)
        return self.embed(normalise_rgb(images, CLIP_MEAN, CLIP_STD))


class ImageBindThermal(ImageBindBranch):
    """Thermal branch (ViT-B/16) for one-channel pictures, white = hot; no mean or deviation is subtracted.

    Arguments as for `ImageBindVision`.
    """

    branch = "thermal"
    channels = 1
    _stem, _bias_kv, _pre_norm = ThermalStem, True, False

    def __init__(
        self,
        width: int = 768,
        num_blocks: int = 12,
        num_heads: int = 12,
        joint_dim: int = 1024,
        patch_size: int = 16,
    ) -> None:
        super().__init__(width, num_blocks, num_heads, joint_dim, patch_size)

    def _postprocessor(self) -> nn.Module:
        return nn.Sequential(UnitLength(), LogitScale())

    def rows(self, images: Tensor, rows: str = "trunk") -> Tensor:
        """As `ImageBindVision.rows`, for pictures (B, 1, 224, 224): (B, 197, 768)."""
        self._check(images)
        return self.trunk_rows(images, rows)

    def embedding(self, images: Tensor) -> Tensor:
        """Joint embedding, float32 (B, 1024), officially of length 10; for pictures as in `rows`."""
        self._check(images)
        return self.embed(images)
