"""From noise to a thermal latent: integrate the denoiser's velocity from t = 0 (noise) to t = 1 (data).

Within one picture only the noisy latent and the time change. So the RGB latent's part of the network runs
once per picture. And for a fixed-step method, whose times are known beforehand, time and label embeddings
with all that hangs on them (a third of the parameters) come from a table that is made once for all pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multismolvla.thermal.sit import Context, Modulation, SiT

NOISE_MODES = ("frame", "episode", "fixed")

ADAPTIVE = "dopri5"

_MAX_TABLES = 4


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method.

    Stage i is evaluated at ``nodes[i]`` of the step, from ``rows[i]`` of the slopes before; the step ends
    after ``weights`` of all slopes.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


#: Fixed-step methods. ``heun`` is the trapezoid rule, ``rk4`` the 3/8 rule as in torchdiffeq.
TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}

#: All methods; ``dopri5`` chooses its own steps.
METHODS = (*TABLEAUS, ADAPTIVE)


def evaluations(method: str, steps: int) -> int:
    """Network evaluations of a fixed-step method (twice the batch each with guidance)."""
    return steps * len(_tableau(method).nodes)


def evaluation_times(method: str, steps: int) -> list[float]:
    """The times, in order of first use and without repetition, at which a fixed-step method evaluates."""
    nodes = _tableau(method).nodes
    return list(dict.fromkeys(_time(i, node, steps) for i in range(steps) for node in nodes))


def integrate(
    velocity: Callable[[float, Tensor], Tensor], z: Tensor, steps: int, method: str
) -> list[Tensor]:
    """Integrate from t = 0 to t = 1 in equal steps.

    Args:
        velocity: (time, state) -> velocity of the state's shape.
        z: state at t = 0.
        steps: number of steps. The reference's ``num_steps`` counts grid points, one more than that.
        method: of `TABLEAUS`.

    Returns:
        The states at all ``steps + 1`` grid points.
    """
    nodes, rows, weights = _tableau(method)
    h = 1.0 / steps
    states = [z]
    for i in range(steps):
        slopes: list[Tensor] = []
        for node, row in zip(nodes, rows, strict=True):
            slopes.append(velocity(_time(i, node, steps), _advance(states[-1], h, row, slopes)))
        states.append(_advance(states[-1], h, weights, slopes))
    return states


def noise_for(
    frame_keys: Sequence[tuple[int | str, int]], mode: str, shape: Sequence[int], *, seed: int = 0
) -> Tensor:
    """Normal noise that belongs to frames, not to the batch in which they happen to be.

    Args:
        frame_keys: (episode, frame) of each sample.
        mode: ``frame``: every frame its own noise. ``episode``: one noise for all frames of an episode, so
            that successive pictures do not flicker. ``fixed``: one for everything.
        shape: of one sample, without the batch axis.
        seed: another number gives another draw of everything.

    Returns:
        float32 (len(frame_keys), *shape) on the CPU.

    Raises:
        ValueError: unknown ``mode``.
    """
    if mode not in NOISE_MODES:
        raise ValueError(f"noise mode {mode!r} is unknown; expected one of {list(NOISE_MODES)}.")
    samples = []
    for episode, frame in frame_keys:
        key = {"frame": (episode, frame), "episode": (episode,), "fixed": ()}[mode]
        # Python's own hash() changes with every process; JSON tells 1 from "1".
        text = json.dumps(["thermalgen", seed, "start", mode, *key])
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        samples.append(torch.randn(*shape, generator=torch.Generator().manual_seed(digest)))
    return torch.stack(samples) if samples else torch.empty(0, *shape)


class Solution(NamedTuple):
    """Result of `Sampler.sample`.

    Attributes:
        latent: float32 (B, channels, H, W) at t = 1.
        evaluations: how often the network ran.
        trajectory: the states at all grid points, ``latent`` last; start and end only for ``dopri5``.
    """

    latent: Tensor
    evaluations: int
    trajectory: tuple[Tensor, ...]


class Sampler:
    """Samples thermal latents from a frozen denoiser.

    The state is integrated in float32 whatever the dtype of the network. Tables of time embeddings are kept
    from call to call; they follow the network to another device or dtype, and are forgotten when a state dict
    is loaded into it. Call `forget` after changing weights in any other way.

    Args:
        net: the denoiser.
    """

    def __init__(self, net: SiT) -> None:
        self.net = net
        self._tables: dict[tuple[object, ...], Modulation] = {}
        net.register_load_state_dict_post_hook(lambda *_: self.forget())  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Drop the tables of time embeddings."""
        self._tables.clear()

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        x_rgb: Tensor,
        label: int | Tensor | None = None,
        *,
        steps: int = 4,
        method: str = "euler",
        cfg_scale: float = 1.0,
        atol: float = 1e-6,
        rtol: float = 1e-3,
    ) -> Solution:
        """Integrate a batch.

        Args:
            z: noise, float (B, channels, H, W).
            x_rgb: scaled RGB latents, shape of ``z``.
            label: for all, or int64 (B,); ``None`` = no label.
            steps: for fixed-step methods; N steps are N + 1 grid points, the reference's ``num_steps``. Not
                used by ``dopri5``.
            method: of `METHODS`. ``dopri5`` chooses its steps for the batch as a whole, so that a picture
                depends on its neighbours in the batch within the tolerances; all others treat every sample
                alone. In reduced precision it chases rounding noise (bfloat16 at rtol 1e-5: hundreds of
                evaluations).
            cfg_scale: strength of guidance towards the label, at least 1; above 1 each evaluation costs
                double.
            atol: absolute tolerance of ``dopri5``.
            rtol: relative tolerance of ``dopri5``.

        Raises:
            ValueError: an argument out of its range.
        """
        null = self.net.config.null_label
        if isinstance(label, Tensor):
            labels = label
        else:
            labels = torch.full((len(z),), null if label is None else label)
        _check(null, z, x_rgb, labels, steps, method, cfg_scale)
        z = z.to(self.net.device, torch.float32)
        fixed = method != ADAPTIVE
        times = evaluation_times(method, steps) if fixed else []
        field = self.field(x_rgb.to(z.device), labels.to(z.device), cfg_scale, times)
        states = integrate(field, z, steps, method) if fixed else _dopri5(field, z, atol, rtol)
        return Solution(states[-1], field.evaluations, tuple(states))

    def field(
        self, x_rgb: Tensor, labels: Tensor, cfg_scale: float, times: Sequence[float] = ()
    ) -> VelocityField:
        """The velocity beside RGB latents with labels int64 (B,); ``times`` if they are known beforehand."""
        context = self.net.context(x_rgb)
        if cfg_scale > 1.0:  # guided: with and without the label, both beside the same picture
            labels = torch.cat([labels, torch.full_like(labels, self.net.config.null_label)])
            context = Context(
                context.positions,
                None if context.tokens is None else context.tokens.repeat(2, 1, 1),
                tuple(q.repeat(2, 1, 1, 1) for q in context.queries),
            )
        distinct, index = labels.unique(return_inverse=True)
        table = self._table(times, distinct) if times else None
        return VelocityField(self.net, context, distinct, index, cfg_scale, times, table)

    def _table(self, times: Sequence[float], labels: Tensor) -> Modulation:
        """Modulations (times * labels, ...), time-major."""
        key = (tuple(times), tuple(labels.tolist()), self.net.device, self.net.dtype)
        if key not in self._tables:
            while len(self._tables) >= _MAX_TABLES:
                del self._tables[next(iter(self._tables))]
            t = torch.tensor(times, dtype=torch.float32, device=labels.device)
            self._tables[key] = self.net.modulation(
                t.repeat_interleave(len(labels)), labels.repeat(len(times))
            )
        return self._tables[key]


