"""Adversarial pictures: the worst change of RGB that is found within an L-infinity ball.

An attack raises a number per sample, its *objective*: a differentiable function of the pictures, given by
whoever knows the model. Two searches: projected gradient descent (PGD, Madry et al., arXiv:1706.06083) and
Auto-PGD (APGD, Croce and Hein, arXiv:2003.01690), which chooses its step sizes by itself. The control is
:func:`random_signs`: what any change of that size does.

RGB alone is attacked, at the camera's native size and before any resize or normalisation. Depth,
segmentation and temperature become discrete tokens, through which no gradient goes; that is no robustness.
Whatever is computed from RGB must be computed anew from the attacked pictures, by the objective too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

#: Pictures by name, float32 (B, 3, H, W) in [0, 1]. Cameras may differ in size.
Pictures = Mapping[str, Tensor]
#: Pictures -> float (B,), what the attack raises. A row depends on that row's pictures alone.
Objective = Callable[[dict[str, Tensor]], Tensor]

METHODS = ("pgd", "apgd")
#: One grey level of an 8-bit picture.
LEVEL = 1 / 255
_MOMENTUM = 0.75  # of APGD
_RISING = 0.75  # share of rising steps below which APGD halves its step


@dataclass(frozen=True)
class Attack:
    """How to search.

    Attributes:
        radius: greatest change of a pixel, in [0, 1]; 0 changes nothing.
        method: one of ``METHODS``.
        steps: gradients to be computed; APGD computes one more whenever it starts anew from its best.

    Raises:
        ValueError: no such method, or a radius or number of steps that makes no sense.
    """

    radius: float
    method: str = "pgd"
    steps: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 1:
            raise ValueError(
                f"An attack's radius is {self.radius}; expected 0 to 1, pictures being in [0, 1]: 4/255 for "
                "four grey levels."
            )
        if self.method not in METHODS:
            raise ValueError(f"Unknown attack {self.method!r}. Known: {list(METHODS)}.")
        if self.steps < 1:
            raise ValueError(f"An attack needs at least 1 step, got {self.steps}.")

    @property
    def step_size(self) -> float:
        """Of PGD: a quarter of the radius, but at least one grey level, as far as the ball reaches."""
        return max(self.radius / 4, min(LEVEL, self.radius))


@dataclass(frozen=True)
class Attacked:
    """What an attack found.

    Attributes:
        pictures: the worst ones found, the clean ones where nothing was worse; without gradient.
        clean: float (B,), the objective of the clean pictures.
        reached: float (B,), of ``pictures``, never below ``clean``.
        gradient: float (looks, B), L2 norm of the objective's gradient over all pictures of a sample,
            wherever the search looked. Zeros say that nothing was searched, whatever came out.
    """

    pictures: dict[str, Tensor]
    clean: Tensor
    reached: Tensor
    gradient: Tensor


class NoGradientError(ValueError):
    """The objective does not depend on a picture in a way that can be differentiated."""


def attack(
    pictures: Pictures,
    objective: Objective,
    how: Attack,
    generator: Generator,
    available: Mapping[str, Tensor] | None = None,
) -> Attacked:
    """Search for the pictures within the ball that raise the objective most, all cameras together.

    Nothing else changes: no parameter, no gradient of one, no global generator of torch. The modes of the
    model are the caller's; they should be those of evaluation, and the objective should draw nothing.

    Args:
        pictures: clean ones.
        objective: is called in gradient mode, with new tensors under the names of ``pictures``.
        how: radius and search.
        generator: CPU generator of the random start. It is not used at radius 0.
        available: name -> bool (B,), which samples have the picture; the others keep it bit for bit. ``None``
            = all.

    Raises:
        ValueError: pictures of another form, or an objective that is not one number per sample.
        NoGradientError: of the clean pictures there is one that is available and that the objective does not
            depend on.
        FloatingPointError: objective or gradient are NaN or infinite.
    """
    with torch.inference_mode(False), torch.enable_grad(), preserved_random_state():
        _check(pictures)
        ball = Ball(pictures, how.radius, available)
        search = _Search(ball, objective)
        if how.radius > 0 and any(bool(rows.any()) for rows in ball.rows.values()):
            search.check()
            (_pgd if how.method == "pgd" else _apgd)(search, how, generator)
        return search.found()


def random_signs(
    pictures: Pictures,
    radius: float,
    generator: Generator,
    available: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The control: every value of every pixel up or down by the radius, clipped to [0, 1].

    Args, errors: as of :func:`attack`.
    """
    _check(pictures)
    ball = Ball(pictures, Attack(radius).radius, available)
    if radius == 0:
        return ball.clean
    return ball.project({k: x + radius * _uniform(x, generator).sign() for k, x in ball.clean.items()})


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever is drawn inside, torch's global generators are afterwards as they were."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        yield


