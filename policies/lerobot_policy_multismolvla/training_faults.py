"""Faults in training (stage 2): sensors that are lost, and pictures or ids that are disturbed.

Everything is drawn from (seed, step, rank) alone, so a resumed run draws what an uninterrupted one would have
drawn, and dropout draws the same with and without corruption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.derived import derived_streams
from multismolvla.corruption import TRAINING_TYPES
from multismolvla.corruption.soft import apply_soft
from multismolvla.corruption.tokens import corrupt_tokens
from multismolvla.corruption.training import corrupt_rgb
from multismolvla.dropout import curriculum_share, dropout_probability, sample_presence, step_generator
from multismolvla.modalities import DEPTH_VALID, MODALITIES, Modality, token_key, valid_key
from multismolvla.tower import EncoderInputs, MultimodalTower

_CPU = torch.device("cpu")


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


def check_dropout(cfg: MultiSmolVLAConfig) -> None:
    """See that vanilla SmolVLA is asked for no dropout that cannot reach it.

    Raises:
        ValueError: in a connector, which it has not, or of whole modalities, where it reads RGB alone.
    """
    if cfg.uses_fourm:
        return
    if cfg.connector_dropout:
        raise ValueError(
            f"--policy.connector_dropout={cfg.connector_dropout} is not supported with "
            "--policy.vision_tower=siglip, which has no connector: lose cameras in --policy.stage=robust."
        )
    if cfg.stage == "robust" and cfg.drops and cfg.dropout_modalities:
        raise ValueError(
            f"--policy.dropout_modalities={cfg.dropout_modalities} is not supported with "
            "--policy.vision_tower=siglip, which reads RGB alone: set it to 0 and lose cameras by "
            "--policy.dropout_cameras=1, or nothing by --policy.dropout_mode=none."
        )


def drop_sensors(cfg: MultiSmolVLAConfig, available: Tensor, seed: int, rank: int) -> Tensor:
    """Presence bool (B, V, M) after the dropout curriculum, which begins from what a look would show.

    The clean last share shows what the robot will have, where that is declared, and nothing else.
    """
    available = between_looks(cfg, available, seed, rank)
    deployment = deployed_streams(cfg)
    if deployment is not None and in_clean_share(cfg):
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


def drop_for_connector(cfg: MultiSmolVLAConfig, available: Tensor, seed: int, rank: int) -> Tensor:
    """Presence bool (B, V, M) in stage 1: modalities are lost, cameras are not.

    Of a lost camera there is nothing to distil, and the frozen rest learns nothing of it. A quarter of the
    samples stays complete.
    """
    return sample_presence(
        available,
        cfg.connector_dropout,
        step_generator(seed, cfg.curriculum_step, rank, "connector-dropout"),
        shares={"independent": 0.5, "modalities": 0.5},
        complete_share=0.25,
        consequence=cfg.provenance_map.drop_with_rgb,
    )


def between_looks(cfg: MultiSmolVLAConfig, available: Tensor, seed: int, rank: int) -> Tensor:
    """Without the streams that are estimated at every k-th look only, as at a look drawn for each sample.

    All of an episode's looks are counted from its first one, so what comes at every fourth look comes
    together with what comes at every second. With ``policy.refresh_between=reuse`` nothing changes: a sample
    has no earlier frames to reuse.
    """
    if cfg.refresh_between == "reuse" or not cfg.refresh:
        return available
    generator = step_generator(seed, cfg.curriculum_step, rank, "refresh")
    looks = torch.randint(math.lcm(*cfg.refresh.values()), (len(available),), generator=generator)
    left = available.clone()
    for modality, every in cfg.refresh.items():
        looked = (looks % every == 0).to(left.device)
        for v, m in cfg.provenance_map.derived():
            if MODALITIES[m] == modality:
                left[:, v, m] &= looked
    return left


def in_clean_share(cfg: MultiSmolVLAConfig) -> bool:
    """Whether the stage has come to its last share, without random dropout."""
    share = curriculum_share(
        cfg.curriculum_step, cfg.curriculum_steps, ramp=cfg.dropout_ramp, clean=cfg.dropout_clean
    )
    return share is None


def deployed_streams(cfg: MultiSmolVLAConfig) -> Tensor | None:
    """What the robot will have, bool (V, M); ``None`` where that is not declared.

    That is also what the policy estimates there of an RGB that is declared.
    """
    if not cfg.deployment:
        return None
    there = torch.tensor([[f"{view}.{m}" in cfg.deployment for m in MODALITIES] for view in cfg.views])
    for stream in derived_streams(cfg):
        there[stream.view, stream.modality] |= there[stream.view, MODALITIES.index(Modality.RGB)]
    return there


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
        kind: float (B, V, M) in [0, 1), which type of fault, evenly.
        seed: of what the faults draw.
    """

    severity: Tensor
    kind: Tensor
    seed: int

    def generator(self, place: str, device: torch.device) -> torch.Generator:
        """A fresh generator of one place, e.g. a stream."""
        seed = step_generator(self.seed, 0, purpose=f"corruption of {place}").initial_seed()
        return torch.Generator(device).manual_seed(seed)