class VelocityField:
    """Velocity as a function of time and state (B, ...); counts its evaluations.

    Args:
        net: the denoiser.
        context: of the RGB latents.
        labels: the distinct labels, int64 (L,).
        index: int64 (B,), which of them each sample has.
        cfg_scale: guidance; above 1 context and index hold B samples with and then B without their label.
        times: at which the velocity will be asked for; empty = any.
        table: modulations (times * L, ...), time-major.
    """

    def __init__(
        self,
        net: SiT,
        context: Context,
        labels: Tensor,
        index: Tensor,
        cfg_scale: float,
        times: Sequence[float],
        table: Modulation | None,
    ) -> None:
        self.net, self.context, self.labels, self.index = net, context, labels, index
        self.cfg_scale, self.table = cfg_scale, table
        self.row = {t: i for i, t in enumerate(times)}
        self.evaluations = 0

    def __call__(self, t: float, z: Tensor) -> Tensor:
        """Velocity at a time, float32 of the state's shape."""
        self.evaluations += 1
        if self.cfg_scale <= 1.0:
            return self._velocity(t, z).float()
        towards, without = self._velocity(t, torch.cat([z, z])).float().chunk(2)
        return without + self.cfg_scale * (towards - without)

    def _velocity(self, t: float, z: Tensor) -> Tensor:
        count = len(self.labels)
        if self.table is None:
            t_all = torch.full((count,), t, dtype=torch.float32, device=z.device)
            now = self.net.modulation(t_all, self.labels)
        else:
            rows = slice(self.row[t] * count, (self.row[t] + 1) * count)
            now = Modulation(tuple(b[rows] for b in self.table.blocks), self.table.final[rows])
        if count > 1:
            now = Modulation(tuple(b[self.index] for b in now.blocks), now.final[self.index])
        return self.net.velocity(z, now, self.context)


