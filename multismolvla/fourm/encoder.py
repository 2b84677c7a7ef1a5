"""The 4M-21 transformer encoder with exact absence.

A missing modality, sensor or patch is *no token*: it is neither a key nor a row. Two ways compute that:
    absent
tokens are dropped and the rest packed (fast), or all stay in place behind a key mask (static shapes). The
numbers agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from multismolvla import weights
from multismolvla.fourm.blocks import EncoderBlock, GatedMLP, MaskedAttention, Packing, ScaleNorm, pack
from multismolvla.fourm.config import FourMConfig
from multismolvla.fourm.embeddings import FourMEmbedding
from multismolvla.fourm.modality import FourMModality


class FourMEncoder(nn.Module):
    """Encoder of 4M-21 with embeddings for the chosen modalities only.

    Example:
        >>> names = ("rgb@224", "tok_depth@224")
        >>> encoder = FourMEncoder(FourMConfig(dim=32, encoder_depth=1, num_heads=2, domains_in=names), names)
        >>> rgb, depth = torch.rand(2, 3, 224, 224), torch.zeros(2, 14, 14, dtype=torch.long)
        >>> there = torch.tensor([True, False])  # the second sample has no depth sensor
        >>> out = encoder({"rgb@224": rgb, "tok_depth@224": depth}, {"tok_depth@224": there})
        >>> out["tok_depth@224"].shape
        torch.Size([2, 196, 32])

    Args:
        config: sizes and known modalities.
        modalities: domain names to build embeddings for; each must be in ``config.domains_in``.
        generator: source of the random weights; ``None`` = PyTorch's global one. Under
            ``torch.device("meta")`` nothing is drawn.

    Raises:
        ValueError: no modality, a doubled one, or one the config does not have.
    """

    def __init__(
        self, config: FourMConfig, modalities: Sequence[str], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        names = tuple(modalities)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"FourMEncoder needs one or more different modalities; got {list(names)}.")
        self.config = config
        self.modalities = names
        self.encoder_embeddings = nn.ModuleDict(
            {name: FourMEmbedding(config.modality(name), config.dim) for name in names}
        )
        sizes = (config.dim, config.num_heads, config.mlp_hidden)
        self.encoder = nn.ModuleList(EncoderBlock(*sizes) for _ in range(config.encoder_depth))
        self.encoder_norm = ScaleNorm(config.dim)
        if not self.encoder_norm.weight.is_meta:
            self.init_weights(generator)

    # ------------------------------------------------------------------ weights

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Draw new weights: truncated normal (cut at two ``std``), norm scales one, positions recomputed."""
        for module in self.modules():
            if isinstance(module, FourMEmbedding):
                module.init_weights(generator, std)
            elif isinstance(module, ScaleNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, MaskedAttention | GatedMLP):
                for parameter in module.parameters():
                    nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)

    @classmethod
    def from_pretrained(
        cls,
        repo_or_dir: str | Path,
        modalities: Sequence[str],
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> FourMEncoder:
        """Load an encoder from an official-format folder or hub repository, reading only the needed tensors.

        Args:
            repo_or_dir: folder with ``config.json`` and ``model.safetensors``, or a hub id such as
                ``"EPFL-VILAB/4M-21_B"`` (weights for non-commercial use only).
            modalities: domain names to load, official spelling.
            revision: commit, branch or tag on the hub.
            dtype: dtype of the weights; ``None`` = as stored (float32 officially).
            device: where to put them; ``None`` = CPU.

        Returns:
            The encoder in evaluation mode, with gradients enabled on its parameters.

        Raises:
            FileNotFoundError: neither folder nor cache nor hub has the files; the message says how to get
                them.
            ValueError: config or weights do not fit; the first bad key is named.
        """
        config_file, tensors = weights.locate(repo_or_dir, revision=revision)
        config = FourMConfig.from_json(config_file)
        with torch.device("meta"):
            encoder = cls(config, modalities)
        state = weights.read_weights(
            tensors, encoder.state_dict(), dtype=dtype, device=device, check=_check_bias
        )
        encoder.load_state_dict(state, strict=True, assign=True)
        return encoder.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` with official field and key names.

        The config lists the modalities of this encoder and no decoder. Each file appears complete or not at
        all.
        """
        weights.write(directory, self.config.restricted_to(self.modalities).to_dict(), self.state_dict())

    # ------------------------------------------------------------------ forward

    def modality(self, name: str) -> FourMModality:
        """Grid, vocabulary and kind of one of this encoder's modalities."""
        return self._embedding(name).info

    def grid(self, name: str) -> tuple[int, int]:
        """(rows, columns) of a modality's tokens; (1, N) for one without a grid."""
        info = self.modality(name)
        return info.grid or (1, info.num_tokens)

    def embed(
        self, inputs: Mapping[str, Tensor], presence: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Encoder input rows: content + position + modality.

        Args:
            inputs: as for `forward`.
            presence: as for `forward`; needed here because text positions count present tokens only.

        Returns:
            {modality: (B, N, D)}, zero rows where not present.
        """
        masks = self._masks(inputs, presence)
        return {name: self._embedding(name)(values, masks[name]) for name, values in inputs.items()}

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        presence: Mapping[str, Tensor] | None = None,
        *,
        drop_absent: bool = True,
    ) -> dict[str, Tensor]:
        """Encode the modalities that are there; the others do not exist for the network.

        Args:
            inputs: {modality: values}. Pixels: float (B, 3, H, W) in [0, 1]; tokens: integer (B, N) or (B, h,
                w); vectors: float (B, N, width). A modality left out is absent. Values of absent tokens may
                be anything, NaN included.
            presence: {modality: bool (B,), (B, N) or (B, h, w)}, True = there; a modality left out is
                present.
            drop_absent: drop absent tokens physically (fast, dynamic shapes) instead of masking them as keys
                (static shapes, for graph capture). Same numbers.

        Returns:
            {modality: (B, N, D)} for each modality in ``inputs``; exact zeros where not present, so also for
            a sample that has nothing at all.

        Raises:
            ValueError: unknown modality, wrong shape or dtype, different batch sizes.
        """
        x, valid, lengths = self._concatenate(inputs, presence)
        if valid is None:
            y = self._run(x, None, None)
        elif drop_absent:
            y = self._encode_packed(x, valid)
        else:
            # A sample without any key would give NaN; it attends to its zero rows instead and is zeroed
            # below.
            keys = valid | ~valid.any(dim=1, keepdim=True)
            y = self._run(x, keys[:, None, None], None)
            y = torch.where(valid[..., None], y, torch.zeros_like(y))
        return dict(zip(inputs, torch.split(y, lengths, dim=1), strict=True))

    def _embedding(self, name: str) -> FourMEmbedding:
        if name not in self.encoder_embeddings:
            raise ValueError(
                f"This encoder was built without modality {name!r}; it has {list(self.modalities)}. Add it "
                "to `modalities` when the encoder is made."
            )
        return self.encoder_embeddings[name]  # type: ignore[return-value]

    def _masks(
        self, inputs: Mapping[str, Tensor], presence: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor | None]:
        """Presence as bool (B, N) per input modality, ``None`` where not given."""
        if not inputs:
            raise ValueError("FourMEncoder got no modality at all, so that even the batch size is unknown.")
        given = presence or {}
        for name in given:
            self._embedding(name)
        batch = next(iter(inputs.values())).shape[0]
        masks: dict[str, Tensor | None] = dict.fromkeys(inputs)
        for name, values in inputs.items():
            info = self.modality(name)
            if values.shape[0] != batch:
                raise ValueError(f"{name!r} has batch size {values.shape[0]}, the first modality {batch}.")
            if name not in given:
                continue
            mask = given[name]
            length = values.shape[1] if info.text_like else info.num_tokens
            flat = mask.flatten(1) if mask.ndim > 1 else mask[:, None].expand(-1, length)
            if mask.dtype != torch.bool or tuple(flat.shape) != (batch, length):
                raise ValueError(
                    f"presence[{name!r}] is {mask.dtype} {tuple(mask.shape)}; expected bool ({batch},) or "
                    f"({batch}, {length}), True = there."
                )
            masks[name] = flat
        return masks

    def _concatenate(
        self, inputs: Mapping[str, Tensor], presence: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Tensor | None, list[int]]:
        """Rows (B, S, D), presence bool (B, S) or ``None`` for all, and the number of tokens per modality."""
        masks = self._masks(inputs, presence)
        rows = [self._embedding(name)(values, masks[name]) for name, values in inputs.items()]
        lengths = [r.shape[1] for r in rows]
        x = torch.cat(rows, dim=1)
        if all(mask is None for mask in masks.values()):
            return x, None, lengths
        parts = [
            torch.ones(r.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            for r, mask in zip(rows, masks.values(), strict=True)
        ]
        return x, torch.cat(parts, dim=1), lengths

    def _encode_packed(self, x: Tensor, valid: Tensor) -> Tensor:
        """Encode the present tokens of ``x`` (B, S, D) only; zeros elsewhere."""
        packing = pack(valid)
        if packing is None:
            return torch.zeros_like(x)
        if len(packing.source) == valid.numel():
            return self._run(x, None, None)
        flat = x.flatten(0, 1)  # (B * S, D)
        y = self._run(flat[packing.source], None, packing)  # (T, D)
        return torch.zeros_like(flat, dtype=y.dtype).index_copy(0, packing.source, y).view(*valid.shape, -1)

    def _run(self, x: Tensor, key_mask: Tensor | None, packing: Packing | None) -> Tensor:
        for block in self.encoder:
            x = block(x, key_mask, packing)
        rows: Tensor = self.encoder_norm(x)
        return rows


def _check_bias(key: str, value: Tensor) -> str | None:
    """The norms' stored biases are all-zero buffers; anything else is another model."""
    if key.endswith(("norm.bias", "norm1.bias", "norm2.bias")) and bool(value.any()):
        return "is not zero, although norm_bias is false. The file is no official 4M-21 one."
    return None
