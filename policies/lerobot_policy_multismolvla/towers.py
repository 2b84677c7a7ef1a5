"""Build tower and bridge from the configuration; the core's modules take plain values."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from lerobot_policy_multismolvla.checkpoints import tensors_hash
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from multismolvla import weights
from multismolvla.connector import GridConnector, VisualBridge
from multismolvla.fourm import FourMEncoder
from multismolvla.fourm.soft import SOFT_PREFIX, add_soft_modality, soft_modality
from multismolvla.fusion import GatedFusion
from multismolvla.tokenizers import make_tokenizers
from multismolvla.tokenizers.factory import LazyTokenizer
from multismolvla.tokenizers.recipe import split_domains
from multismolvla.tower import MultimodalTower

logger = logging.getLogger(__name__)

_SOFT_GRID = (14, 14)
_OFFICIAL_SOFT_WIDTH = 768  # of ImageBind-Huge's thermal branch
#: A soft thermal modality starts from this one's embedding: what 4M-21 learned about ImageBind's features.
_KINDRED = "tok_imagebind@224"


def build_tower(cfg: MultiSmolVLAConfig) -> MultimodalTower:
    """Load the frozen encoder and check that it is the one the configuration was trained with.

    Raises:
        ValueError: the encoder's tensors hash to something else than ``cfg.encoder_hash``, or a tokenizer's
            weights to something else than ``cfg.tokenizer_hashes``.
    """
    domains = {m: split_domains(cfg.domains[m]) for m in cfg.tower_modalities}
    names = [d for several in domains.values() for d in several]
    encoder = FourMEncoder.from_pretrained(
        cfg.encoder, [d for d in names if not d.startswith(SOFT_PREFIX)], revision=cfg.encoder_revision
    )
    found = tensors_hash(encoder)
    if cfg.encoder_hash is None:
        cfg.encoder_hash = found
    elif cfg.encoder_hash != found:
        raise ValueError(
            f"The encoder at {cfg.encoder!r} hashes to {found[:12]}…, but this policy was trained with "
            f"{cfg.encoder_hash[:12]}…. Point --policy.encoder at the original weights, or set "
            "--policy.encoder_hash=null to retrain the connector."
        )
    for name in names:
        if name.startswith(SOFT_PREFIX):
            _add_soft(cfg, encoder, name)
    infos = {m: [encoder.modality(d) for d in several] for m, several in domains.items()}
    unread = cfg.cached_modalities
    tokenizers = make_tokenizers(
        cfg.tokenizers,
        infos,
        cfg.num_labels,
        image_size=cfg.image_size,
        official=cfg.official_options(),
        fingerprints=cfg.tokenizer_hashes,
        unread=unread,
    )
    for modality, tokenizer in tokenizers.items():
        if isinstance(tokenizer, LazyTokenizer) and modality not in unread:
            cfg.tokenizer_hashes |= tokenizer.check_fingerprints()
    joined = {m: "+".join(several) for m, several in domains.items()}
    return MultimodalTower(encoder, joined, tokenizers, cfg.image_size, cfg.square)


def _add_soft(cfg: MultiSmolVLAConfig, encoder: FourMEncoder, name: str) -> None:
    if cfg.tokenizers != "official" or cfg.thermal_route != "soft":
        raise ValueError(
            f"The domain {name!r} takes rows of numbers, which only --policy.tokenizers=official with "
            f"thermal_route=soft makes (here: {cfg.tokenizers}, {cfg.thermal_route})."
        )
    if cfg.soft_width is None:
        from multismolvla.thermal.imagebind_checkpoint import branch_sizes

        sizes = branch_sizes(weights.find_weights(cfg.imagebind), "thermal")  # leaves official values out
        cfg.soft_width = sizes.get("width", _OFFICIAL_SOFT_WIDTH)
    add_soft_modality(
        encoder, soft_modality(name, _SOFT_GRID, cfg.soft_width), mod_emb=_kindred_embedding(cfg, encoder)
    )


def _kindred_embedding(cfg: MultiSmolVLAConfig, encoder: FourMEncoder) -> Tensor | None:
    """``tok_imagebind@224``'s modality embedding (1, 1, D), where the encoder's file has it."""
    _, file = weights.locate(cfg.encoder, revision=cfg.encoder_revision)
    key = f"encoder_embeddings.{_KINDRED}.mod_emb"
    if key not in weights.stored_keys(file):
        logger.info("%s has no %s: the soft thermal modality starts from a random embedding.", file, key)
        return None
    shape = torch.empty(1, 1, encoder.config.dim, device="meta")
    return weights.read_weights(file, {key: shape}, dtype=torch.float32)[key]


def build_bridge(cfg: MultiSmolVLAConfig, tower: MultimodalTower, out_dim: int) -> VisualBridge:
    """Fusion and connector for a tower, ending at the language model's width."""
    dim = tower.encoder.config.dim
    fusion = GatedFusion(dim, tower.fused_modalities, cfg.fusion_grid)
    connector = GridConnector(
        dim, out_dim, cfg.connector_grid, cfg.connector_unshuffle, cfg.connector_hidden, bool(tower.gridless)
    )
    views = tuple(cfg.views) if cfg.view_embedding else ()
    return VisualBridge(fusion, connector, views, tower.gridless)