def _dopri5(field: VelocityField, z: Tensor, atol: float, rtol: float) -> list[Tensor]:
    from torchdiffeq import odeint  # type: ignore[import-untyped]

    ends = torch.tensor([0.0, 1.0], device=z.device)
    solution = odeint(lambda t, state: field(float(t), state), z, ends, method=ADAPTIVE, atol=atol, rtol=rtol)
    return list(solution)


def _tableau(method: str) -> Tableau:
    if method not in TABLEAUS:
        raise ValueError(f"method {method!r} is no fixed-step method; expected one of {list(TABLEAUS)}.")
    return TABLEAUS[method]


def _time(step: int, node: float, steps: int) -> float:
    return (step + node) / steps


def _advance(z: Tensor, h: float, factors: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    for factor, slope in zip(factors, slopes, strict=True):
        if factor:
            z = z + (h * factor) * slope
    return z


def _check(
    null_label: int, z: Tensor, x_rgb: Tensor, labels: Tensor, steps: int, method: str, cfg_scale: float
) -> None:
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; expected one of {list(METHODS)}.")
    if steps < 1:
        raise ValueError(f"steps = {steps}; expected at least 1.")
    if not (math.isfinite(cfg_scale) and cfg_scale >= 1.0):
        raise ValueError(f"cfg_scale = {cfg_scale}; expected at least 1 (1 = no guidance).")
    if z.shape != x_rgb.shape:
        raise ValueError(
            f"noise is {tuple(z.shape)}, the RGB latent {tuple(x_rgb.shape)}; expected the same."
        )
    if labels.shape != z.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; expected torch.int64 ({len(z)},)."
        )
    wrong = labels[(labels < 0) | (labels > null_label)]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])} is outside 0 to {null_label} ({null_label} = no label).")
    if cfg_scale > 1.0 and bool((labels == null_label).any()):
        raise ValueError(
            f"cfg_scale = {cfg_scale} with label {null_label} (none) guides from no label to no label, at "
            "double cost. Choose a label (thermalgen_config.TRAINED_LABELS), or cfg_scale = 1."
        )
