"""Policies by path: a checkpoint, the same without pictures, or a baseline without weights."""

from __future__ import annotations

from collections.abc import Mapping

from multismolvla_eval.config import EstimatorOptions
from multismolvla_eval.environments import EnvironmentSource
from multismolvla_eval.policies.baselines import BuiltinPolicy, ExpertPolicy, NoVisionPolicy
from multismolvla_eval.policies.checkpoints import NO_VISION, REPLAY
from multismolvla_eval.policies.interface import Policy, PolicyServer
from multismolvla_eval.policies.replay import ReplayPolicy


def load_policy(
    path: str,
    source: EnvironmentSource,
    device: str | None = None,
    rename_map: Mapping[str, str] | None = None,
    server: PolicyServer | None = None,
    estimators: EstimatorOptions | None = None,
) -> Policy:
    """A built-in policy (``builtin:...``), a LeRobot checkpoint, or one without pictures (``no_vision:...``).

    Args:
        path: of the policy.
        source: the environment.
        device: overrides the checkpoint's device.
        rename_map: as LeRobot's option.
        server: of the policies that plan ahead; without it all weights are loaded here.
        estimators: where the networks are that a policy estimates with, and what counts without them.

    Raises:
        FileNotFoundError, ValueError: the recording of ``builtin:replay:`` does not fit, see `ReplayPolicy`.
        ValueError: a checkpoint is to run in an environment that LeRobot does not know.
    """
    if path == "builtin:expert":
        return ExpertPolicy(source)
    if path.startswith(REPLAY):
        return ReplayPolicy(path, source)
    if path.startswith("builtin:"):
        return BuiltinPolicy(path.removeprefix("builtin:"), source.action_dim)
    if source.config is None:
        raise ValueError(
            f"The policy {path!r} needs a LeRobot environment; this one has no LeRobot configuration."
        )
    from multismolvla_eval.policies.lerobot import LeRobotPolicy

    policy = LeRobotPolicy(path.removeprefix(NO_VISION), source, device, rename_map, server, estimators)
    return NoVisionPolicy(policy) if path.startswith(NO_VISION) else policy
