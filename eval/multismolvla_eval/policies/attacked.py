"""A policy whose RGB is attacked before each of its looks (C6)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from torch import Tensor

from multismolvla.corruption import Fault, episode_seed, frame_generator
from multismolvla.corruption.adversarial import LEVEL, Attack
from multismolvla.corruption.names import GRADIENT_ATTACKS
from multismolvla.modalities import Modality, default_view_map
from multismolvla_eval.policies.attacker import Attacker, Observation, PolicyAttack
from multismolvla_eval.policies.features import streams_by_modality
from multismolvla_eval.policies.interface import Look, Policy
from multismolvla_eval.policies.lerobot import LeRobotPolicy, possible_attacks
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import AttackRecord, PolicyFacts

#: Of PGD in a roll-out.
STEPS = 20


class AttackedPolicy:
    """Searches anew whenever the policy looks, with the policy's own weights; the rest is the policy's.

    The attacked pictures are not rounded to 8 bits. Recorders show what the camera saw.

    Args:
        policy: whose weights are here.
        fault: the attack.
        run_seed: of the evaluation.
        episode: that begins.

    Raises:
        ValueError: the policy cannot be attacked so.
    """

    def __init__(self, policy: Policy, fault: Fault, run_seed: int, episode: EpisodeSpec) -> None:
        if not isinstance(policy, LeRobotPolicy) or policy.policy is None:
            raise ValueError(
                f"The policy {episode.policy!r} has no weights in this process, so it cannot be attacked. "
                f"Leave {episode.condition} out, or use --batch_size=1."
            )
        known = possible_attacks(policy.config)
        if fault.type not in known:
            raise ValueError(
                f"The policy {episode.policy!r} of type {policy.config.type!r} cannot be attacked by "
                f"{fault.type!r}; possible: {known or 'none, it reads no RGB'}."
            )
        self._policy, self._fault = policy, fault
        self._attacker = Attacker(policy.policy, policy.prepare)
        self._how = Attack(float(fault.parameter or 0.0) * LEVEL, "pgd", STEPS)
        cameras = policy.cameras if fault.cameras is None else fault.cameras
        reads = streams_by_modality(policy.config)[Modality.RGB]
        named = {k: policy.rename_map.get(k, k) for k in _keys(policy.cameras, cameras)}
        self._keys = {key: name for key, name in named.items() if name in reads}
        self._seed = episode_seed(
            run_seed, episode.suite, episode.task_id, episode.episode, "+".join(fault.cameras or ()),
            fault.modality, fault.type, self._how.radius,
        )  # fmt: skip
        self._looks = 0
        self._found: list[PolicyAttack] = []

    @property
    def config(self) -> Any:
        """The policy's."""
        return self._policy.config

    def facts(self) -> PolicyFacts:
        """The policy's."""
        return self._policy.facts()

    def reset(self) -> None:
        """See `Policy`."""
        self._policy.reset()

    def watch(self, env: gym.Env) -> None:
        """See `Policy`."""
        self._policy.watch(env)

    def act(self, batch: Observation) -> Tensor:
        """The policy's actions on the attacked pictures."""
        return self._policy.act(batch)

    def last_look(self) -> Look:
        """See `Policy`."""
        return self._policy.last_look()

    def prepare(self, batch: Observation) -> Observation:
        """The policy's pre-processor on the attacked pictures."""
        return self._policy.prepare({**batch, **self.pictures(batch)})

    def pictures(self, batch: Observation) -> dict[str, Tensor]:
        """The attacked pictures of the next look, by their names in a raw batch."""
        keys = {key: name for key, name in self._keys.items() if key in batch}
        generator = frame_generator(self._seed, self._looks, self._fault.type)
        self._looks += 1
        if not keys:
            return {}
        if self._fault.type not in GRADIENT_ATTACKS:
            return self._attacker.signs(batch, keys, self._how.radius, generator)
        result = self._attacker.attack(batch, keys, self._fault.type, self._how, generator)
        if any(bool(rows.any()) for rows in result.available.values()):
            self._found.append(result)
        return result.found.pictures

    def record(self) -> AttackRecord | None:
        """What the searches of the episode found; ``None`` if there was none."""
        if not self._found:
            return None
        looks = len(self._found)

        def mean(values: list[Tensor]) -> float:
            return float(f"{sum(v.mean().item() for v in values) / looks:.6g}")

        return AttackRecord(
            looks,
            mean([a.found.clean for a in self._found]),
            mean([a.control for a in self._found]),
            mean([a.found.reached for a in self._found]),
            sum(int((a.found.reached <= a.control.to(a.found.reached.device)).any()) for a in self._found),
            float(f"{min(a.found.gradient.min().item() for a in self._found):.6g}"),
        )


def _keys(environment: tuple[str, ...], attacked: tuple[str, ...]) -> list[str]:
    views = default_view_map(tuple(environment))
    return [views[camera][Modality.RGB] for camera in attacked]
