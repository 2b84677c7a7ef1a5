"""One training step as the objectives see it, and how their terms join the stage's loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_multismolvla import training_faults
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.flow import FlowDraw, Loss, draw_noise_and_time, rank, velocities
from lerobot_policy_multismolvla.objectives.modules import alone_modalities
from lerobot_policy_multismolvla.trainable import has_adapters, without_adapters
from lerobot_policy_multismolvla.training_faults import Corruption
from lerobot_policy_multismolvla.visual import (
    RGB,
    Pass,
    VisualPrefix,
    encoder_inputs,
    run_tower,
    visual_tokens,
)
from multismolvla.dropout import step_generator
from multismolvla.modalities import MODALITIES, Modality
from multismolvla.objectives.attack import pgd
from multismolvla.objectives.interface import (
    AttackedLook,
    BridgeInputs,
    CompleteLook,
    Look,
    UnimodalLook,
    Unlabelled,
    Velocities,
)
from multismolvla.tower import EncoderInputs, TowerOutput

#: How many labelled frames are expected among those that end a run if they have none.
_ENOUGH = 50


class LabelWatch:
    """Ends a run that reads none of the episodes that count as labelled.

    LeRobot 0.6.1 tells a policy which episodes a data set has, not which of them a run reads.

    Args:
        share: of the data set's episodes that count as labelled; 0 = nothing is watched.
    """

    def __init__(self, share: float):
        self._share, self._frames, self._first, self._again = share, 0, -1, False

    def look(self, known: Tensor, frame: Tensor) -> None:
        """Look at a batch.

        Args:
            known: bool (B,), which samples are labelled.
            frame: int64 (B,), their numbers in the data set.

        Raises:
            ValueError: the data begin anew, and so far none was labelled.
        """
        if self._share == 0:
            return
        if known.any():
            self._share = 0.0
            return
        self._again |= bool((frame == self._first).any())
        self._first = self._first if self._frames else int(frame[0])
        self._frames += len(frame)
        # A resumed run meets its first frame again before it has met all; a streamed one begins with a few
        # episodes.
        if self._again and self._frames * self._share > _ENOUGH:
            raise ValueError(
                f"None of the {self._frames} frames so far is of an episode that counts as labelled. "
                "--policy.objectives.label_fraction draws from the whole data set, whatever "
                "--dataset.episodes and --dataset.eval_split leave of it. Name some that are read: "
                "--policy.objectives.label_episodes='[...]'."
            )


def hide_labels(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor], watch: LabelWatch) -> dict[str, Tensor]:
    """The batch without the actions of episodes that do not count as labelled: they are padding.

    Raises:
        ValueError: as :func:`labelled`, and as `LabelWatch.look`.
    """
    if not cfg.objectives.hides_labels:
        return batch
    known = labelled(cfg, batch)
    watch.look(known, _column(batch, "index"))
    hidden = ~known[:, None]
    padding = batch.get("action_is_pad")
    if padding is None:
        padding = torch.zeros(batch["action"].shape[:2], dtype=torch.bool, device=hidden.device)
    return batch | {"action_is_pad": padding | hidden}


def labelled(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor]) -> Tensor:
    """Which samples are of episodes that count as labelled, bool (B,).

    Raises:
        ValueError: these episodes are not known, or the batch does not say from which it is.
    """
    episode, options = _column(batch, "episode_index"), cfg.objectives
    if not options.hides_labels:
        return torch.ones_like(episode, dtype=torch.bool)
    if not options.labelled:
        raise ValueError(
            f"--policy.objectives.label_fraction={options.label_fraction}, but which episodes count as "
            "labelled is not known: they are drawn from the training data's table of episodes. Build the "
            "policy with LeRobot's make_policy(ds_meta=...), or set --policy.objectives.label_episodes."
        )
    return torch.isin(episode, torch.tensor(options.labelled, device=episode.device))


def _column(batch: dict[str, Tensor], key: str) -> Tensor:
    """A number per sample, int64 (B,)."""
    if key not in batch:
        raise ValueError(
            f"The training batch has no {key!r}, which the objectives need. LeRobot's data sets have it: "
            "pass batches on as its data loader and pre-processor make them."
        )
    return batch[key].reshape(len(batch[OBS_STATE]))


@dataclass(frozen=True)
class Sensors:
    """What of the sensors a step uses.

    Attributes:
        available: what each sample has, bool (B, V, M).
        presence: what dropout left of it.
        faults: what is disturbed besides.
    """

    available: Tensor
    presence: Tensor
    faults: Corruption | None = None

    def changed(self) -> Tensor:
        """Which samples lack or show something else than they have, bool (B,)."""
        lost = (self.presence != self.available).any(-1).any(-1)
        if self.faults is None:
            return lost
        return lost | (self.faults.severity > 0).any(-1).any(-1)


def draw_sensors(policy: SmolVLAPolicy, available: Tensor, seed: int) -> Sensors:
    """What a stage's curricula drop and disturb of the sensors in training.

    Args:
        policy: in training, or not: then nothing is drawn.
        available: bool (B, V, M), what the batch has.
        seed: of the draws.
    """
    cfg: MultiSmolVLAConfig = policy.config
    if not cfg.uses_fourm:
        rgb = torch.zeros_like(available)
        rgb[:, :, RGB] = available[:, :, RGB]
        available = rgb
    if not policy.training:
        return Sensors(available, available)
    connector = cfg.stage == "connector"
    drop = training_faults.drop_for_connector if connector else training_faults.drop_sensors
    presence = drop(cfg, available, seed, rank()) if cfg.drops else available
    faults = training_faults.draw_corruption(cfg, presence, seed, rank()) if cfg.corrupts else None
    if faults is not None:
        presence = training_faults.seen_beside(cfg, presence, faults)
    return Sensors(available, presence, faults)


class TrainingStep:
    """A `multismolvla.objectives.interface.Step` of a policy.

    Args:
        policy: in training.
        batch: canonical.
        sensors: of this step.
        visual: what the stage's loss saw of them.
        draw: noise and time of that loss.
        velocity: its velocity field (B, T, A), where an objective asks for it.
    """

    def __init__(
        self,
        policy: SmolVLAPolicy,
        batch: dict[str, Tensor],
        sensors: Sensors,
        visual: VisualPrefix,
        draw: FlowDraw,
        velocity: Tensor | None = None,
    ):
        self._policy, self._batch, self._sensors = policy, batch, sensors
        self._visual, self._draw, self._velocity = visual, draw, velocity
        self._cfg: MultiSmolVLAConfig = policy.config

    # -- about the samples ----------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Steps done so far in this stage."""
        return self._cfg.curriculum_step

    @property
    def total(self) -> int:
        """Length of the stage in steps."""
        return self._cfg.curriculum_steps

    @property
    def chunk(self) -> int:
        """Frames that an action chunk spans."""
        return int(self._cfg.chunk_size)

    @cached_property
    def task(self) -> Tensor:
        """Task of each sample, int64 (B,); -1 = unlabelled.

        Raises:
            ValueError: the batch does not say it, or names a task that the policy does not know.
        """
        task, known = _column(self._batch, "task_index"), len(self._cfg.objectives.tasks)
        if task.numel() and int(task.max()) >= known:
            raise ValueError(
                f"The training batch has task_index={int(task.max())}, but --policy.objectives.tasks names "
                f"{known} tasks. They are adopted from the training data; leave the option out."
            )
        return torch.where(labelled(self._cfg, self._batch), task, -1)

    @property
    def episode(self) -> Tensor:
        """Episode of each sample, int64 (B,)."""
        return _column(self._batch, "episode_index")

    @property
    def index(self) -> Tensor:
        """Number of each sample's frame in the data set, int64 (B,)."""
        return _column(self._batch, "index")

    # -- looks ----------------------------------------------------------------------------------------------

    def seen(self) -> Look:
        """What the stage's own loss has seen."""
        look = self._policy.last_look()
        return _pooled(self._visual, look.seen)

    def unimodal(self) -> UnimodalLook:
        """One modality of that alone; drawn evenly, the same on all ranks."""
        return self._unimodal

    @cached_property
    def _unimodal(self) -> UnimodalLook:
        return self._alone(self._batch, self._sensors)

    def unlabelled(self) -> Unlabelled | None:
        """Frames of the second data set, which the stage's curricula drop and disturb like the batch."""
        frames = self._policy.unlabelled_frames
        if frames is None:
            return None
        batch = frames.batch(self.number, self._batch[OBS_STATE])
        # others than the batch's own draws
        seed = step_generator(self._policy.curriculum_seed, 0, purpose="unlabelled").initial_seed()
        sensors = draw_sensors(self._policy, self._policy.availability(batch), seed)
        made = self._look(batch, sensors.presence, sensors.faults)
        return Unlabelled(
            _pooled(made.prefix, made.seen),
            self._alone(batch, sensors),
            -1 - _column(batch, "episode_index"),
            _column(batch, "index"),
        )

    def _alone(self, batch: dict[str, Tensor], sensors: Sensors) -> UnimodalLook:
        cfg, tower = self._cfg, self._policy.model.tower
        shown = alone_modalities(cfg)
        generator = step_generator(self._policy.curriculum_seed, self.number, purpose="unimodal")
        modality = shown[int(torch.randint(len(shown), (), generator=generator))]
        only = torch.tensor([m == modality for m in MODALITIES], device=sensors.presence.device)
        presence = cfg.provenance_map.drop_with_rgb(sensors.presence & only)
        made = self._look(batch, presence, sensors.faults)
        width = tower.encoder.config.dim
        encoded = torch.zeros(len(presence), width, device=presence.device)
        if made.encoded.tokens or made.encoded.globals:
            encoded = _pooled_encoded(made.encoded, len(presence), width)
        return UnimodalLook(modality, _pooled(made.prefix, made.seen), encoded)

    def complete(self) -> CompleteLook:
        """Everything, undisturbed."""
        return self._complete

    @cached_property
    def _complete(self) -> CompleteLook:
        if not self._cfg.provenance_map.derived():
            return self._measured
        available = self._sensors.available
        return self._undisturbed(encoder_inputs(self._policy, self._batch, available, None), available)

    def measured(self) -> CompleteLook:
        """The same without what is computed from RGB: what an attack is compared with."""
        return self._measured

    @cached_property
    def _measured(self) -> CompleteLook:
        return self._undisturbed(self._measured_inputs, self._without_derived)

    @cached_property
    def _measured_inputs(self) -> EncoderInputs:
        return encoder_inputs(self._policy, self._batch, self._without_derived, None)

    @cached_property
    def _without_derived(self) -> Tensor:
        """What is available, bool (B, V, M), but for the streams that would show the clean RGB."""
        presence = self._sensors.available.clone()
        for v, m in self._cfg.provenance_map.derived():
            presence[:, v, m] = False
        return presence

    def _undisturbed(self, entering: EncoderInputs, presence: Tensor) -> CompleteLook:
        tower, rgb = self._policy.model.tower, presence[:, :, RGB]
        made, inputs = run_tower(self._policy, entering, presence), None
        encoded = made.encoded
        if encoded.tokens or encoded.globals:
            if has_adapters(tower):
                with torch.no_grad(), without_adapters(tower):
                    encoded = tower.encode(entering)
            inputs = BridgeInputs(
                encoded.tokens, encoded.present, encoded.globals, encoded.globals_present, rgb.numel()
            )
        return CompleteLook(_pooled(made.prefix, made.seen), self._grid_tokens(made.prefix), rgb, inputs)

    def attacked(
        self, distance: Callable[[Tensor], Tensor], radius: float, step: float, steps: int
    ) -> AttackedLook:
        """RGB attacked so that ``distance`` of the connector's tokens (B, V, N, D) grows; in pixel units."""
        presence = self._without_derived
        keys = {
            v: key
            for v, streams in enumerate(self._cfg.views.values())
            if (key := streams.get(Modality.RGB)) in self._batch
        }
        if not presence[:, :, RGB].any():
            whole = self.measured()
            return AttackedLook(whole.look, whole.tokens)
        pictures = [self._batch[key] for key in keys.values()]
        seed = step_generator(self._policy.curriculum_seed, self.number, rank(), "attack").initial_seed()
        generator = torch.Generator().manual_seed(seed)
        inputs = self._measured_inputs

        def moved(varied: list[Tensor]) -> Tensor:
            shown = self._with_rgb(inputs, dict(zip(keys, varied, strict=True)), presence)
            prefix = run_tower(self._policy, shown, presence).prefix
            # A mean over the batch would let the gradient of a pixel vanish in float16.
            return distance(self._grid_tokens(prefix)) * presence[:, :, RGB].sum()

        where = [presence[:, v, RGB] for v in keys]
        found = pgd(moved, pictures, radius, step, steps, generator, where)
        shown = self._with_rgb(inputs, dict(zip(keys, found, strict=True)), presence)
        made = run_tower(self._policy, shown, presence)
        return AttackedLook(_pooled(made.prefix, made.seen), self._grid_tokens(made.prefix))

    def _with_rgb(
        self, inputs: EncoderInputs, pictures: dict[int, Tensor], presence: Tensor
    ) -> EncoderInputs:
        """Encoder inputs with other pictures of some views; nothing else is made anew."""
        views = [
            {Modality.RGB.value: pictures[v]} if v in pictures else {} for v in range(len(self._cfg.views))
        ]
        rgb = self._policy.model.tower.encoder_inputs(views, presence)
        return EncoderInputs(inputs.values | rgb.values, inputs.present, inputs.domains)

    def velocities(self) -> Velocities:
        """What the action expert answers with the dropped and with the complete sensors.

        Only samples that lack or show something else are looked at again: the others answer alike.
        """
        assert self._velocity is not None
        width = self._cfg.action_feature.shape[0]
        dropped = self._velocity[..., :width]
        where = self._sensors.changed()
        draws = len(dropped) // len(where)  # of noise and time, side by side
        complete = dropped.detach().clone()
        if where.any():
            complete[where.repeat_interleave(draws)] = self._complete_velocities(where, draws).to(complete)
        real, padded = torch.ones_like(complete[..., :1]), self._batch.get("action_is_pad")
        if padded is not None:
            real = (~padded)[..., None].to(complete).repeat_interleave(draws, 0)
        return Velocities(dropped, complete, real)

    @torch.no_grad()
    def _complete_velocities(self, where: Tensor, draws: int) -> Tensor:
        """Velocities (N * draws, T, A) of the N samples ``where``, bool (B,), with all their sensors."""
        policy, noise, time = self._policy, self._draw.noise, self._draw.time
        if noise is None or time is None:
            actions = policy.prepare_action(self._batch).repeat_interleave(draws, 0)
            noise, time = draw_noise_and_time(policy, actions)
        some = {key: _rows(value, where) for key, value in self._batch.items()}
        visual, _ = visual_tokens(policy, some, self._sensors.available[where], None)
        rows = where.repeat_interleave(draws)
        return velocities(policy, some, visual, noise[rows], time[rows])[0].flatten(0, 1)

    def _look(self, batch: dict[str, Tensor], presence: Tensor, faults: Corruption | None = None) -> Pass:
        return run_tower(self._policy, encoder_inputs(self._policy, batch, presence, faults), presence)

    def _grid_tokens(self, prefix: VisualPrefix) -> Tensor:
        """Tokens of the views (B, V, N, D), without global ones."""
        return torch.stack(prefix.tokens[: len(self._cfg.views)], 1)


