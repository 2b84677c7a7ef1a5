"""RLBind: a connector that attacks on RGB do not move, aligned with the instructions.

After Lu, "RLBind" (arXiv:2509.14383), of which we could read the idea, but neither formulas nor code: what is
computed here is this project's own formulation. Stage 1 of the method: the connector answers clean and
attacked pictures as its own frozen copy answers clean ones (after FARE, arXiv:2402.12336). Stage 2: pooled
tokens are aligned with text anchors, and the distributions over the tasks agree between the branches, task by
task.

Only RGB is attacked: the other modalities enter the encoder as ids, which have no gradient.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from multismolvla.objectives.classes import instruction_anchors, known_task_loss, product, task_logits
from multismolvla.objectives.interface import (
    AttackedLook,
    CompleteLook,
    Look,
    ObjectiveModule,
    Start,
    Step,
    Term,
)
from multismolvla.objectives.options import RlbindOptions, attack_share
from multismolvla.objectives.ranks import gathered
from multismolvla.objectives.statistics import RunningStatistics


def displacement_loss(tokens: Tensor, target: Tensor, counted: Tensor, spread: Tensor) -> Tensor:
    """Squared distance of tokens from their target, relative to how much the target's tokens vary.

    Args:
        tokens: (B, V, N, D).
        target: (B, V, N, D), no gradient flows into it.
        counted: bool (B, V), cameras that count.
        spread: scalar, variance of the target's tokens summed over D.

    Returns:
        Scalar mean over the tokens that count, in float32; 1 = as far as a token lies from the mean one.
    """
    moved = (tokens.float() - target.detach().float()).square().sum(-1).mean(-1)  # (B, V)
    return torch.where(counted, moved, 0.0).sum() / counted.sum().clamp_min(1) / spread


def class_distribution_loss(reference: Tensor, branch: Tensor, task: Tensor, there: Tensor) -> Tensor:
    """Mean over the tasks of KL(reference || branch) between their mean distributions.

    Args:
        reference: distributions over the tasks (N, C), no gradient flows into them.
        branch: the same of another branch.
        task: int64 (N,), -1 = unknown: not counted.
        there: bool (N,), samples that both branches have.

    Returns:
        Scalar; 0 with a gradient path unless a task has two samples.
    """
    counted = there & (task >= 0)
    member = F.one_hot(task.clamp_min(0), branch.shape[1]).to(branch.dtype) * counted[:, None]  # (N, C)
    number = member.sum(0)
    several = number >= 2
    if not several.any():
        return branch.sum() * 0.0
    share = (member / number.clamp_min(1)).T[several]  # (C', N)
    expected, found = product(share, reference.detach()), product(share, branch)
    tiny = torch.finfo(branch.dtype).tiny
    ratio = expected.clamp_min(tiny).log() - found.clamp_min(tiny).log()
    return (expected * ratio).sum(1).mean()


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy whose weights are buffers: saved with it, and out of reach of optimizers and of PEFT."""
    copied = deepcopy(module)
    for part in copied.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())
    return copied.eval()


class Rlbind(ObjectiveModule):
    """The objective, its projection, and the connector as it was before.

    Args:
        options: weights, temperature, attack.
        bridge: to be copied; its weights are taken over by :meth:`begin`.
        connector_width: D of the connector's tokens.
        tasks: their number.
    """

    def __init__(self, options: RlbindOptions, bridge: nn.Module, connector_width: int, tasks: int):
        super().__init__()
        self.options = options
        self.projection = nn.Linear(connector_width, options.width, bias=False)
        self.reference = frozen_copy(bridge)
        self.spread = RunningStatistics(connector_width)
        self.register_buffer("anchors", torch.zeros(tasks, options.width))

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """Fix the anchors and the connector that is to be kept."""
        self.anchors.copy_(instruction_anchors(start.instructions, self.options.width))
        self.reference.load_state_dict(start.bridge.state_dict())

    def forward(self, step: Step) -> Term:
        """Displacement of clean and attacked tokens, alignment of their pooled projections."""
        options = self.options
        complete = step.complete()
        target = self._target(complete)
        self.spread.update(target.flatten(0, 2), complete.rgb[..., None].expand(target.shape[:3]).flatten())
        spread = self.spread.variance.sum().clamp_min(1e-6)

        radius = options.radius / 255 * attack_share(options, step.number, step.total)
        attacked = None
        clean = displacement_loss(complete.tokens, target, complete.rgb, spread)
        adversarial = torch.zeros_like(clean)
        if radius > 0:
            beside = step.measured()
            aim = target if beside is complete else self._target(beside)

            def displacement(tokens: Tensor) -> Tensor:
                return displacement_loss(tokens, aim, beside.rgb, spread)

            attacked = step.attacked(displacement, radius, radius / 4, options.attack_steps)
            adversarial = displacement(attacked.tokens)
        loss = options.clean * clean + options.adversarial * adversarial
        logs = {
            "rlbind_clean": clean.item(),
            "rlbind_adversarial": adversarial.item(),
            "rlbind_radius": radius * 255,
        }
        if options.anchor > 0 or options.distribution > 0:
            anchor, distribution = self._alignment(step, complete, attacked)
            loss = loss + options.anchor * anchor + options.distribution * distribution
            logs |= {"rlbind_anchor": anchor.item(), "rlbind_distribution": distribution.item()}
        return Term(loss, logs)

    @torch.no_grad()
    def _target(self, complete: CompleteLook) -> Tensor:
        """What the connector said before of the clean sample, (B, V, N, D)."""
        if complete.inputs is None:
            return torch.zeros_like(complete.tokens)
        made: Tensor = self.reference(*complete.inputs).tokens
        return made.unflatten(0, complete.rgb.shape)

    def _alignment(
        self, step: Step, complete: CompleteLook, attacked: AttackedLook | None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy to the anchors, and class-wise agreement, over the samples of all ranks."""
        task = gathered(step.task)
        adversarial = [] if attacked is None else [attacked.look]
        whole, whole_there = self._logits(complete.look)
        seen = [(whole, whole_there), *(self._logits(look) for look in [step.seen(), *adversarial])]
        anchor = torch.stack([known_task_loss(logits, task, there) for logits, there in seen]).mean()
        branches = [self._logits(step.unimodal().look), *seen[2:]] if self.options.distribution > 0 else []
        apart = [
            class_distribution_loss(whole.softmax(1), logits.softmax(1), task, there & whole_there)
            for logits, there in branches
        ]
        return anchor, torch.stack(apart).mean() if apart else torch.zeros_like(anchor)

    def _logits(self, look: Look) -> tuple[Tensor, Tensor]:
        """Logits over the tasks (N, C) of the samples of all ranks, and which of them show anything."""
        embedding = gathered(F.normalize(self.projection(look.features).float(), dim=1))
        return task_logits(embedding, self.anchors, self.options.temperature), gathered(look.there)
