"""What an environment tells of itself. Imports no simulator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnvironmentFacts:
    """What a :class:`~lerobot_env_multismolvla.multimodal_env.MultiModalLiberoEnv` tells of itself.

    The fields are those of ``multismolvla_eval.records.schema.SuiteFacts``, of which this is one task.
    """

    type: str
    tasks: dict[int, str]
    max_steps: int
    init_states: int
    init_state_splits: dict[str, tuple[int, int]]
    init_split: str
    render_quality: str
    num_steps_wait: int
    mini_version: int | None
    faultable: bool
    fps: int
    streams: tuple[str, ...]
    provenance: dict[str, str]
    labels: tuple[str, ...]
    assets: str
    assets_standins: bool | None
    assets_differing: tuple[str, ...]
