"""Faults in training (stage 2): sensors that are lost, and pictures or ids that are disturbed.

Everything is drawn from (seed, step, rank) alone, so a resumed run draws what an uninterrupted one would have
drawn, and dropout draws the same with and without corruption.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from multismolvla.corruption import TRAINING_TYPES
from multismolvla.corruption.soft import apply_soft
from multismolvla.corruption.tokens import TOKEN_TYPES, corrupt_tokens
from multismolvla.dropout import curriculum_share, dropout_probability, sample_presence, step_generator
from multismolvla.modalities import DEPTH_VALID, MODALITIES, Modality, token_key, valid_key
from multismolvla.tower import EncoderInputs, MultimodalTower


def dropout_p(cfg: MultiSmolVLAConfig) -> float:
    """Current probability of losing a modality."""
    return dropout_probability(
        cfg.curriculum_step,
        cfg.curriculum_steps,
        mode=cfg.dropout_mode,
        p_max=cfg.dropout_p_max,
        ramp=cfg.dropout_ramp,
        clean=cfg.dropout_clean,
    )


def drop_sensors(cfg: MultiSmolVLAConfig, available: Tensor, seed: int, rank: int) -> Tensor:
    """Presence bool (B, V, M) after the dropout curriculum.

    The clean last share shows what the robot will have, where that is declared, and nothing else.
    """
    deployment = deployed_streams(cfg)
    if deployment is not None and cfg.dropout_mode != "none" and in_clean_share(cfg):
        left = cfg.provenance_map.drop_with_rgb(available & deployment.to(available.device))
        return torch.where(left.flatten(1).any(1)[:, None, None], left, available)
    return sample_presence(
        available,
        dropout_p(cfg),
        step_generator(seed, cfg.curriculum_step, rank),
        shares=cfg.dropout_shares,
        deployment=deployment,
        complete_share=cfg.dropout_complete,
        consequence=cfg.provenance_map.drop_with_rgb,
    )


def in_clean_share(cfg: MultiSmolVLAConfig) -> bool:
    """Whether the stage has come to its last share, without random dropout."""
    share = curriculum_share(
        cfg.curriculum_step, cfg.curriculum_steps, ramp=cfg.dropout_ramp, clean=cfg.dropout_clean
    )
    return share is None


def deployed_streams(cfg: MultiSmolVLAConfig) -> Tensor | None:
    """What the robot will have, bool (V, M); ``None`` where that is not declared."""
    if not cfg.deployment:
        return None
    return torch.tensor([[f"{view}.{m}" in cfg.deployment for m in MODALITIES] for view in cfg.views])


def corruption_p(cfg: MultiSmolVLAConfig) -> float:
    """Current probability that a picture is disturbed: rises linearly, and is 0 in the clean last share."""
    ramp, clean = cfg.corruption_ramp, cfg.corruption_clean
    share = curriculum_share(
        cfg.curriculum_step, cfg.curriculum_steps, ramp=ramp, clean=clean, name="corruption"
    )
    return cfg.corruption_probability * (share or 0.0)


@dataclass(frozen=True)
class Corruption:
    """Which pictures of one step are disturbed, and how.

    Attributes:
        severity: int64 (B, V, M), 0 = left alone.
        seed: int64 (B, V, M), of each picture's own generator, which also draws the type.
    """

    severity: Tensor
    seed: Tensor

    def generator(self, b: int, v: int, m: int) -> torch.Generator:
        """A fresh generator of one picture."""
        return torch.Generator().manual_seed(int(self.seed[b, v, m]))


def draw_corruption(cfg: MultiSmolVLAConfig, presence: Tensor, seed: int, rank: int) -> Corruption | None:
    """Draw for each sample x view x modality that is there; ``None`` while nothing is disturbed."""
    p = corruption_p(cfg)
    if p == 0:
        return None
    generator = step_generator(seed, cfg.curriculum_step, rank, "corruption")
    there = presence.cpu()
    hit = torch.rand(there.shape, generator=generator) < p
    severity = torch.randint(1, cfg.corruption_max_severity + 1, there.shape, generator=generator)
    seeds = torch.randint(2**62, there.shape, generator=generator)
    severity = torch.where(hit & there, severity, 0)
    return Corruption(cfg.provenance_map.disturb_with_rgb(severity, there), seeds)


def corrupt_pictures(
    cfg: MultiSmolVLAConfig, batch: dict[str, Tensor], drawn: Corruption, tower: MultimodalTower
) -> dict[str, Tensor]:
    """Disturb pictures: RGB always, the other modalities where ``corruption_source`` is ``live``.

    Where the batch has ids beside a picture, those of the disturbed samples are made anew.

    Args:
        cfg: the configuration.
        batch: canonical; not changed.
        drawn: what to disturb.
        tower: tokenizes disturbed pictures.

    Raises:
        ValueError: a picture that is to be disturbed is not in the batch, only its ids are.
    """
    out = dict(batch)
    for v, (view, streams) in enumerate(cfg.views.items()):
        for modality, key in streams.items():
            m = MODALITIES.index(modality)
            chosen = drawn.severity[:, v, m].nonzero()[:, 0].tolist()
            live = modality == Modality.RGB or cfg.corruption_source == "live"
            if not chosen or not live or modality not in cfg.tower_modalities:
                continue
            if key not in batch:
                raise ValueError(
                    "--policy.corruption_source=live disturbs pictures, but the batch has only ids of "
                    f"{key}. Keep the pictures in the dataset, or set --policy.corruption_source=ids."
                )
            out[key] = batch[key].clone()
            valid = batch[valid_key(key)].clone() if valid_key(key) in batch else None
            for b in chosen:
                severity, generator = int(drawn.severity[b, v, m]), drawn.generator(b, v, m)
                seen = None if valid is None else valid[b]
                _corrupt_in_place(out[key][b], seen, modality, severity, generator, cfg.num_labels)
            picture = {modality: out[key][chosen]}
            if valid is not None:
                out[valid_key(key)], picture[DEPTH_VALID] = valid, valid[chosen]
            ids = token_key(view, modality)
            if ids in batch and not cfg.is_soft(modality):
                out[ids] = batch[ids].clone()
                made = tower.tokenize(modality, picture).to(out[ids])
                out[ids][chosen] = made.reshape(out[ids][chosen].shape)
    return out


def _corrupt_in_place(
    image: Tensor, valid: Tensor | None, modality: str, severity: int, generator: torch.Generator, labels: int
) -> None:
    """Disturb one picture. The fault functions draw on the CPU, hence the way there and back."""
    types = TRAINING_TYPES[modality]
    type_ = types[int(torch.randint(len(types), (), generator=generator))]
    mask = None if valid is None else valid.cpu()
    disturbed, seen = apply_soft(image.cpu(), mask, modality, type_, severity, generator, labels)
    image.copy_(disturbed)
    if valid is not None and seen is not None:
        valid.copy_(seen)


def corrupt_inputs(
    cfg: MultiSmolVLAConfig, inputs: EncoderInputs, drawn: Corruption, vocabularies: dict[str, int | None]
) -> EncoderInputs:
    """Disturb the tokens of depth, segmentation and thermal where ``corruption_source`` is ``ids``.

    The same fault strikes all domains of a stream.

    Args:
        cfg: the configuration.
        inputs: views folded into the batch axis; not changed.
        drawn: what to disturb.
        vocabularies: encoder domain -> number of ids, ``None`` = rows of numbers.
    """
    if cfg.corruption_source != "ids":
        return inputs
    values, present = dict(inputs.values), dict(inputs.present)
    for modality, domains in inputs.domains.items():
        m = MODALITIES.index(modality)
        for domain in domains:
            if modality == Modality.RGB or domain not in values:
                continue
            values[domain], present[domain] = values[domain].clone(), present[domain].clone()
            for b, v in drawn.severity[:, :, m].nonzero().tolist():
                generator = drawn.generator(b, v, m)
                type_ = TOKEN_TYPES[int(torch.randint(len(TOKEN_TYPES), (), generator=generator))]
                row, severity = b * len(cfg.views) + v, int(drawn.severity[b, v, m])
                values[domain][row], present[domain][row] = corrupt_tokens(
                    values[domain][row],
                    present[domain][row],
                    vocabularies[domain],
                    type_,
                    severity,
                    generator,
                )
    return EncoderInputs(values, present, inputs.domains)