# -- objectives ---------------------------------------------------------------------------------------------


def token_shift(tokens: Sequence[Tensor], clean: Sequence[Tensor], there: Sequence[Tensor]) -> Tensor:
    """Objective ``feature``: mean squared distance of tokens to those of the clean pictures, float (B,).

    Args:
        tokens: float (B, N, D) each, e.g. one entry per camera.
        clean: the same of the clean pictures; no gradient goes into them.
        there: bool (B,) each, whether an entry counts in a sample; 0 for a sample of which nothing does.
    """
    sums = [
        (t.float() - c.detach().float()).pow(2).mean((1, 2)) * a
        for t, c, a in zip(tokens, clean, there, strict=True)
    ]
    return torch.stack(sums).sum(0) / torch.stack(list(there)).sum(0).clamp_min(1)


def velocity_error(velocity: Tensor, target: Tensor, executed: int) -> Tensor:
    """Objective ``policy``: flow-matching error of the actions that are executed, float (B,).

    Args:
        velocity: float (B, K, T, A), predicted at K fixed draws of noise and time.
        target: the same shape, noise minus actions; no gradient goes into it.
        executed: of the T actions, the first so many count.
    """
    return (velocity - target.detach())[:, :, :executed].pow(2).mean((1, 2, 3))


# -- the searches -------------------------------------------------------------------------------------------


class Ball:
    """The pictures that an attack may show.

    Args:
        pictures: clean ones, float (B, C, H, W) in [0, 1].
        radius: greatest change of a pixel.
        available: as of :func:`attack`.

    Attributes:
        clean: copies of them.
        rows: name -> bool (B,), which samples may be changed.
    """

    def __init__(self, pictures: Pictures, radius: float, available: Mapping[str, Tensor] | None) -> None:
        self.radius = radius
        self.clean = {k: x.detach().clone() for k, x in pictures.items()}
        self.rows = {
            k: torch.ones(len(x), dtype=torch.bool, device=x.device)
            if available is None
            else available[k].to(x.device).bool()
            for k, x in self.clean.items()
        }

    def project(self, pictures: Pictures) -> dict[str, Tensor]:
        """The nearest pictures inside; what is not available is as it was."""
        inside = {}
        for name, clean in self.clean.items():
            low, high = (clean - self.radius).clamp_min(0), (clean + self.radius).clamp_max(1)
            changed = torch.minimum(torch.maximum(pictures[name], low), high)
            inside[name] = torch.where(self.rows[name][:, None, None, None], changed, clean)
        return inside

    def start(self, generator: Generator) -> dict[str, Tensor]:
        """A point anywhere inside."""
        return self.project({k: x + self.radius * _uniform(x, generator) for k, x in self.clean.items()})


def _check(pictures: Pictures) -> None:
    if not pictures:
        raise ValueError("There is no picture to attack.")
    for name, x in pictures.items():
        if x.dtype != torch.float32 or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)}. An attack works on RGB, float32 (B, 3, H, W) in "
                "[0, 1]; divide uint8 pictures by 255."
            )
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(
                f"{name} ranges from {x.min().item():.4g} to {x.max().item():.4g}. An attack works on "
                "pictures in [0, 1], before they are normalised."
            )


def _uniform(like: Tensor, generator: Generator) -> Tensor:
    """Uniform in [-1, 1), of a tensor's shape and on its device, from a generator of the CPU."""
    return (2 * torch.rand(like.shape, generator=generator) - 1).to(like.device)


