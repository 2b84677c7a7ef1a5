r"""How far do attacks on RGB (C6) move a policy's actions on recorded frames, and is the attack any good?

No roll-outs: each frame's pictures are attacked, and the actions that the policy plans on them are compared
with those that it plans on the true ones, from the same sampling noise. Random signs of the same size stand
beside every figure. A weak attack looks like a robust policy, so the protocol is checked before it is
believed; what each check found is printed and written.

Example:
    $ python -m multismolvla_eval.offline.attack_check --dataset=outputs/mini/dataset --episodes='[40, 41]' \
        --policies='[ours=outputs/mini/robust, vanilla=outputs/mini/base]' --output=outputs/mini
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from multismolvla.corruption.adversarial import LEVEL, Attack
from multismolvla.corruption.names import ATTACK_RADII, GRADIENT_ATTACKS
from multismolvla.modalities import Modality
from multismolvla.system.command import AGAIN, entry_point, parse_options
from multismolvla.system.files import write_json
from multismolvla_eval.offline.sensor_use import (
    Control,
    FrameOptions,
    Frames,
    load_as_trained,
    load_frames,
    open_dataset,
    partners,
    show,
)
from multismolvla_eval.policies.attacker import Attacker, Observation, PolicyAttack
from multismolvla_eval.policies.checkpoints import NO_VISION, policy_hash
from multismolvla_eval.policies.lerobot import draw_noise, possible_attacks, stored_config

FILE = "attacks.json"
#: Grey levels at which every policy must break.
BREAKS = 64.0
#: Share by which an objective may fall where it must not: APGD's searches do not contain one another.
SLACK = 0.01


@dataclass
class AttackedFrameOptions(FrameOptions):
    """Which recorded frames are attacked, and how far."""

    attacked: ClassVar[bool] = True
    # Frames, spread over the episodes.
    frames: int = 16
    # Radii in grey levels of 255.
    radii: list[float] = field(default_factory=lambda: [float(r) for r in ATTACK_RADII])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radii or not all(0 < r <= 255 for r in self.radii):
            raise ValueError(f"--radii={self.radii}: expected grey levels, more than 0 and at most 255.")


@dataclass
class AttackOptions(AttackedFrameOptions):
    """How far do attacks on RGB move a policy's actions on recorded frames? Fails where an attack is weak."""

    # Frames at a time.
    batch_size: int = 8
    # What is attacked: `policy`, the planned actions, or `feature`, the tokens that the language model reads.
    against: list[str] = field(default_factory=lambda: list(GRADIENT_ATTACKS))
    # How it searches: pgd or apgd.
    method: str = "apgd"
    # Steps of a search.
    steps: int = 100
    # Shorter searches, at the largest radius: more steps must not be weaker.
    fewer_steps: list[int] = field(default_factory=lambda: [5, 20])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.against or not set(self.against) <= set(GRADIENT_ATTACKS):
            raise ValueError(f"--against={self.against}: expected some of {list(GRADIENT_ATTACKS)}.")
        for steps in (self.steps, *self.fewer_steps):
            Attack(LEVEL, self.method, steps)


class AttackFigures(Struct):
    """One attack with one radius: means over frames; actions in normalised units, those that are executed."""

    against: str  # policy or feature
    radius: float  # grey levels of 255
    steps: int
    clean: float  # objective of the true pictures
    control: float  # of random signs
    reached: float  # of the attacked pictures
    gradient: float  # smallest L2 norm of a gradient
    moved: float  # mean absolute change of the actions
    moved_control: float  # by random signs
    moved_8bit: float  # by the attacked pictures, rounded to 8 bits
    error: float  # mean absolute error against the demonstration
    error_control: float  # with random signs


class Check(Struct):
    """Whether the attack behaves as one must."""

    name: str
    passed: bool
    found: str


class PolicyAttacks(Struct, omit_defaults=True):
    """What was measured of one policy, or why nothing was."""

    path: str
    checkpoint: str = ""
    left_out: str = ""
    frames: int = 0
    modalities: list[str] = msgspec.field(default_factory=list)  # that it was shown
    error: float = 0.0  # of the actions on the true pictures
    moved_by_others: float = 0.0  # change of the actions with the pictures of other frames
    figures: list[AttackFigures] = msgspec.field(default_factory=list)
    checks: list[Check] = msgspec.field(default_factory=list)


class AttackReport(Struct, kw_only=True):
    """``attacks.json``."""

    dataset: str
    episodes: list[int] | None
    method: str
    seed: int
    policies: dict[str, PolicyAttacks]
    command: str


