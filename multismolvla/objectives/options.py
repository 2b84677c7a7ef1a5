"""Options of the objectives that are added to a stage's loss. All are off by default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from multismolvla.dropout import curriculum_share


@dataclass
class RobultOptions:
    """Contrast of what modalities share, reconstruction of what they do not; see `robult`.

    The weights after the first are relative to it.
    """

    weight: float = 0.0  # of the whole; 0 = off, 1 = with the weights below as they are
    contrastive: float = 0.1
    reconstruction: float = 0.1
    orthogonality: float = 0.01  # within the reconstruction
    width: int = 256  # of the shared space and of the unique parts; below the encoder's
    temperature: float = 0.1
    posterior_ramp: float = 0.2  # share of the stage after which the guessed task of a frame counts in full
    # Folder of a second LeRobotDataset with the policy's views. Of its frames only what the tower reads is
    # read, neither state, actions nor instruction.
    unlabelled: str | None = None
    unlabelled_ratio: float = 1.0  # of its frames to those of a batch
    unlabelled_workers: int = 2  # processes that read them; 0 = the training's own


@dataclass
class RlbindOptions:
    """Connector that attacks on RGB do not move, and its alignment with the instructions; see `rlbind`.

    The weights after the first are relative to it. ``anchor=0, distribution=0`` leaves stage 1 of the method.
    """

    weight: float = 0.0  # of the whole; 0 = off, 1 = with the weights below as they are
    adversarial: float = 1.0
    clean: float = 1.0
    anchor: float = 0.1
    distribution: float = 0.1
    width: int = 256  # of the space of the instruction anchors
    temperature: float = 0.07
    radius: float = 2.0  # of the attack (L-infinity), in 255ths of the range of a pixel
    attack_steps: int = 5
    attack_ramp: float = 0.6  # share of the stage over which the radius rises from 0
    attack_clean: float = 0.1  # last share of the stage without attack


@dataclass
class ObjectivesOptions:
    """What is added to a stage's loss, and which samples count as labelled."""

    robult: RobultOptions = field(default_factory=RobultOptions)
    rlbind: RlbindOptions = field(default_factory=RlbindOptions)
    # Share of each task's episodes whose actions and task the training may use, in the stage's loss, too.
    label_fraction: float = 1.0
    label_seed: int = 0  # decides which episodes these are
    # Their numbers, instead of a share that is drawn.
    label_episodes: list[int] = field(default_factory=list)
    labelled: list[int] = field(default_factory=list)  # what came of it, adopted from the training data
    # Instructions by the data's task_index, adopted from the training data while an objective asks for them.
    tasks: list[str] = field(default_factory=list)

    @property
    def hides_labels(self) -> bool:
        """Whether some episodes do not count as labelled."""
        return self.label_fraction < 1 or bool(self.label_episodes)


def check_objectives(options: ObjectivesOptions) -> None:
    """Check the options by themselves.

    Raises:
        ValueError: a number outside its range; the message names the option as typed.
    """
    if not 0 < options.label_fraction <= 1:
        raise ValueError(
            f"--policy.objectives.label_fraction={options.label_fraction} must lie in (0, 1]: the share of "
            "the episodes that count as labelled."
        )
    for name, group in (("robult", options.robult), ("rlbind", options.rlbind)):
        for option in fields(group):
            value = getattr(group, option.name)
            if not isinstance(value, int | float):
                continue
            least = 1 if option.name in ("width", "attack_steps") else 0
            if not math.isfinite(value) or value < least:
                raise ValueError(
                    f"--policy.objectives.{name}.{option.name}={value} must be a number of at least {least}."
                )
        if group.temperature == 0:
            raise ValueError(f"--policy.objectives.{name}.temperature=0 must be greater than 0.")
    ramp = options.robult.posterior_ramp
    if not 0 < ramp <= 1:
        raise ValueError(f"--policy.objectives.robult.posterior_ramp={ramp} must lie in (0, 1].")
    ratio = options.robult.unlabelled_ratio
    if not 0 < ratio <= 10:
        raise ValueError(
            f"--policy.objectives.robult.unlabelled_ratio={ratio} must lie in (0, 10]: unlabelled frames for "
            "each frame of a batch."
        )
    rlbind = options.rlbind
    if not 0 < rlbind.radius <= 255:
        raise ValueError(
            f"--policy.objectives.rlbind.radius={rlbind.radius} must lie in (0, 255], in 255ths; usual are "
            "1 to 8."
        )
    attack_share(rlbind, 0, 1)  # its own checks


def attack_share(options: RlbindOptions, step: int, total: int) -> float:
    """How far the attack's radius has risen at a step, in [0, 1]; 0 in the clean last share."""
    share = curriculum_share(
        step,
        total,
        ramp=options.attack_ramp,
        clean=options.attack_clean,
        name="objectives.rlbind.attack",
    )
    return share or 0.0
