"""Modality-dropout curriculum: pure functions of step, availability and generator.

A modality that is dropped is *absent* (its tokens never enter the encoder), not black. The randomness is a
function of (seed, step, rank) alone: resuming at step k draws what an uninterrupted run would have drawn, and
two ranks never share a mask.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

MODES = ("linear", "fixed", "none")
#: What a sample's dropout may strike, see :func:`sample_presence`.
PATTERNS = ("independent", "cameras", "modalities", "deployment")


def dropout_probability(
    step: int,
    total_steps: int,
    *,
    mode: str = "linear",
    p_max: float = 0.5,
    ramp: float = 0.6,
    clean: float = 0.1,
) -> float:
    """Probability of losing a modality at a training step.

    ``linear`` rises from 0 at step 0 to ``p_max`` at ``ramp * total_steps``, stays there, and is 0 in the
    last ``clean`` share of the steps (clean re-alignment, STRONG-VLA). ``fixed`` is ``p_max`` until that last
    share. ``none`` is 0.

    Args:
        step: steps done so far, >= 0; beyond ``total_steps`` counts as the clean phase.
        total_steps: length of the stage.
        mode: ``linear``, ``fixed`` or ``none``.
        p_max: in [0, 1).
        ramp: share of the steps over which ``linear`` rises, in (0, 1].
        clean: share of the steps at the end without dropout, in [0, 1).

    Raises:
        ValueError: for values outside the ranges above.
    """
    if mode not in MODES:
        raise ValueError(f"--policy.dropout_mode={mode!r} is unknown. Expected one of {MODES}.")
    if not 0 <= p_max < 1:
        raise ValueError(
            f"--policy.dropout_p_max={p_max} must lie in [0, 1): at 1 no modality would be left."
        )
    share = curriculum_share(step, total_steps, ramp=ramp, clean=clean)
    if mode == "none" or share is None:
        return 0.0
    return p_max if mode == "fixed" else p_max * share


def curriculum_share(
    step: int, total_steps: int, *, ramp: float, clean: float, name: str = "dropout"
) -> float | None:
    """How far a linear curriculum has risen: 0 to 1, reached at ``ramp * total_steps``; ``None`` when clean.

    Args:
        step: steps done so far, >= 0; beyond ``total_steps`` counts as the clean phase.
        total_steps: length of the stage.
        ramp: share of the steps over which it rises, in (0, 1].
        clean: share of the steps at the end that stay clean, in [0, 1).
        name: of the options in error messages.

    Raises:
        ValueError: for values outside the ranges above.
    """
    if not 0 < ramp <= 1 or not 0 <= clean < 1:
        raise ValueError(
            f"--policy.{name}_ramp={ramp} must lie in (0, 1] and {name}_clean={clean} in [0, 1)."
        )
    if total_steps <= 0:
        raise ValueError(
            f"--policy.curriculum_steps={total_steps}: the {name} curriculum needs the length of the stage. "
            "Set it to the value of --steps, or switch the curriculum off (--policy.dropout_mode=none, "
            "--policy.corruption_probability=0)."
        )
    # integer boundary: 0.9 * 1000 is 900.0000000000001 in binary, and step 900 must already be clean
    clean_from = total_steps - math.floor(clean * total_steps + 1e-9)
    return None if step >= clean_from else min(1.0, step / max(1.0, ramp * total_steps))


def step_generator(seed: int, step: int, rank: int = 0, purpose: str = "modality-dropout") -> torch.Generator:
    """A CPU generator that depends on (purpose, seed, step, rank) and nothing else."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{step}/{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))


