"""Grounding for the tiny language model of the mini preset: where is what the instruction names?

SmolVLM2 knows how to find a named thing in a picture; a random language model does not, and through the
action loss alone it takes tens of thousands of samples to learn it. This is the language half of the mini
preset's stand-in for pre-training; its targets are centroids of the recorded segmentation labels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lerobot.policies.common.vla_utils import make_att_2d_masks
from torch import Tensor, nn

#: Labels that are no thing to take or to put something on.
_NO_THINGS = frozenset({"background", "robot", "gripper", "mount", "other"})


def named_labels(instruction: str, labels: Sequence[str], seen: Collection[int]) -> list[int]:
    """Ids of the first and the last thing that an instruction names, then the gripper's.

    A thing is named by its label, or by the end of it: ``akita_black_bowl`` is "black bowl" or "bowl", too.
    ``"put the cube in the basket"`` gives ``[3, 5, 2]`` with the mini suite's labels.

    Args:
        instruction: of a task.
        labels: name of each id.
        seen: ids that occur in the pictures; of several labels with the same end one of these is meant.

    Raises:
        ValueError: it names nothing that is seen.
    """
    phrases: dict[tuple[str, ...], int] = {}
    for number in sorted(seen):
        words = tuple(w for w in labels[number].split("_") if not w.isdigit())
        if labels[number] not in _NO_THINGS:
            for start in range(1, len(words)):
                phrases.setdefault(words[start:], number)
            phrases[words] = number
    text = "".join(c if c.isalnum() else " " for c in instruction.lower()).split()
    found, start = [], 0
    while start < len(text):
        fits = [end for end in range(len(text), start, -1) if tuple(text[start:end]) in phrases]
        if fits:
            found.append(phrases[tuple(text[start : fits[0]])])
        start = fits[0] if fits else start + 1
    if not found:
        raise ValueError(
            f"Instruction {instruction!r} names nothing of the labels that the pictures show "
            f"({[labels[i] for i in sorted(seen)]}). The pre-training looks for what is to be taken and "
            "where to put it."
        )
    return [found[0], found[-1], labels.index("gripper")]


def centroids(seg: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean position of labels in label pictures.

    Args:
        seg: int64 (B, V, S, S).
        wanted: int64 (B, K), labels to find.

    Returns:
        Positions (B, V, K, 2), x then y in [-1, 1], 0 where unseen, and visibility bool (B, V, K).
    """
    side = seg.shape[-1]
    axis = torch.linspace(-1, 1, side, device=seg.device)
    mask = (seg[:, :, None] == wanted[:, None, :, None, None]).float()  # (B, V, K, S, S)
    mass = mask.sum((-1, -2))
    x = (mask.sum(-2) * axis).sum(-1) / mass.clamp_min(1)
    y = (mask.sum(-1) * axis).sum(-1) / mass.clamp_min(1)
    return torch.stack([x, y], -1), mass > 0


class Grounding(nn.Module):
    """Heads on the language model's last prefix token: position and visibility of the named things.

    Args:
        width: hidden size of the language model.
        views: number of views V.
        things: number of named labels K.
        depths: number of layers D that are read.
    """

    def __init__(self, width: int, views: int, things: int = 3, depths: int = 2):
        super().__init__()
        self.shape = (views, things, 3)
        outputs = views * things * 3
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, outputs)
            )
            for _ in range(depths)
        )

    def forward(self, hidden: Tensor, where: Tensor, visible: Tensor) -> tuple[Tensor, float]:
        """Loss of hidden states (B, D, width) against `centroids`, and the last head's mean error."""
        seen = visible[..., None].float()
        count = seen.sum().clamp_min(1)
        loss = hidden.new_zeros(())
        error = 0.0
        for head, state in zip(self.heads, hidden.unbind(1), strict=True):
            out = head(state).unflatten(-1, self.shape)  # (B, V, K, 3)
            distance = F.smooth_l1_loss(out[..., :2], where, reduction="none", beta=0.1)
            presence = F.binary_cross_entropy_with_logits(out[..., 2], visible.float())
            loss = loss + 2 * (distance * seen).sum() / count + 0.2 * presence
            error = (((out[..., :2] - where).abs() * seen).sum() / (4 * count)).item()
        return loss / len(self.heads), error


def prefix_state(model: Any, images: list[Tensor], tokens: Tensor, mask: Tensor, state: Tensor) -> Tensor:
    """Run upstream's prefix (pictures, language, state) through the language model alone.

    Args:
        model: upstream's ``VLAFlowMatching``.
        images: per view float (B, 3, S, S) in [-1, 1].
        tokens: int64 (B, L).
        mask: bool (B, L).
        state: float (B, max_state_dim), normalised.

    Returns:
        Hidden states (B, D, width) of the last token, which sees everything, as they *enter* the last D = 2
        layers: that is what the action expert reads. The last layer's output is read by nothing.
    """
    there = [torch.ones(len(state), dtype=torch.bool, device=state.device)] * len(images)
    embs, pad, att = model.embed_prefix(images, there, tokens, mask, state=state)
    layers = model.vlm_with_expert.get_vlm_model().text_model.layers[-2:]
    entering: list[Tensor] = []
    handles = [
        layer.input_layernorm.register_forward_pre_hook(lambda _m, args: entering.append(args[0][:, -1]))
        for layer in layers
    ]
    try:
        model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad, att),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embs, None],
            use_cache=True,  # upstream's prefill path: the prefix attends to itself in every layer
        )
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(entering, 1)
