"""The one policy that a server serves, and what of a robot's observations it reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline, RenameObservationsProcessorStep
from lerobot.utils.constants import OBS_STATE

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.derived import derived_streams
from lerobot_policy_multismolvla.export import load_policy, read_policy_config
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from multismolvla.modalities import PICTURE_CHANNELS, Feature
from multismolvla_eval.policies.checkpoints import resolve_checkpoint

logger = logging.getLogger(__name__)

_PICTURES = ("image", "video")  # dtypes of LeRobot's features


class Processors(NamedTuple):
    """A policy's processors, for one client."""

    pre: PolicyProcessorPipeline
    post: PolicyProcessorPipeline

    @property
    def rename_map(self) -> dict[str, str]:
        """Key of the robot -> key of the policy."""
        steps = (s for s in self.pre.steps if isinstance(s, RenameObservationsProcessorStep))
        return next((step.rename_map for step in steps), {})


class PinnedPolicy(NamedTuple):
    """A policy in memory.

    Attributes:
        path: as it was named.
        folder: where it lies.
        policy: with its adapters merged.
    """

    path: str
    folder: Path
    policy: MultiSmolVLAPolicy

    @classmethod
    def load(cls, path: str, *, base: Path | None = None, overrides: Sequence[str] = ()) -> PinnedPolicy:
        """Read a policy and what it needs to act.

        Args:
            path: folder (also one of a training run, then its last checkpoint) or hub id.
            base: the checkpoint that the adapters were trained on, if it is no longer where they say.
            overrides: options of the policy, such as ``--device=cuda``.

        Raises:
            FileNotFoundError: no policy there, or something that it needs is gone.
            ValueError: another policy type, or weights that do not fit.
        """
        found = resolve_checkpoint(path)
        folder = Path(found if Path(found).is_dir() else snapshot_download(found))
        policy = load_policy(folder, base, read_policy_config(folder, overrides))
        policy.to(policy.config.device).eval()
        policy.reset()  # reads the estimators of its derived streams
        return cls(path, folder, policy)

    def is_called(self, asked: str) -> bool:
        """Whether a client means this policy."""
        return asked in (self.path, str(self.folder), str(self.folder.resolve()))

    def processors(self, rename_map: Mapping[str, str]) -> Processors:
        """Processors that remember nothing; an empty ``rename_map`` leaves the stored one."""
        config = self.policy.config
        renamed = {"rename_observations_processor": {"rename_map": dict(rename_map)}} if rename_map else {}
        made = make_pre_post_processors(
            config,
            pretrained_path=str(self.folder),
            preprocessor_overrides={"device_processor": {"device": str(config.device)}, **renamed},
        )
        return Processors(*made)


def readable_features(
    config: MultiSmolVLAConfig, features: Mapping[str, Feature], rename_map: Mapping[str, str]
) -> dict[str, Feature]:
    """What of a robot's features the policy reads; cameras that it does not declare are left out.

    Args:
        config: of the policy.
        features: what the robot observes, by LeRobot's keys; pictures are (H, W, C).
        rename_map: key of the robot -> key of the policy.

    Raises:
        ValueError: another number of state values, a picture of other channels, or none that is declared.
    """
    named = {rename_map.get(key, key): key for key in features}
    wanted = (config.input_features or {})[OBS_STATE].shape
    joints = (features[named[OBS_STATE]]["names"] if OBS_STATE in named else None) or ()
    if (len(joints),) != tuple(wanted):
        raise ValueError(
            f"The robot observes {len(joints)} numbers ({', '.join(joints) or 'none'}), the policy was "
            f"trained with {wanted[0]}. It belongs to another robot."
        )
    declared = config.stream_keys()
    cameras = {k: original for k, original in named.items() if features[original]["dtype"] in _PICTURES}
    seen = {key: original for key, original in cameras.items() if key in declared}
    for key, original in seen.items():
        (_, modality), shape = declared[key], features[original]["shape"]
        if len(shape) != 3 or shape[2] not in PICTURE_CHANNELS[modality]:
            raise ValueError(
                f"The robot's {original} has shape {tuple(shape)}, but the policy reads {modality} there: "
                f"(H, W, {' or '.join(map(str, PICTURE_CHANNELS[modality]))}). Name the cameras as the "
                "policy's views do, or give the server --rename_map."
            )
    if not seen:
        raise ValueError(
            f"The robot's pictures are {sorted(cameras)}, and the policy declares none of them: it reads "
            f"{sorted(declared)}. Name the robot's cameras so, or say which is which: multismolvla-serve "
            "--rename_map='{KEY OF THE ROBOT: KEY OF THE POLICY}'."
        )
    absent = declared.keys() - seen - {stream.key for stream in derived_streams(config)}
    logger.info(
        "Pictures that the policy reads: %s. Ignored: %s. Absent: %s.",
        *(", ".join(sorted(keys)) or "none" for keys in (seen, cameras.keys() - seen, absent)),
    )
    return {original: features[original] for original in [named[OBS_STATE], *seen.values()]}