def sample_presence(
    available: Tensor,
    probability: float,
    generator: torch.Generator,
    *,
    shares: Mapping[str, float] | None = None,
    deployment: Tensor | None = None,
    complete_share: float = 0.1,
    consequence: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Draw which modalities each sample keeps.

    Each sample draws one of :data:`PATTERNS`, then what is lost with ``probability``:

    - ``independent``: each modality of each view by itself;
    - ``cameras``: whole views, with all that their cameras deliver;
    - ``modalities``: whole modalities, in all views at once;
    - ``deployment``: everything that the robot will not have.

    Samples that would lose everything are drawn again, by the same pattern. The first ``complete_share * B``
    samples, rounded up or down at random, stay complete (the batch order is already random), so that the
    policy never forgets the undamaged case and a batch of one is not complete every time.

    Args:
        available: bool (B, V, M), sensors that are there at all.
        probability: in [0, 1).
        generator: CPU generator, see :func:`step_generator`.
        shares: pattern -> share of the samples, see :func:`check_shares`; ``None`` = all ``independent``.
        deployment: bool (V, M), what the robot will have; needed for a share of ``deployment``.
        complete_share: share of the batch that is left alone.
        consequence: what else is lost with what was lost (derived modalities with their RGB): presence
            (R, V, M) -> presence. Applied before asking whether anything is left.

    Returns:
        bool (B, V, M) on ``available``'s device, a subset of ``available``; samples with anything available
        keep something.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"Dropout probability {probability} must lie in [0, 1).")
    if probability == 0:
        return available.clone()
    there = available.cpu()
    follow = consequence or (lambda presence: presence)
    pattern = _draw_patterns(len(there), shares, generator)
    presence = there & _draw_kept(there.shape, probability, pattern, deployment, generator)
    untouched = math.floor(complete_share * len(there) + torch.rand((), generator=generator).item())
    presence[:untouched] = there[:untouched]
    presence = follow(presence)
    lost = ~presence.flatten(1).any(1) & there.flatten(1).any(1)
    while lost.any():
        shape = (int(lost.sum()), *there.shape[1:])
        again = _draw_kept(shape, probability, pattern[lost], deployment, generator)
        presence[lost] = follow(there[lost] & again)
        lost = ~presence.flatten(1).any(1) & there.flatten(1).any(1)
    return presence.to(available.device)


def check_shares(shares: Mapping[str, float], has_deployment: bool) -> None:
    """See that shares of :data:`PATTERNS` can be drawn from.

    Raises:
        ValueError: an unknown pattern, a negative share, a sum other than one, or a share of the deployment
            pattern without one.
    """
    unknown = sorted(set(shares) - set(PATTERNS))
    if unknown or min(shares.values(), default=0.0) < 0:
        raise ValueError(
            f"Dropout shares {dict(shares)}: expected shares >= 0 of {', '.join(PATTERNS)} "
            "(--policy.dropout_independent, ...)."
        )
    if abs(sum(shares.values()) - 1) > 1e-3:
        raise ValueError(
            f"The dropout shares {dict(shares)} sum to {sum(shares.values()):.4g}, expected 1. Set "
            f"{', '.join(f'--policy.dropout_{p}' for p in PATTERNS)} together."
        )
    if shares.get("deployment", 0.0) > 0 and not has_deployment:
        raise ValueError(
            f"--policy.dropout_deployment={shares['deployment']:.4g}, but no deployment is declared. "
            "Name the robot's streams: --policy.deployment='[\"front.rgb\"]'."
        )


def _draw_patterns(number: int, shares: Mapping[str, float] | None, generator: torch.Generator) -> Tensor:
    """Index into :data:`PATTERNS` for each sample, int64 (number,)."""
    if shares is None:
        return torch.zeros(number, dtype=torch.int64)
    weights = torch.tensor([shares.get(p, 0.0) for p in PATTERNS])
    return torch.multinomial(weights, number, replacement=True, generator=generator)


def _draw_kept(
    shape: Sequence[int],
    probability: float,
    pattern: Tensor,
    deployment: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """What dropout leaves, bool (R, V, M), each row by its pattern."""
    rows, views, modalities = shape

    def kept(*size: int) -> Tensor:
        return (torch.rand(size, generator=generator) >= probability).expand(rows, views, modalities)

    drawn = [kept(rows, views, modalities), kept(rows, views, 1), kept(rows, 1, modalities)]
    everything = torch.ones(views, modalities, dtype=torch.bool)
    drawn.append(kept(rows, 1, 1) | (everything if deployment is None else deployment.cpu()))
    return torch.stack(drawn)[pattern, torch.arange(rows)]
