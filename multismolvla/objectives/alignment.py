"""Stage-1 distillation: make the connector's tokens say what SigLIP's tokens said of the clean picture.

The target is SigLIP *after SmolVLM's connector*, i.e. what the language model of the base checkpoint was
trained to read. High plain cosine can be had from a constant token, so direction is compared after
subtracting the teacher's mean token, and the report quotes the cosine above that of a mean-token control.
"""

from __future__ import annotations

import math

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from multismolvla.objectives.interface import ObjectiveModule, Step, Term

_LOGS = (
    "align_cosine",
    "align_plain_cosine",
    "align_plain_cosine_of_mean_token",
    "align_norm",
    "align_relation",
)


def alignment_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, *, norm_weight: float = 0.1, relation_weight: float = 1.0
) -> tuple[Tensor, dict[str, float]]:
    """Token distillation: centred direction + norm + relations between the tokens of a view.

    Args:
        student: (R, N, D), R = views of all samples, N tokens.
        teacher: (R, N, D), no gradient flows into it.
        mask: bool (R,), views that have both a student and a teacher; others do not count.
        norm_weight: weight of the squared difference of log norms.
        relation_weight: weight of the squared difference of the token-to-token cosine matrices.

    Returns:
        Scalar loss (0 with gradient path when no view counts) and scalars for the log, NaN when no view
        counts: ranks must log the same names. ``align_plain_cosine_of_mean_token`` is what a constant student
        would reach.

    Raises:
        ValueError: if the shapes of student and teacher differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"Student tokens {tuple(student.shape)} and teacher tokens {tuple(teacher.shape)} differ in "
            "shape. Set --policy.connector_grid and --policy.connector_unshuffle so that the connector "
            "gives as many tokens per view as the base checkpoint's SigLIP does."
        )
    if not mask.any():
        return student.sum() * 0.0, dict.fromkeys(_LOGS, math.nan)
    s, t = student[mask].float(), teacher[mask].detach().float()
    centre = t.mean(dim=(0, 1))
    cosine = F.cosine_similarity(s - centre, t - centre, dim=-1)
    direction = (1 - cosine).mean()
    norm = (s.norm(dim=-1).clamp_min(1e-6).log() - t.norm(dim=-1).clamp_min(1e-6).log()).pow(2).mean()
    s_unit, t_unit = F.normalize(s - centre, dim=-1), F.normalize(t - centre, dim=-1)
    relation = (s_unit @ s_unit.transpose(1, 2) - t_unit @ t_unit.transpose(1, 2)).pow(2).mean()
    control = F.cosine_similarity(centre.expand_as(t), t, dim=-1).mean()
    plain = F.cosine_similarity(s, t, dim=-1)
    values = [v.item() for v in (cosine.mean(), plain.mean(), control, norm, relation)]
    loss: Tensor = direction + norm_weight * norm + relation_weight * relation
    return loss, dict(zip(_LOGS, values, strict=True))


def consistency_loss(dropped: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
    """Squared distance between the velocity fields with and without a sensor, at equal noise and time.

    Args:
        dropped: (B, T, A) with modality dropout; gradients flow here.
        clean: (B, T, A) of the complete sample; detached.
        weight: (B, T, 1) in {0, 1}; 0 excludes padded actions.

    Returns:
        Scalar mean over the weighted entries.
    """
    error = (dropped - clean.detach()).pow(2) * weight
    return error.sum() / (weight.sum() * error.shape[-1]).clamp_min(1)


class Consistency(ObjectiveModule):
    """`consistency_loss` as an objective; it trains nothing of its own."""

    def forward(self, step: Step) -> Term:
        """Distance of the answer with the dropped sensors from that with the complete ones."""
        return Term(consistency_loss(*step.velocities()), {})
