"""The official 4M tokenizers: pictures and feature maps to token ids (encoder half and codebook only).

Read from the files at `multismolvla.pretrained.TOKENIZER_SOURCES` (EPFL and Apple "Sample Code License",
non-commercial use only). Depth and segmentation take pictures and give 14x14 ids at 224 pixels; the two
ImageBind ones take feature maps (16x16 ids) and single vectors (16 ids).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multismolvla import weights
from multismolvla.checks import check_picture, checked_validity, shape_and_dtype
from multismolvla.pretrained import TOKENIZER_SOURCES
from multismolvla.tokenizers.depth import prepare_depth
from multismolvla.tokenizers.labels import LabelTable
from multismolvla.tokenizers.quantize import CosineCodebook, MemoryCodes
from multismolvla.tokenizers.recipe import NUM_OFFICIAL_LABELS
from multismolvla.tokenizers.vit import BottleneckMLP, KeepFloat32, ViTEncoder, full_float32
from multismolvla.tokenizers.vq_config import VQConfig
from multismolvla.tokenizers.weight_free import MIN_VALID, check_depth


class QuantProjection(KeepFloat32, nn.Conv2d):
    """The 1x1 convolution into the codebook's space."""


class VQTokenizer(nn.Module):
    """One official tokenizer; frozen.

    Example:
        >>> depth = VQTokenizer.from_pretrained("EPFL-VILAB/4M_tokenizers_depth_8k_224-448")  # doctest: +SKIP
        >>> depth.encode_ids(standardised).shape  # (B, 1, 224, 224) -> int64  # doctest: +SKIP
        torch.Size([2, 14, 14])

    Args:
        config: sizes. The weights are zero until a state is loaded.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: ViTEncoder | BottleneckMLP
        self.quantize: CosineCodebook | MemoryCodes
        if config.n_labels is not None:
            self.cls_emb = nn.Embedding(config.n_labels, config.n_channels)
        if config.is_mlp:
            depth, dim = config.mlp_sizes
            self.encoder = BottleneckMLP(config.n_channels, dim, depth)
            self.quantize = MemoryCodes(config.codebook_size, config.num_codebooks, config.latent_dim)
        else:
            dim, depth, heads = config.vit_sizes
            table = config.image_size // config.patch_size
            self.encoder = ViTEncoder(config.n_channels, dim, depth, heads, self.patch_size, table)
            self.quantize = CosineCodebook(config.codebook_size, config.latent_dim)
        self.quant_proj = QuantProjection(dim, config.latent_dim, 1)
        self.requires_grad_(False).eval()

    @property
    def patch_size(self) -> int:
        """Side in input pixels (or feature cells) of one token."""
        return self.config.patch_size if self.config.patch_proj and not self.config.is_mlp else 1

    @classmethod
    def from_pretrained(
        cls,
        repo_or_dir: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> VQTokenizer:
        """Load the encoder half and the codebook from an official-format folder or hub repository.

        Args:
            repo_or_dir: folder with ``config.json`` and ``model.safetensors``, or a hub id.
            dtype: of the transformer blocks; ``None`` = float32. Codebook, the projection into its space and
                the MLP in front of that stay float32. A narrower dtype changes some ids; cached and live ones
                must come from the same. Autocast and TF32 around a call change nothing.
            device: where to put them; ``None`` = CPU.

        Returns:
            The tokenizer, frozen, in evaluation mode.

        Raises:
            FileNotFoundError: neither folder nor cache nor hub has the files; the message says how to get
                them.
            ValueError: config or weights do not fit; the first bad key is named.
        """
        config_file, tensors = weights.locate(repo_or_dir)
        config = VQConfig.from_dict(weights.read_json(config_file), str(config_file))
        with torch.device("meta"):
            tokenizer = cls(config)
        state = weights.read_weights(tensors, tokenizer.state_dict(), dtype=torch.float32, device=device)
        tokenizer.load_state_dict(state, strict=True, assign=True)
        return tokenizer.requires_grad_(False).to(dtype=dtype)

    def latent(self, x: Tensor) -> Tensor:
        """Latent before the codebook lookup.

        Args:
            x: float (B, C, H, W) with sides that are multiples of the patch size; for segmentation integer
                (B, H, W) in [0, n_labels); for single vectors (B, C) or (B, C, 1, 1).

        Returns:
            float32 (B, latent_dim, h, w).

        Raises:
            ValueError: wrong shape or dtype, or a class id outside the label set.
        """
        self._check(x)
        with full_float32(x.device):
            if self.config.n_labels is not None:
                x = self.cls_emb(x.long()).movedim(-1, 1)
            if not isinstance(self.encoder, BottleneckMLP):
                x = x.to(self.encoder.proj.weight.dtype)
            latent: Tensor = self.quant_proj(self.encoder(x))
        return latent

    @torch.no_grad()
    def encode_ids(self, x: Tensor) -> Tensor:
        """Token ids: int64 (B, h, w); (B, num_codebooks) for single vectors. Input as for `latent`.

        Raises:
            ValueError: as `latent`; NaN or infinite input, for which any id would be returned otherwise.
        """
        latent = self.latent(x)
        if not bool(latent.isfinite().all()):
            raise ValueError(
                "4M tokenizer: the latents are NaN or infinite. Expected finite input; features computed in "
                "float16 may have overflowed, use float32 or bfloat16."
            )
        ids: Tensor = self.quantize(latent)
        return ids

    def _check(self, x: Tensor) -> None:
        config, channels = self.config, self.config.n_channels
        got = f"4M tokenizer: got {shape_and_dtype(x)}; expected"
        if config.n_labels is not None:
            if x.ndim != 3 or x.is_floating_point() or x.dtype == torch.bool:
                raise ValueError(f"{got} integer class ids (B, H, W).")
            low, high = (int(v) for v in x.aminmax()) if x.numel() else (0, 0)
            if low < 0 or high >= config.n_labels:
                raise ValueError(
                    f"4M tokenizer: class id {low if low < 0 else high} is outside the label set of "
                    f"{config.n_labels} (0 = none, then COCO panoptic + 1). Map the source's ids with a "
                    "label table first (multismolvla.tokenizers.labels.LabelTable)."
                )
        elif config.is_mlp:
            if not x.is_floating_point() or x.shape[1:] not in ((channels,), (channels, 1, 1)):
                raise ValueError(f"{got} floating (B, {channels}) or (B, {channels}, 1, 1).")
            return
        elif x.ndim != 4 or not x.is_floating_point() or x.shape[1] != channels:
            raise ValueError(f"{got} floating (B, {channels}, H, W).")
        if any(side == 0 or side % self.patch_size for side in x.shape[-2:]):
            raise ValueError(f"{got} sides that are multiples of {self.patch_size}. Resize the picture.")


class _OfficialImageTokenizer:
    """Common part of the two `ImageTokenizer` wrappers.

    Args:
        vq: the tokenizer.
        image_size: side or (height, width) in pixels of the pictures, a multiple of the patch size; decides
            `grid`.
    """

    def __init__(self, vq: VQTokenizer, image_size: int | tuple[int, int] = 224) -> None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if any(side < 1 or side % vq.patch_size for side in size):
            raise ValueError(
                f"{type(self).__name__}: image_size {image_size} must be a multiple of {vq.patch_size} "
                "pixels."
            )
        self.vq, self.image_size = vq, size
        self.grid: tuple[int, int] = (size[0] // vq.patch_size, size[1] // vq.patch_size)
        self.vocab_size = vq.config.codebook_size

    def _check(self, modality: str, image: Tensor, valid: Tensor | None, floating: bool) -> Tensor:
        """Check shapes and dtypes; returns validity as bool (B, 1, H, W)."""
        name = f"{modality} tokenizer"
        check_picture(name, image, 1, floating=floating)
        if tuple(image.shape[2:]) != self.image_size:
            raise ValueError(
                f"{name}: got a picture {tuple(image.shape[2:])}; its grid {self.grid} needs "
                f"{self.image_size}. Resize the picture, or make the tokenizer with another image_size."
            )
        return checked_validity(name, image, valid)


class OfficialDepthTokenizer(_OfficialImageTokenizer):
    """Metric depth to the official depth ids.

    Args:
        vq: the official depth tokenizer (or one of its shape).
        image_size: side or (height, width) in pixels of the pictures, a multiple of 16; grid 14x14 for 224.

    Raises:
        ValueError: a tokenizer for another modality.
    """

    def __init__(self, vq: VQTokenizer, image_size: int | tuple[int, int] = 224) -> None:
        _expect(vq, "depth", n_channels=1, n_labels=None, patch_proj=True)
        super().__init__(vq, image_size)

    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize depth; see `multismolvla.tokenizers.depth` for the preparation.

        Args:
            image: floating (B, 1, H, W), metres, larger = farther; 0 = no measurement. Never disparity.
            valid: bool (B, 1, H, W), True = usable; pixels of 0 are never usable.

        Returns:
            ids int64 (B, h, w); present bool (B, h, w), False below 25 % usable pixels.

        Raises:
            ValueError: wrong shape or dtype, or a valid pixel is NaN, infinite, negative or beyond 1000 m.
        """
        usable = self._check("depth", image, valid, floating=True)
        check_depth(image[usable])
        usable = usable & (image > 0)
        ids = self.vq.encode_ids(prepare_depth(image, usable))
        share = F.avg_pool2d(usable.float(), self.vq.patch_size)[:, 0]
        return ids, share >= MIN_VALID


