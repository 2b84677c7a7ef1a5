"""Builders: from the configuration's plain values to tower and bridge. Core modules never see a configuration object."""

from __future__ import annotations

from multismolvla.connector import GatedFusion, GridConnector, VisualBridge
from multismolvla.fourm import FourMEncoder
from multismolvla.tokenizers import make_tokenizers
from multismolvla.tower import MultimodalTower

from .checkpoints import tensors_hash
from .configuration_multismolvla import MultiSmolVLAConfig


def build_tower(cfg: MultiSmolVLAConfig) -> MultimodalTower:
    """Load the frozen encoder and check that it is the one the configuration was trained with.

    Raises:
        ValueError: the encoder's tensors hash to something else than ``cfg.encoder_hash``.
    """
    domains = {m: cfg.domains[m] for m in cfg.tower_modalities}
    encoder = FourMEncoder.from_pretrained(cfg.encoder, list(domains.values()), revision=cfg.encoder_revision)
    found = tensors_hash(encoder)
    if cfg.encoder_hash is None:
        cfg.encoder_hash = found
    elif cfg.encoder_hash != found:
        raise ValueError(
            f"The encoder at {cfg.encoder!r} hashes to {found[:12]}…, but this policy was trained with {cfg.encoder_hash[:12]}…. "
            "Point --policy.encoder at the original weights, or set --policy.encoder_hash=null to retrain the connector."
        )
    infos = {m: encoder.modality(d) for m, d in domains.items()}
    tokenizers = make_tokenizers(cfg.tokenizers, infos, cfg.num_labels)
    return MultimodalTower(encoder, domains, tokenizers, cfg.image_size, cfg.square)


def build_bridge(cfg: MultiSmolVLAConfig, tower: MultimodalTower, out_dim: int) -> VisualBridge:
    """Fusion and connector for a tower, ending at the language model's width."""
    dim = tower.encoder.config.dim
    fusion = GatedFusion(dim, [m for m in tower.domains if not tower.is_global(m)], cfg.fusion_grid)
    connector = GridConnector(
        dim, out_dim, cfg.connector_grid, cfg.connector_unshuffle, cfg.connector_hidden, tower.num_globals > 0
    )
    return VisualBridge(fusion, connector)