def measure(path: str, options: AttackOptions, rename_map: Mapping[str, str]) -> PolicyAttacks:
    """Load a policy, attack its pictures, and check the attack.

    Raises:
        FileNotFoundError: there is no checkpoint or no dataset.
        ValueError: the dataset lacks the episodes, or the policy's pictures.
    """
    found = PolicyAttacks(path, policy_hash(path))
    if path.startswith(("builtin:", NO_VISION)):
        found.left_out = "it looks at no picture"
        return found
    config = stored_config(path, options)
    config.device = options.device or config.device
    against = [a for a in options.against if a in possible_attacks(config)]
    if not against or "policy" not in possible_attacks(config):
        found.left_out = f"no gradient of a {config.type} policy towards its pictures is known here"
        return found
    data = open_dataset(options, getattr(config, "depth_unit", "m"))
    policy, preprocess = load_as_trained(config, data.meta, rename_map)
    attacker = Attacker(policy, preprocess)
    bench = _Bench(attacker, load_frames(options, data, config, rename_map), options)
    found.frames, found.modalities = len(bench.frames), bench.modalities
    found.error, found.moved_by_others = bench.true_error(), bench.moved_by_others()
    largest = max(options.radii)
    for name in against:
        figures = [bench.attack(name, r, options.steps) for r in sorted(options.radii)]
        shorter = [bench.attack(name, largest, n) for n in sorted(options.fewer_steps)]
        nothing, broken = bench.attack(name, 0.0, 1), bench.attack(name, BREAKS, options.steps)
        found.checks += checks(name, nothing, shorter, figures, broken, found.moved_by_others)
        found.figures += [*shorter, *figures, broken]
    return found


def checks(
    against: str,
    nothing: AttackFigures,
    shorter: Sequence[AttackFigures],
    figures: Sequence[AttackFigures],
    broken: AttackFigures,
    moved_by_others: float,
) -> list[Check]:
    """What must hold of an attack, or its figures say nothing.

    Args:
        against: name of the objective.
        nothing: radius 0.
        shorter: with fewer steps, ascending, at the largest radius of ``figures``.
        figures: with all steps, by ascending radius.
        broken: with the radius ``BREAKS``.
        moved_by_others: change of the actions with the pictures of other frames.
    """

    def row(name: str, passed: bool, values: Sequence[float]) -> Check:
        return Check(f"{against}: {name}", passed, " ".join(f"{v:.4g}" for v in values))

    def rises(values: Sequence[float]) -> bool:
        return all(b >= a * (1 - SLACK) for a, b in zip(values, values[1:], strict=False))

    by_steps = [f.reached for f in (*shorter, figures[-1])]
    by_radius = [f.reached for f in (*figures, *([broken] if broken.radius > figures[-1].radius else []))]
    gains = [f.reached - f.control for f in figures]
    still = nothing.moved == 0 and nothing.reached == nothing.clean
    found = [
        row("radius 0 moves nothing", still, [nothing.moved]),
        row("gradients are not zero", all(f.gradient > 0 for f in figures), [f.gradient for f in figures]),
        row("more steps are not weaker", rises(by_steps), by_steps),
        row("a larger radius is not weaker", rises(by_radius), by_radius),
        row("stronger than random signs", min(gains) > 0, gains),
    ]
    if against == "policy":  # tokens may go astray in a way that matters little to the actions
        name = f"{BREAKS:g}/255 moves the actions as far as other frames' pictures do"
        found.append(row(name, broken.moved >= moved_by_others, [broken.moved, moved_by_others]))
    return found


