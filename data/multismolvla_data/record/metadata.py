"""The file that tells where a recording comes from; its presence also marks the data set as whole."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from multismolvla.system.files import write_json
from multismolvla_data.record.config import EVALUATION_STATES, LiberoEpisodeSettings

if TYPE_CHECKING:
    from multismolvla_data.record.config import RecordConfig
if TYPE_CHECKING:
    from multismolvla_data.record.config import RecordConfig
from multismolvla_data.formats.dataset_writer import stream_metadata


def failed_states(used: list[int]) -> list[int]:
    """Initial states that the expert tried and did not solve: the gaps, as states are tried in order.

    States after the last used one do not count: how many of them were tried depends on the number of workers.
    """
    return sorted(set(range(max(used, default=-1) + 1)) - set(used))


def write_metadata(
    target: Path, config: RecordConfig, states: dict[int, list[int]], lengths: list[int]
) -> None:
    """Write where the data come from; its presence also marks the data set as whole.

    Args:
        target: file to write.
        config: the recording's options.
        states: initial states of the stored episodes by task, ascending.
        lengths: frames of the episodes in the data set's order.
    """
    from lerobot_env_multismolvla.mini import TASKS

    content = {
        "recording": config.fingerprint(),
        "suite": config.task,
        "tasks": {str(t): TASKS[t].replace("_", " ") for t in states},
        "init_split": config.init_split,
        "init_states": {str(t): used for t, used in states.items()},
        "failed_init_states": {str(t): failed_states(used) for t, used in states.items()},
        "episode_lengths": lengths,
        **stream_metadata(config.task, config.render_quality),
        "actions": actions_note(config),
        "lerobot": version("lerobot"),
    }
    write_json(target, content)


def actions_note(config: RecordConfig) -> str:
    """What the metadata of a recording tell about its actions."""
    return "clean; the executed ones were disturbed" if config.noise else "clean, executed as recorded"


#: Where they go.
STATES_FOLDER = "meta/simulation"


def write_libero_metadata(
    target: Path,
    config: RecordConfig,
    numbers: dict[int, list[int]],
    lengths: list[int],
    names: dict[int, str],
) -> None:
    """As :func:`.dataset_writer.write_metadata`, for LIBERO's suites.

    Args:
        target: file to write.
        config: the recording's options.
        numbers: tries whose episodes are stored, by task, ascending.
        lengths: frames of the episodes in the data set's order.
        names: instruction of each task.
    """
    from multismolvla_data.formats.dataset_writer import stream_metadata
    from multismolvla_data.record.metadata import actions_note, failed_states

    settings = config.settings
    assert isinstance(settings, LiberoEpisodeSettings)

    def starts(tries: list[int]) -> list[dict[str, int]]:
        return [dict(zip(("init_state", "seed"), settings.start(n), strict=True)) for n in tries]

    content = {
        "recording": config.fingerprint(),
        "suite": config.task,
        "tasks": {str(t): names[t] for t in numbers},
        "starts": {str(t): starts(used) for t, used in numbers.items()},
        "failed_starts": {str(t): starts(failed_states(used)) for t, used in numbers.items()},
        "evaluation_init_states": f"0-{EVALUATION_STATES[-1]}",
        "episode_lengths": lengths,
        **stream_metadata(config.task, config.render_quality),
        "simulation": f"{STATES_FOLDER}: LIBERO's flattened state before each frame and the action executed",
        "actions": actions_note(config),
        "lerobot": version("lerobot"),
        "mujoco": version("mujoco"),
    }
    write_json(target, content)