def _rows(value: Any, where: Tensor) -> Any:
    """The samples ``where``, bool (B,), of an entry of a batch: a tensor or a list with a row per sample."""
    if isinstance(value, Tensor):
        return value[where] if value.ndim and len(value) == len(where) else value
    if isinstance(value, list) and len(value) == len(where):
        return [one for one, taken in zip(value, where.tolist(), strict=True) if taken]
    return value


def _pooled(visual: VisualPrefix, seen: Tensor) -> Look:
    """Mean over the tokens of the entries that show anything, ``seen`` (B, number of entries)."""
    entries = list(zip(visual.tokens, seen.unbind(1), strict=True))
    total = sum(tokens.sum(1) * there[:, None] for tokens, there in entries)
    count = sum(there * tokens.shape[1] for tokens, there in entries)
    assert isinstance(total, Tensor)
    assert isinstance(count, Tensor)
    return Look(total / count.clamp_min(1)[:, None], count > 0)


def _pooled_encoded(encoded: TowerOutput, size: int, width: int) -> Tensor:
    """Mean over the encoder's tokens that are there, (B, E); 0 for a sample without any."""
    rows = [(t.flatten(1, 2), encoded.present[m].flatten(1)) for m, t in encoded.tokens.items()]
    rows += [(t, encoded.globals_present[d][:, None].expand(t.shape[:2])) for d, t in encoded.globals.items()]
    tokens = torch.cat([t for t, _ in rows], 1).reshape(size, -1, width)  # (B, V * N, E)
    there = torch.cat([p for _, p in rows], 1).reshape(size, -1, 1)
    return (tokens * there).sum(1) / there.sum(1).clamp_min(1)


def add_objectives(step: TrainingStep, policy: SmolVLAPolicy, loss: Tensor, logs: dict[str, float]) -> Loss:
    """The stage's loss and the active objectives' terms.

    Of each objective the log has its term, the weight of it, and the seconds of its forward pass.
    """
    for name, weight in policy.config.active_objectives.items():
        began = time.perf_counter()
        term, numbers = policy.model.objectives[name](step)
        loss = loss + weight * term
        logs |= numbers | {name: term.item(), f"{name}_scale": weight}
        logs[f"{name}_s"] = time.perf_counter() - began
    return loss, logs