class _Bench:
    """One policy and its frames."""

    def __init__(self, attacker: Attacker, frames: Frames, options: AttackOptions) -> None:
        self._attacker, self.frames, self._options = attacker, frames, options
        self._config = attacker.config
        self._streams = frames.streams(self._config)
        self._keys = {k: k for k in self._streams.get(Modality.RGB, {}) if k in frames.observation}
        if not self._keys:
            raise ValueError(
                f"{options.dataset} has no RGB picture of the policy's; attacks work on pictures, not on "
                "cached ids."
            )
        self._batches = torch.arange(len(frames)).split(options.batch_size)
        self._other = partners(len(frames), options.seed)
        prepared = [attacker.prepare(self._raw(rows))["action"] for rows in self._batches]
        self._target = torch.cat([x.float().cpu() for x in prepared])
        self._clean = self._over_batches(lambda rows, noise: self._chunk(self._raw(rows), noise))

    @property
    def modalities(self) -> list[str]:
        """What the policy is shown, or computes of the RGB that it is shown."""
        return list(self._streams)

    def true_error(self) -> float:
        """Mean absolute error of the actions on the true pictures."""
        return self._error(self._clean)

    def moved_by_others(self) -> float:
        """How far the pictures of other frames move the actions."""
        return self._moved(
            self._over_batches(lambda rows, noise: self._chunk(self._raw(rows, "shuffle"), noise))
        )

    def attack(self, against: str, radius: float, steps: int) -> AttackFigures:
        """Attack all frames."""
        how = Attack(radius * LEVEL, self._options.method, steps)
        results: list[PolicyAttack] = []
        chunks: dict[str, list[Tensor]] = {"attacked": [], "signs": [], "8bit": []}
        for number, rows in enumerate(self._batches):
            raw, noise = self._raw(rows), self._noise(number, len(rows))
            generator = torch.Generator().manual_seed(self._options.seed + number)
            self._attacker.reset()
            result = self._attacker.attack(raw, self._keys, against, how, generator, **noise)
            results.append(result)
            pictures = result.found.pictures
            rounded = {k: (x / LEVEL).round() * LEVEL for k, x in pictures.items()}
            for name, shown in (("attacked", pictures), ("signs", result.signs), ("8bit", rounded)):
                chunks[name].append(self._chunk({**raw, **shown}, noise))
        attacked, signs, rounded_8bit = (torch.cat(parts) for parts in chunks.values())

        def mean(values: list[Tensor]) -> float:
            return torch.cat([v.cpu() for v in values]).mean().item()

        norms = [r.found.gradient.min().item() for r in results if len(r.found.gradient)]
        return AttackFigures(
            against,
            radius,
            steps,
            mean([r.found.clean for r in results]),
            mean([r.control for r in results]),
            mean([r.found.reached for r in results]),
            min(norms, default=0.0),
            self._moved(attacked),
            self._moved(signs),
            self._moved(rounded_8bit),
            self._error(attacked),
            self._error(signs),
        )

    def _raw(self, rows: Tensor, change: str = "none") -> Observation:
        return show(self.frames, self._streams, Control("", change, "rgb"), rows, self._other)

    def _noise(self, number: int, size: int) -> dict[str, Tensor]:
        """The same sampling noise for all pictures of a batch."""
        generator = torch.Generator().manual_seed(self._options.seed + number)
        shapes = {k: (size, *v.shape[1:]) for k, v in draw_noise(self._config).items()}
        return {k: torch.randn(s, generator=generator).to(self._config.device) for k, s in shapes.items()}

    def _over_batches(self, chunk: Callable[[Tensor, dict[str, Tensor]], Tensor]) -> Tensor:
        parts = [chunk(rows, self._noise(number, len(rows))) for number, rows in enumerate(self._batches)]
        return torch.cat(parts)

    def _chunk(self, raw: Observation, noise: dict[str, Tensor]) -> Tensor:
        """Executed actions (B, n, A)."""
        return self._attacker.chunk(raw, **noise)[:, : self.frames.action.shape[1]].float().cpu()

    def _moved(self, chunk: Tensor) -> float:
        return (chunk - self._clean).abs().mean().item()

    def _error(self, chunk: Tensor) -> float:
        real = ~self.frames.is_pad
        error = (chunk - self._target).abs().mean(-1)
        return (error * real).sum().item() / max(1, int(real.sum()))


def check(options: AttackOptions, command: Sequence[str] = ()) -> AttackReport:
    """Measure all policies and write ``attacks.json``; returns what was written."""
    found = {name: measure(path, options, renames) for name, path, renames in options.chosen()}
    report = AttackReport(
        dataset=str(options.dataset),
        episodes=options.episodes,
        method=options.method,
        seed=options.seed,
        policies=found,
        command=shlex.join([Path(sys.executable).name, "-m", f"{__package__}.attack_check", *command]),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / FILE, msgspec.to_builtins(report))
    return report


def render(policy: PolicyAttacks) -> str:
    """The figures and the checks of a policy as tables."""
    lines = [
        f"{policy.frames} frames of {'+'.join(policy.modalities)}; true pictures: action error "
        f"{policy.error:.3f}; pictures of other frames move the actions by {policy.moved_by_others:.3f}",
        f"{'against':<9}{'radius':>7}{'steps':>6}{'objective':>11}{'signs':>9}{'gradient':>10}"
        f"{'moved':>9}{'signs':>8}{'8 bit':>8}{'error':>8}{'signs':>8}",
    ]
    lines += [
        f"{f.against:<9}{f.radius:>7g}{f.steps:>6}{f.reached:>11.4g}{f.control:>9.3g}{f.gradient:>10.2g}"
        f"{f.moved:>9.3f}{f.moved_control:>8.3f}{f.moved_8bit:>8.3f}{f.error:>8.3f}{f.error_control:>8.3f}"
        for f in policy.figures
    ]
    return "\n".join(
        [*lines, *(f"{'ok  ' if c.passed else 'FAIL'} {c.name}: {c.found}" for c in policy.checks)]
    )


@entry_point("error", errors=(ValueError, OSError, FloatingPointError), failure=2, interrupted=AGAIN)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0; 1 if a check of the attack fails, unless ``--strict=false``; 2 on an error.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse_options(AttackOptions, given)
    report = check(options, given)
    sys.stdout.write(
        "Attacks on RGB; radii in 1/255. Actions in normalised units: how far they move from those on the "
        "true pictures, and their error against the demonstration. `signs`: random signs of that size.\n"
    )
    for name, policy in report.policies.items():
        said = f"left out, {policy.left_out}" if policy.left_out else f"\n{render(policy)}"
        sys.stdout.write(f"\n{name}: {said}\n")
    sys.stdout.write(
        "\nDepth, segmentation and temperature are not attacked: their tokens are discrete. What the policy "
        "computes of RGB was computed anew; what only the dataset has, computed of the true RGB, was left "
        f"out.\nwritten: {options.output / FILE}\n"
    )
    failed = any(not c.passed for p in report.policies.values() for c in p.checks)
    return 1 if options.strict and failed else 0


if __name__ == "__main__":
    sys.exit(main())