class _Search:
    """The objective, and the worst pictures so far.

    Attributes:
        best: value of the worst pictures, (B,).
        last: value of the pictures looked at last, (B,).
    """

    def __init__(self, ball: Ball, objective: Objective) -> None:
        self.ball, self._objective = ball, objective
        self.pictures = ball.clean
        self._norms: list[Tensor] = []
        with torch.no_grad():
            self.clean = self.best = self.last = self._value(ball.clean)

    def found(self) -> Attacked:
        """The result."""
        none = self.clean.new_zeros(0, len(self.clean))
        gradient = torch.stack(self._norms) if self._norms else none
        return Attacked(self.pictures, self.clean, self.best, gradient)

    def check(self) -> None:
        """See that the objective depends on what is attacked, where the search begins.

        Raises:
            NoGradientError: it does not.
        """
        _, slopes = self._slopes(self.ball.clean)
        for name, slope in slopes.items():
            if slope is None and bool(self.ball.rows[name].any()):
                raise NoGradientError(
                    f"The objective has no gradient towards {name}, which is available: it was computed "
                    "without one, or from discrete tokens alone. That is no robustness."
                )

    def look(self, pictures: Pictures) -> dict[str, Tensor]:
        """The gradient there, zero where a picture is not available, or where the policy takes it for bad."""
        value, slopes = self._slopes(pictures)
        gradient: dict[str, Tensor] = {}
        for name, x in pictures.items():
            none = torch.zeros_like(x)
            slope = slopes[name]
            rows = self.ball.rows[name][:, None, None, None]
            gradient[name] = none if slope is None else torch.where(rows, slope, none)
        squares = [g.flatten(1).double().pow(2).sum(1).to(self.clean.device) for g in gradient.values()]
        norm = torch.stack(squares).sum(0).sqrt()
        if not bool(norm.isfinite().all()):
            raise FloatingPointError("The gradient of an attack's objective is NaN or infinite.")
        self._norms.append(norm.float())
        self._keep(pictures, value)
        return gradient

    def _slopes(self, pictures: Pictures) -> tuple[Tensor, dict[str, Tensor | None]]:
        leaves = {k: x.detach().requires_grad_() for k, x in pictures.items()}
        value = self._value(leaves)
        if not value.requires_grad:
            return value, dict.fromkeys(leaves)
        found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        return value.detach(), dict(zip(leaves, found, strict=True))

    def finish(self, pictures: Pictures) -> None:
        """Look at the last pictures, of which no gradient is wanted."""
        with torch.no_grad():
            self._keep(pictures, self._value(dict(pictures)))

    def _value(self, pictures: dict[str, Tensor]) -> Tensor:
        value = self._objective(dict(pictures)).float()
        size = len(next(iter(self.ball.clean.values())))
        if value.shape != (size,):
            raise ValueError(
                f"An attack's objective has shape {tuple(value.shape)}; expected one number per sample, "
                f"({size},)."
            )
        if not bool(value.isfinite().all()):
            raise FloatingPointError(f"An attack's objective is not finite: {value.detach().tolist()}.")
        return value

    def _keep(self, pictures: Pictures, value: Tensor) -> None:
        worse = value > self.best
        self.last, self.best = value, torch.where(worse, value, self.best)
        self.pictures = _where(worse, {k: x.detach() for k, x in pictures.items()}, self.pictures)


def _where(rows: Tensor, pictures: Pictures, others: Pictures) -> dict[str, Tensor]:
    return {k: torch.where(rows.to(x.device)[:, None, None, None], x, others[k]) for k, x in pictures.items()}


def climb(
    ball: Ball, slope: Callable[[dict[str, Tensor]], dict[str, Tensor]], step: float, steps: int,
    generator: Generator,
) -> dict[str, Tensor]:  # fmt: skip
    """PGD from a random start: so many steps along the signs of what ``slope`` gives; the last pictures."""
    x = ball.start(generator)
    for _ in range(steps):
        x = ball.project({k: x[k] + step * g.sign() for k, g in slope(x).items()})
    return x


def _pgd(search: _Search, how: Attack, generator: Generator) -> None:
    search.finish(climb(search.ball, search.look, how.step_size, how.steps, generator))


def _apgd(search: _Search, how: Attack, generator: Generator) -> None:
    """Algorithm 1 of the paper, for each sample by itself."""
    ball, marks = search.ball, checkpoints(how.steps)
    step = torch.full_like(search.clean, 2 * how.radius)
    rises, mark = torch.zeros_like(step), 0
    step_then, best_then = step, search.best
    before = x = ball.start(generator)
    for k in range(how.steps):
        value = search.last
        gradient = search.look(x)
        if k > 0:
            rises = rises + (search.last > value)
        if k in marks:
            stuck = (rises < _RISING * (k - mark)) | ((step == step_then) & (search.best == best_then))
            step_then, best_then, rises, mark = step, search.best, torch.zeros_like(rises), k
            if bool(stuck.any()):
                step = torch.where(stuck, step / 2, step)
                x = _where(stuck, search.pictures, x)
                gradient = search.look(x)
        share = _MOMENTUM if k > 0 else 1.0
        size = {n: step.to(x[n].device)[:, None, None, None] for n in x}
        aim = ball.project({n: x[n] + size[n] * g.sign() for n, g in gradient.items()})
        moved = {n: x[n] + share * (aim[n] - x[n]) + (1 - share) * (x[n] - before[n]) for n in x}
        before, x = x, ball.project(moved)
    search.finish(x)


def checkpoints(steps: int) -> list[int]:
    """The steps at which APGD may halve its step: ever closer together, as in the paper."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(round(share * steps, 6)) for share in shares[1:]} & set(range(1, steps)))
