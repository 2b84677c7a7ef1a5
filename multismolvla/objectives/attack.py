"""Projected gradient ascent on pictures, as training uses it: the last iterate, no restarts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def pgd(
    loss_fn: Callable[[list[Tensor]], Tensor],
    pictures: Sequence[Tensor],
    eps: float,
    step: float,
    steps: int,
    generator: torch.Generator,
    where: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """L-infinity PGD with a random start (Madry et al., arXiv:1706.06083).

    Neither parameters nor their gradients, buffers or training flags change.

    Args:
        loss_fn: pictures -> scalar that shall grow; it must depend on each of them.
        pictures: of each camera, float (B, C, H, W) in [0, 1].
        eps: radius, in the unit of the pixels; 0 gives the pictures back and draws nothing.
        step: length of a step.
        steps: their number.
        generator: of the random start, on the pictures' device.
        where: per camera bool (B,), which samples to attack; default: all.

    Returns:
        Attacked pictures without gradient, in [0, 1], none further than ``eps`` from its own.

    Raises:
        RuntimeError: the loss does not depend on a picture.
    """
    clean = [picture.detach() for picture in pictures]
    if eps == 0:
        return clean
    attacked = clean if where is None else list(where)
    limits = [
        torch.full_like(c[:, :1, :1, :1], eps) if where is None else w.to(c.dtype)[:, None, None, None] * eps
        for c, w in zip(clean, attacked, strict=True)
    ]
    now = [
        (c + (2 * torch.rand(c.shape, generator=generator, device=c.device, dtype=c.dtype) - 1) * limit)
        for c, limit in zip(clean, limits, strict=True)
    ]
    now = [x.clamp(0, 1) for x in now]
    for _ in range(steps):
        with torch.enable_grad():
            varied = [x.requires_grad_() for x in now]
            gradients = torch.autograd.grad(loss_fn(varied), varied)
        now = [
            (c + (x.detach() + step * g.sign() - c).clamp(-limit, limit)).clamp(0, 1)
            for c, x, g, limit in zip(clean, varied, gradients, limits, strict=True)
        ]
    return now
