"""Builders: from the configuration's plain values to tower and bridge. Core modules never see a configuration object."""

from __future__ import annotations

from multismolvla.connector import GatedFusion, GridConnector, VisualBridge
from multismolvla.fourm import FourMEncoder
from multismolvla.modalities import Modality
from multismolvla.tokenizers import (
    ImageTokenizer,
    PatchDepthTokenizer,
    QuadrantSegTokenizer,
    ThermalGridTokenizer,
)
from multismolvla.tower import MultimodalTower

from .checkpoints import tensors_hash
from .configuration_multismolvla import MultiSmolVLAConfig


def build_tokenizers(cfg: MultiSmolVLAConfig, encoder: FourMEncoder) -> dict[str, ImageTokenizer]:
    """Tokenizers for the tower's modalities, checked against the encoder's grids and vocabularies.

    Raises:
        ValueError: a tokenizer's grid or vocabulary does not fit the encoder's domain.
    """
    made: dict[str, ImageTokenizer] = {}
    for modality in cfg.tower_modalities:
        if modality == Modality.RGB:
            continue
        domain = cfg.domains[modality]
        info = encoder.modality(domain)
        if info.grid is None:
            raise ValueError(
                f"The {cfg.tokenizers!r} tokenizer for {modality} needs a domain with a grid; {domain!r} has none."
            )
        side = info.grid[0]
        tokenizer: ImageTokenizer
        if modality == Modality.DEPTH:
            tokenizer = PatchDepthTokenizer(grid=side)
        elif modality == Modality.SEG:
            tokenizer = QuadrantSegTokenizer(grid=side, num_labels=cfg.num_labels)
        else:
            tokenizer = ThermalGridTokenizer(grid=side)
        if info.vocab is None or tokenizer.vocab_size > info.vocab:
            raise ValueError(
                f"The {cfg.tokenizers!r} tokenizer for {modality} makes ids up to {tokenizer.vocab_size - 1}, but the encoder's "
                f"{domain!r} knows {info.vocab}. The weight-free tokenizers belong to the mini preset's encoder; "
                "official 4M-21 weights need the official tokenizers."
            )
        made[modality] = tokenizer
    return made


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
    return MultimodalTower(encoder, domains, build_tokenizers(cfg, encoder), cfg.image_size, cfg.square)


def build_bridge(cfg: MultiSmolVLAConfig, tower: MultimodalTower, out_dim: int) -> VisualBridge:
    """Fusion and connector for a tower, ending at the language model's width."""
    dim = tower.encoder.config.dim
    fusion = GatedFusion(dim, [m for m in tower.domains if not tower.is_global(m)], cfg.fusion_grid)
    connector = GridConnector(
        dim, out_dim, cfg.connector_grid, cfg.connector_unshuffle, cfg.connector_hidden, tower.num_globals > 0
    )
    return VisualBridge(fusion, connector)
