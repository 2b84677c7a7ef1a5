"""Projected gradient ascent on pictures, as training uses it: the last iterate, no restarts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multismolvla.corruption.adversarial import Ball, climb


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
        generator: CPU generator of the random start.
        where: per camera bool (B,), which samples to attack; default: all.

    Returns:
        Attacked pictures without gradient, in [0, 1], none further than ``eps`` from its own.

    Raises:
        RuntimeError: the loss does not depend on a picture.
    """
    names = [str(number) for number in range(len(pictures))]
    available = None if where is None else dict(zip(names, where, strict=True))
    ball = Ball(dict(zip(names, pictures, strict=True)), eps, available)
    if eps == 0:
        return list(ball.clean.values())

    def slope(shown: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            varied = [picture.detach().requires_grad_() for picture in shown.values()]
            return dict(zip(names, torch.autograd.grad(loss_fn(varied), varied), strict=True))

    return list(climb(ball, slope, step, steps, generator).values())
