"""Robult: bring together what the modalities share, keep what each has alone.

After Nguyen, Kamboj and Do, "Robult" (arXiv:2509.03477), of which we could read that there are two losses,
but neither their form nor code: what is computed here is this project's own formulation. It is soft
positive-unlabelled contrast after puNCE (Acharya et al., arXiv:2402.06038) across branches, and
reconstruction of frozen features from a shared and a unique part.

A branch is the same encoder and connector with some streams masked. Branch 0 is what the policy has seen; at
every step it is set against one drawn modality alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from multismolvla.objectives.classes import (
    cosines,
    instruction_anchors,
    known_task_loss,
    mean_where,
    product,
    task_logits,
)
from multismolvla.objectives.interface import Look, ObjectiveModule, Start, Step, Term, UnimodalLook
from multismolvla.objectives.options import RobultOptions
from multismolvla.objectives.ranks import gathered
from multismolvla.objectives.statistics import RunningStatistics

#: Temperature of the guess at an unlabelled frame's task.
POSTERIOR_TEMPERATURE = 0.1


def target_weights(task: Tensor, posterior: Tensor) -> Tensor:
    """How much each candidate counts as a positive of each anchor, float (N, N).

    A labelled anchor shares weight 1 evenly among the labelled candidates of its task, itself included. An
    unlabelled one gives 1 to its own frame, and to the labelled candidates of a task together what the
    posterior says of that task, however many there are.

    Args:
        task: int64 (N,), -1 = unlabelled; of anchors and candidates alike.
        posterior: float (N, C), of the unlabelled; rows of labelled anchors are not read.
    """
    labelled = task >= 0
    member = F.one_hot(task.clamp_min(0), posterior.shape[1]).float() * labelled[:, None]  # (N, C)
    share = member / member.sum(0).clamp_min(1)  # of a candidate in its task
    own = torch.eye(len(task), device=task.device)
    return torch.where(labelled[:, None], product(member, share.T), own + product(posterior, share.T))


def pu_contrastive_loss(
    anchors: Tensor,
    candidates: Tensor,
    task: Tensor,
    posterior: Tensor,
    *,
    temperature: float,
    near: Tensor | None = None,
) -> Tensor:
    """Soft positive-unlabelled contrast of two branches of the same N frames.

    Everything labelled: supervised contrastive loss, the same frame among the positives. Nothing labelled:
    InfoNCE. One task with the constant posterior pi: the blend of puNCE.

    Args:
        anchors: float (N, d), of one branch; any length.
        candidates: float (N, d), of the other branch.
        task: int64 (N,), -1 = unlabelled.
        posterior: float (N, C).
        temperature: of the softmax.
        near: bool (N, N), frames that are almost the same: no negatives of unlabelled anchors.

    Returns:
        Scalar mean over the anchors, in float32; 0 with a gradient path for N = 0.
    """
    if len(anchors) == 0:
        return (anchors.sum() + candidates.sum()).float() * 0.0
    target = target_weights(task, posterior.detach())
    logits = cosines(anchors, candidates) / temperature
    if near is not None:
        hidden = near & (task < 0)[:, None] & (target == 0)
        logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
    weighted = -(target * logits.log_softmax(1)).sum(1)
    return (weighted / target.sum(1)).mean()


def near_frames(episode: Tensor, index: Tensor, within: int) -> Tensor:
    """Which pairs are of one episode and fewer than ``within`` frames apart, bool (N, N)."""
    apart = (index[:, None] - index[None]).abs()
    return (episode[:, None] == episode[None]) & (apart < within)


def reconstruction_loss(rebuilt: Tensor, target: Tensor, there: Tensor) -> Tensor:
    """Smooth L1 distance of rows (N, E), mean over those that are there; no gradient into the target."""
    error = F.smooth_l1_loss(rebuilt.float(), target.detach().float(), reduction="none").mean(1)
    return mean_where(error, there)


def orthogonality_loss(unique: Tensor, shared: Tensor, there: Tensor) -> Tensor:
    """Squared cosine between unique and shared parts (N, d), mean over the rows that are there."""
    return mean_where(F.cosine_similarity(unique.float(), shared.float(), dim=1).square(), there)


class Frames(NamedTuple):
    """What one step compares: the N frames of the batch and of the second data set.

    Attributes:
        seen: features of what the policy has seen, float (N, D).
        alone: of the drawn modality alone, float (N, D).
        encoded: the encoder's tokens of that, pooled, float (N, E).
        there: bool (N,), frames that show anything in both.
        task: int64 (N,), -1 = unlabelled.
        episode: int64 (N,).
        frame: its number in its data set, int64 (N,).
    """

    seen: Tensor
    alone: Tensor
    encoded: Tensor
    there: Tensor
    task: Tensor
    episode: Tensor
    frame: Tensor


def frames_of(step: Step) -> Frames:
    """The frames of a step, those of the second data set behind those of the batch."""
    own = _frames(step.seen(), step.unimodal(), step.task, step.episode, step.index)
    more = step.unlabelled()
    if more is None:
        return own
    unknown = torch.full_like(more.episode, -1)
    pairs = zip(own, _frames(more.seen, more.unimodal, unknown, more.episode, more.frame), strict=True)
    return Frames(*(torch.cat(pair) for pair in pairs))


def _frames(seen: Look, alone: UnimodalLook, task: Tensor, episode: Tensor, frame: Tensor) -> Frames:
    there = seen.there & alone.look.there
    return Frames(seen.features, alone.look.features, alone.encoded, there, task, episode, frame)


class Robult(ObjectiveModule):
    """The objective and its heads.

    The task of an unlabelled frame is guessed by a linear map of the fused embedding, compared with the
    instruction anchors. The map starts as the identity and learns from the labelled frames; its input carries
    no gradient, so that guessing moves nothing else. Without it nothing would relate embedding and anchors.

    Args:
        options: weights, width, temperature.
        connector_width: D of the connector's tokens.
        encoder_width: E of the encoder's tokens.
        modalities: that may be drawn.
        tasks: their number.
    """

    def __init__(
        self,
        options: RobultOptions,
        connector_width: int,
        encoder_width: int,
        modalities: Sequence[str],
        tasks: int,
    ):
        super().__init__()
        self.options = options
        width = options.width
        self.projection = nn.Linear(connector_width, width, bias=False)
        self.posterior = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.posterior.weight)
        self.statistics = nn.ModuleDict({m: RunningStatistics(encoder_width) for m in modalities})
        self.unique = nn.ModuleDict({m: _two_layers(encoder_width, width, width) for m in modalities})
        self.decoder = nn.ModuleDict(
            {m: _two_layers(2 * width, encoder_width, encoder_width) for m in modalities}
        )
        self.register_buffer("anchors", torch.zeros(tasks, width))

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """Fix the anchors."""
        self.anchors.copy_(instruction_anchors(start.instructions, self.options.width))

    def forward(self, step: Step) -> Term:
        """Contrast and reconstruction of the fused against one unimodal branch."""
        options = self.options
        frames, alone = frames_of(step), step.unimodal()
        both = frames.there
        fused = F.normalize(self.projection(frames.seen).float(), dim=1)
        single = F.normalize(self.projection(frames.alone).float(), dim=1)

        logits = task_logits(self.posterior(fused.detach()), self.anchors, POSTERIOR_TEMPERATURE)
        guessing = known_task_loss(logits, frames.task, both)
        contrast = self._contrast(step, frames, single, fused, logits.detach())

        statistics = self.statistics[alone.modality]
        assert isinstance(statistics, RunningStatistics)
        statistics.update(frames.encoded, both)
        target = statistics.standardised(frames.encoded)
        unique = self.unique[alone.modality](target)
        rebuilt = self.decoder[alone.modality](torch.cat([fused, unique.float()], 1))
        rebuilding = reconstruction_loss(rebuilt, target, both)
        orthogonality = orthogonality_loss(unique, fused, both)

        loss = options.contrastive * (contrast + guessing)
        loss = loss + options.reconstruction * (rebuilding + options.orthogonality * orthogonality)
        names = ("contrastive", "posterior", "reconstruction", "orthogonality")
        values = (contrast, guessing, rebuilding, orthogonality)
        logs = {f"robult_{name}": value.item() for name, value in zip(names, values, strict=True)}
        logs["robult_labelled"] = (frames.task >= 0).float().mean().item()
        return Term(loss, logs)

    def _contrast(self, step: Step, frames: Frames, single: Tensor, fused: Tensor, logits: Tensor) -> Tensor:
        """Both directions, over the frames of all ranks."""
        share = min(1.0, step.number / max(1.0, self.options.posterior_ramp * step.total))
        tasks = logits.shape[1]
        guess = logits.softmax(1) * share + (1 - share) / tasks
        there = gathered(frames.there)
        rows = (single, fused, frames.task, guess, frames.episode, frames.frame)
        single, fused, task, guess, episode, frame = (gathered(x)[there] for x in rows)
        near = near_frames(episode, frame, step.chunk)
        one, other = (
            pu_contrastive_loss(a, c, task, guess, temperature=self.options.temperature, near=near)
            for a, c in ((single, fused), (fused, single))
        )
        return (one + other) / 2


def _two_layers(inward: int, hidden: int, outward: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inward, hidden), nn.GELU(), nn.Linear(hidden, outward))