def draw_corruption(cfg: MultiSmolVLAConfig, presence: Tensor, seed: int, rank: int) -> Corruption | None:
    """Draw for each sample x view x modality that is there and read; ``None`` while nothing is disturbed.

    What is derived of an RGB that is disturbed has no fault of its own, see `seen_beside`.
    """
    p = corruption_p(cfg)
    if p == 0:
        return None
    generator = step_generator(seed, cfg.curriculum_step, rank, "corruption")
    there = presence.cpu()
    hit = torch.rand(there.shape, generator=generator) < p
    severity = torch.randint(1, cfg.corruption_max_severity + 1, there.shape, generator=generator)
    kind = torch.rand(there.shape, generator=generator)
    own = int(torch.randint(2**62, (), generator=generator))
    read = torch.tensor([m in cfg.tower_modalities for m in MODALITIES])
    severity = torch.where(hit & there & read, severity, 0)
    left = cfg.provenance_map.drop_where_disturbed(there.clone(), severity)
    return Corruption(torch.where(left, severity, 0), kind, own)


def seen_beside(cfg: MultiSmolVLAConfig, presence: Tensor, drawn: Corruption) -> Tensor:
    """Presence bool (B, V, M) without what was estimated from the clean picture of an RGB that is disturbed.

    Where the policy acts, it estimates from the disturbed one; the data hold what the clean one gave, and a
    policy that learns from both side by side trusts the estimates when it should not.
    """
    return cfg.provenance_map.drop_where_disturbed(presence.clone(), drawn.severity.to(presence.device))


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
            chosen = drawn.severity[:, v, m].nonzero()[:, 0]
            live = modality == Modality.RGB or cfg.corruption_source == "live"
            if not len(chosen) or not live or modality not in cfg.tower_modalities:
                continue
            if key not in batch:
                raise ValueError(
                    "--policy.corruption_source=live disturbs pictures, but the batch has only ids of "
                    f"{key}. Keep the pictures in the dataset, or set --policy.corruption_source=ids."
                )
            severity, kind = drawn.severity[chosen, v, m], drawn.kind[chosen, v, m]
            chosen = chosen.to(batch[key].device)
            valid = batch.get(valid_key(key))
            picture, seen = batch[key][chosen], None if valid is None else valid[chosen]
            generator = drawn.generator(key, picture.device if modality == Modality.RGB else _CPU)
            if modality == Modality.RGB:
                picture = corrupt_rgb(picture, kind, severity, generator)
            else:
                picture, seen = _one_by_one(
                    picture, seen, modality, kind, severity, generator, cfg.num_labels
                )
            out[key] = batch[key].clone()
            out[key][chosen] = picture
            canonical = {modality: picture}
            if valid is not None and seen is not None:
                out[valid_key(key)] = valid.clone()
                out[valid_key(key)][chosen] = canonical[DEPTH_VALID] = seen
            ids = token_key(view, modality)
            if ids in batch and not cfg.is_soft(modality):
                out[ids] = batch[ids].clone()
                made = tower.tokenize(modality, canonical).to(out[ids])
                out[ids][chosen] = made.reshape(out[ids][chosen].shape)
    return out


def _one_by_one(
    pictures: Tensor,
    valid: Tensor | None,
    modality: str,
    kind: Tensor,
    severity: Tensor,
    generator: torch.Generator,
    labels: int,
) -> tuple[Tensor, Tensor | None]:
    """Disturb pictures of depth, segmentation or temperature; their faults are made on the CPU."""
    types = TRAINING_TYPES[modality]
    made = [
        apply_soft(
            pictures[i].cpu(),
            None if valid is None else valid[i].cpu(),
            modality,
            types[int(kind[i] * len(types))],
            int(severity[i]),
            generator,
            labels,
        )
        for i in range(len(pictures))
    ]
    seen = None if valid is None else torch.stack([v for _, v in made if v is not None]).to(valid)
    return torch.stack([image for image, _ in made]).to(pictures), seen


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
        severity, kind = (x[:, :, m].flatten() for x in (drawn.severity, drawn.kind))  # view fastest
        if modality == Modality.RGB or not severity.any():
            continue
        for domain in domains:
            if domain in values:
                generator = drawn.generator(modality, values[domain].device)
                values[domain], present[domain] = corrupt_tokens(
                    values[domain], present[domain], vocabularies[domain], kind, severity, generator
                )
    return EncoderInputs(values, present, inputs.domains)
