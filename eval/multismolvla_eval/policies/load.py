"""Policies by path: a checkpoint, a baseline, or one behind a policy server."""

from __future__ import annotations

from multiprocessing.connection import Connection

from multismolvla_eval.environments import EnvironmentSource
from multismolvla_eval.policies.baselines import BuiltinPolicy
from multismolvla_eval.policies.interface import Policy
from multismolvla_eval.policies.lerobot import LeRobotPolicy, planning_checkpoints


def load_policy(
    path: str,
    source: EnvironmentSource,
    device: str | None = None,
    rename_map: dict[str, str] | None = None,
    server: Connection | None = None,
) -> Policy:
    """A built-in policy (``builtin:zero``), a LeRobot checkpoint, or one without pictures (``blind:checkpoint``).

    Args:
        path: of the policy.
        source: the environment.
        device: overrides the checkpoint's device.
        rename_map: as LeRobot's option.
        server: of the policies that plan ahead; without it all weights are loaded here.

    Raises:
        ValueError: a checkpoint is to run in an environment that LeRobot does not know.
    """
    if path == "builtin:expert":
        from multismolvla_eval.policies.baselines import ExpertPolicy

        return ExpertPolicy(source)
    if path.startswith("builtin:"):
        return BuiltinPolicy(path.removeprefix("builtin:"), source.action_dim)
    if source.config is None:
        raise ValueError(
            f"The policy {path!r} needs a LeRobot environment; this one has no LeRobot configuration."
        )
    bare, rename_map = path.removeprefix("blind:"), rename_map or {}
    policy: Policy
    if server is not None and planning_checkpoints([path]):
        from multismolvla_eval.policies.remote import RemotePolicy

        policy = RemotePolicy(bare, source, rename_map, server)
    else:
        policy = LeRobotPolicy(bare, source, device, rename_map)
    if not path.startswith("blind:"):
        return policy
    from multismolvla_eval.policies.baselines import BlindPolicy

    return BlindPolicy(policy)