class OfficialSegTokenizer(_OfficialImageTokenizer):
    """COCO panoptic classes to the official segmentation ids.

    Args:
        vq: the official segmentation tokenizer (or one of its shape).
        image_size: side or (height, width) in pixels of the pictures, a multiple of 16; grid 14x14 for 224.
        table: from the pictures' class ids to the tokenizer's; ``None`` = they are the same.

    Raises:
        ValueError: a tokenizer for another modality or label set.
    """

    def __init__(
        self, vq: VQTokenizer, image_size: int | tuple[int, int] = 224, table: LabelTable | None = None
    ) -> None:
        _expect(vq, "segmentation", n_labels=NUM_OFFICIAL_LABELS, patch_proj=True)
        super().__init__(vq, image_size)
        self.table = table

    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize class ids.

        Args:
            image: integer (B, 1, H, W): the table's ids; without one 0 = none, 1...133 = COCO panoptic class
                + 1.
            valid: bool (B, 1, H, W); ``None`` = all. Other pixels become "none", which the tokenizer knows.

        Returns:
            ids int64 (B, h, w); present bool (B, h, w), always True.

        Raises:
            ValueError: wrong shape or dtype, or a label is outside the label set.
        """
        if self.table is not None:
            image = self.table.map_ids(image)
        usable = self._check("segmentation", image, valid, floating=False)
        ids = self.vq.encode_ids(torch.where(usable, image, torch.zeros_like(image))[:, 0])
        return ids, torch.ones_like(ids, dtype=torch.bool)


def _expect(vq: VQTokenizer, purpose: str, **wanted: object) -> None:
    """Refuse a tokenizer that was made for something else, by the first field that differs."""
    for name, value in wanted.items():
        found = getattr(vq.config, name)
        if found != value:
            raise ValueError(
                f"This 4M tokenizer is not one for {purpose}: its config says {name} = {found!r}, expected "
                f"{value!r}. Official ones: {TOKENIZER_SOURCES}."
            )
