"""The MultiSmolVLA policy: SmolVLA with the 4M-21 tower, two training stages and curricula of faults.

Built by *adopting*: upstream constructs its own SmolVLA, the base checkpoint is loaded into it strictly, and
only then is the vision path replaced. No constructor is copied and nothing upstream is patched, so published
SmolVLA weights load and ``vision_tower=siglip`` is vanilla SmolVLA bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from lerobot_policy_multismolvla.adoption import AdoptedVLM, Teacher
from lerobot_policy_multismolvla.checkpoints import (
    check_same_action_kind,
    check_same_views,
    is_frozen_key,
    load_base_checkpoint,
    load_weights,
    read_weights,
)
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.derived import DerivedStreams, Pattern, check_derived, warn_of_reuse
from lerobot_policy_multismolvla.flow import FlowDraw, Loss, many_flows, wants_many_flows
from lerobot_policy_multismolvla.losses import connector_loss, robust_loss
from lerobot_policy_multismolvla.objectives.modules import (
    OtherDataError,
    adopt_labels,
    adopt_tasks,
    begin_objectives,
    build_objectives,
    check_length,
    check_start,
    check_trained,
)
from lerobot_policy_multismolvla.objectives.step import LabelWatch, hide_labels
from lerobot_policy_multismolvla.objectives.unlabelled import (
    UnlabelledFrames,
    reads_unlabelled,
    warn_of_unread,
)
from lerobot_policy_multismolvla.processor_multismolvla import check_stored_processors
from lerobot_policy_multismolvla.safety.guard import StoredGuard
from lerobot_policy_multismolvla.safety.holding import Hold, Statistics, standstill
from lerobot_policy_multismolvla.safety.real_time import PlanningTime, planning, without_padding
from lerobot_policy_multismolvla.safety.watch import HealthLog, SensorWatch
from lerobot_policy_multismolvla.towers import build_bridge, build_tower
from lerobot_policy_multismolvla.trainable import (
    check_encoder_adapters,
    freeze_for_stage,
    optimizer_groups,
    peft_targets,
)
from lerobot_policy_multismolvla.training_data import check_cameras
from lerobot_policy_multismolvla.training_faults import Corruption, check_dropout
from lerobot_policy_multismolvla.visual import (
    PreparedBatch,
    VisualPrefix,
    available_sensors,
    check_training_health,
    health_marks,
    rgb_pictures,
    visual_tokens,
    with_skew,
)
from multismolvla.connector import ZeroGate
from multismolvla.inspection import LastLook
from multismolvla.modalities import Modality
from multismolvla.thermal.ranges import check_ranges

logger = logging.getLogger(__name__)


class MultiSmolVLAPolicy(SmolVLAPolicy):
    """SmolVLA fed by the multimodal tower. See :class:`MultiSmolVLAConfig` for the options.

    Args:
        config: the configuration.
        restoring: weights will be loaded right after construction, so ``base_checkpoint`` need not be read
            (stage 1 reads the teacher from it, but only once it is trained further).
        dataset_stats: of the training data, passed by LeRobot's factory: they say what standing still is.
        dataset_meta: of the training data, passed by it, too: tasks and episodes are read, where an objective
            asks for them.
        kwargs: passed on to nobody.

    Attributes:
        teacher: of stage 1; ``None`` in stage 2, with SigLIP, and without distillation.
        unlabelled_frames: of the second data set, in training, where an objective has one.
    """

    config_class = MultiSmolVLAConfig
    name = "multismolvla"

    def __init__(
        self,
        config: MultiSmolVLAConfig,
        *,
        restoring: bool = False,
        dataset_stats: Statistics | None = None,
        dataset_meta: Any = None,
        **kwargs: Any,
    ):
        super().__init__(config)
        self.config: MultiSmolVLAConfig = config
        if dataset_stats:
            action = None if dataset_meta is None else dataset_meta.features.get(ACTION)
            config.standstill = standstill(config, dataset_stats, action)
        self.teacher: Teacher | None = None
        check_derived(config)
        self._diary = HealthLog()
        self._sensors, self._looks_early = SensorWatch(self._diary), False
        self._hold, self._blind, self._planning_time = Hold(), False, PlanningTime()
        self._periods: int | None = None  # at least so many since the look before, where it is known
        self._compiled = False  # for plans that are guided by the one before
        self._derived = DerivedStreams()
        self._last_look: LastLook | None = None
        self._training_began = False
        self.unlabelled_frames: UnlabelledFrames | None = None
        self._run_seed = torch.initial_seed() % 2**32  # LeRobot's trainer has set it to --seed
        restoring = restoring or config.pretrained_path is not None
        needs_teacher = (
            config.vision_tower == "fourm" and config.stage == "connector" and config.align_weight > 0
        )
        if config.base_checkpoint and not restoring:
            load_base_checkpoint(self.model, config.base_checkpoint)
        elif needs_teacher and not config.base_checkpoint:
            raise ValueError(
                "Stage 1 (--policy.stage=connector) distils from the base checkpoint's SigLIP, but "
                "--policy.base_checkpoint is not set. Name a SmolVLA checkpoint (folder or hub id), or set "
                "--policy.align_weight=0."
            )
        check_start(config, restoring=restoring)
        self._label_watch = LabelWatch(0.0)
        self._other_data: OtherDataError | None = None
        try:
            adopt_tasks(config, getattr(dataset_meta, "tasks", None))
            self._label_watch = LabelWatch(adopt_labels(config, getattr(dataset_meta, "episodes", None)))
        except OtherDataError as error:  # LeRobot's factory does not say whether it is for training
            self._other_data = error
        if config.uses_fourm:
            self._adopt(needs_teacher, loaded=not restoring)
        self.model.objectives = build_objectives(self)
        if not restoring:
            begin_objectives(self, config.active_objectives)
        self._reset_curriculum_on_new_stage()

    # -- construction ---------------------------------------------------------------------------------------

    def _adopt(self, keep_teacher: bool, *, loaded: bool) -> None:
        """Replace SigLIP (``fourm``), or stand beside it (``siglip+fourm``)."""
        vlm = self.model.vlm_with_expert.vlm.model
        if self.config.vision_tower == "fourm":
            if keep_teacher:
                self.teacher = Teacher(vlm.vision_model, vlm.connector, loaded=loaded)
            del vlm.vision_model, vlm.connector
        self.model.vlm_with_expert = AdoptedVLM.adopt(self.model.vlm_with_expert)
        self.model.tower = build_tower(self.config)
        self.model.text_width = vlm.text_model.config.hidden_size
        self.model.bridge = build_bridge(self.config, self.model.tower, self.model.text_width)
        self.model.bridge_tokens = self.model.bridge.connector.num_tokens
        if self.config.vision_tower == "siglip+fourm":
            self.model.fourm_gate = ZeroGate()
        freeze_for_stage(self, self.config)

    def _reset_curriculum_on_new_stage(self) -> None:
        """A stage-1 counter arrives in stage 2 through the checkpoint's config; a stage starts at zero."""
        cfg = self.config
        if cfg.curriculum_stage != cfg.stage:
            cfg.curriculum_stage, cfg.curriculum_step, cfg.curriculum_length = cfg.stage, 0, 0

    def _begin_curriculum(self) -> None:
        """A run that starts from a stage's checkpoint is a new one, unless it resumes that stage.

        LeRobot 0.6.1 does not tell policies which of both it is. What is at its end, or has another length,
        is not resumed. A new run of the same length that starts from an unfinished checkpoint cannot be told
        from its resumption, and goes on where that stood.
        """
        cfg = self.config
        length = cfg.curriculum_length or cfg.curriculum_steps  # older checkpoints do not know it
        if cfg.curriculum_step and (length != cfg.curriculum_steps or cfg.curriculum_step >= length > 0):
            logger.warning(
                "The checkpoint stands at step %d of a curriculum of %d; this run's of %d begins at step 0.",
                cfg.curriculum_step,
                length,
                cfg.curriculum_steps,
            )
            cfg.curriculum_step = 0
        elif cfg.curriculum_step and length:
            logger.info("The curriculum goes on at step %d of %d.", cfg.curriculum_step, length)
        cfg.curriculum_length = cfg.curriculum_steps

    @property
    def curriculum_seed(self) -> int:
        """Seed of everything that training draws."""
        given = self.config.curriculum_seed
        return self._run_seed if given is None else given

    def train(self, mode: bool = True) -> MultiSmolVLAPolicy:
        """Train or evaluation mode; the frozen tower stays in evaluation mode.

        Training needs the second data set, where an objective has one, and the tasks and episodes that
        objectives were begun with; ``lerobot-train`` asks for all this before its first step.

        Raises:
            FileNotFoundError: the second data set is not there.
            ValueError: it does not fit this policy, or the training data are others.
        """
        if mode and self._other_data is not None:
            raise self._other_data
        nn.Module.train(self, mode)
        if self.config.uses_fourm:
            self.model.tower.eval()
        if mode and self.unlabelled_frames is None and reads_unlabelled(self.config):
            self.unlabelled_frames = UnlabelledFrames(self.config, self.curriculum_seed)
        return self

    def eval(self) -> MultiSmolVLAPolicy:
        """Evaluation mode; free when already in it: upstream asks for it at every ``select_action``."""
        return self if not self.training else super().eval()

    def get_optim_params(self) -> Any:
        """Trainable parameters; the bridge in a group of its own when its learning rate differs."""
        return optimizer_groups(self, self.config)

    # -- from pictures to visual tokens ---------------------------------------------------------------------

    def prepare_images(self, batch: dict[str, Tensor]) -> VisualPrefix:
        """Per view: visual tokens (B, N, D) and whether anything of the view is left, bool (B,).

        With ``vision_tower=siglip``: upstream's pictures and masks, restricted to the declared RGB streams.
        """
        if isinstance(batch, PreparedBatch):
            return batch.visual
        if not self.config.uses_fourm:
            return rgb_pictures(self, batch)
        return self.visual_tokens(*self.observed(batch))

    def observed(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The batch and its :meth:`availability`; in evaluation with what the policy derives of its RGB."""
        there = self.availability(batch)
        if self.training:
            return batch, there
        if self.config.uses_fourm:
            batch, there = self._derived.complete(self.config, batch, there)
        self._sensors.tell(self.config, there, self._derived.outcome)
        return batch, there

    def availability(self, batch: dict[str, Tensor]) -> Tensor:
        """Which sensors each sample has, bool (B, V, M).

        In evaluation without those that are not fit to be used; in training with
        ``policy.health=act``, what one picture says by itself.
        """
        there = available_sensors(self.config, batch)
        if not self.training:
            steps = self._periods or self.config.n_action_steps
            return self._sensors.look(self.config, batch, there, steps=steps, early=self._looks_early)
        marks = health_marks(self.config, batch) if self.config.health == "act" else None
        if marks is None:
            return there
        cause = with_skew(self.config, batch, there, marks[..., 0])
        return self.config.provenance_map.drop_with_rgb(there & (cause <= 0))

    def reset(self) -> None:
        """A new episode begins; of a policy that acts, the networks of its first look are read and run once.

        Raises:
            FileNotFoundError: files of an estimator (``policy.missing_estimator=error``) or a tokenizer are
                not there.
            ValueError: an open thermal camera of this process shows other temperatures than the policy knows,
                or files are others than those of the training data.
        """
        super().reset()
        if hasattr(self, "_sensors"):  # upstream's constructor resets, too
            self._sensors.forget()
            self._hold.forget()
            self._derived.forget()
            if not self.training:
                if self.config.measures(Modality.THERMAL):
                    check_ranges(self.config.thermal_range_c)
                if self.config.uses_fourm:
                    device = next(self.parameters()).device
                    self._derived.warm(self.config, device)
                    self.model.tower.warm_tokenizers(device)
                    if self.config.on_blind == "hold" and self._hold.guard is None:
                        where, revision = self.config.pretrained_path, self.config.pretrained_revision
                        self._hold.guard = StoredGuard.beside(where, revision)

    def keep_shapes(self) -> None:
        """Let no row's rounding depend on what other rows of a batch lack, or have estimated this time."""
        if self.config.uses_fourm:
            self.model.tower.drop_absent = False
        self._derived.every_row = True

    @contextmanager
    def trial(self) -> Iterator[None]:
        """What the policy sees inside it forgets: an attack looks many times before the look that counts."""
        kept = {
            name: getattr(self, name) for name in ("_sensors", "_derived", "_hold", "_blind", "_last_look")
        }
        self._sensors, self._derived = self._sensors.silent_copy(), copy(self._derived)
        self._hold = copy(self._hold)
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(self, name, value)

    def visual_tokens(
        self, batch: dict[str, Tensor], presence: Tensor, faults: Corruption | None = None
    ) -> VisualPrefix:
        """Run tower and bridge for given presence (B, V, M) and faults; result as :meth:`prepare_images`."""
        visual, look = visual_tokens(self, batch, presence, faults)
        self._last_look = replace(look, health=self._sensors.verdict, derived=self._derived.memory)
        return visual

    def last_look(self) -> LastLook | None:
        """What the last forward pass saw; ``None`` before the first one, and with ``vision_tower=siglip``."""
        return self._last_look

    # -- acting ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The next normalised action (B, A); arguments as upstream's.

        A plan is dropped when a sensor is lost or back meanwhile, unless ``policy.finish_chunk`` is set.

        Raises:
            PolicyStopError: nothing is left to see, and ``policy.on_blind=stop``, or no command was given.
        """
        plan = self._queues[ACTION]
        if self.config.uses_fourm and plan and not self.config.finish_chunk:
            there = available_sensors(self.config, batch)
            if self._sensors.changed(self.config, batch, there):
                plan.clear()
                self._looks_early = True
        try:
            action = super().select_action(batch, noise, **kwargs)
        finally:
            self._looks_early = False
        self._hold.follow(action)
        return action

    # lerobot 0.6.1 compiles this method, too (--use_torch_compile=true, rollout/context.py), in which health,
    # diary and clock are Python. What takes the time, the network's `sample_actions`, compile_model compiles.
    @torch.compiler.disable
    @torch.no_grad()
    @planning()
    def predict_action_chunk(
        self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """A plan (B, chunk_size, A), normalised; arguments as upstream's.

        Raises:
            PolicyStopError: as `select_action`, or no plan is ready in time under RTC.
        """
        if not (self.config.uses_fourm and self._rtc_enabled()):
            chunk = super().predict_action_chunk(batch, noise, **kwargs)
            self._hold.remember(chunk, self.config.n_action_steps - 1)
            return chunk
        left = without_padding(kwargs.get("prev_chunk_left_over"))
        slowest = kwargs.get("inference_delay")
        periods = self._planning_time.periods(slowest, self.config.chunk_size, late=left is None)
        kwargs["inference_delay"], self._periods = periods, max(1, periods or 1)
        kwargs["prev_chunk_left_over"] = left
        began = perf_counter()
        chunk = super().predict_action_chunk(batch, noise, **kwargs)
        chunk.flatten()[0].item()  # waits for the device
        if not self._blind:  # to hold takes no time
            self._planning_time.took(perf_counter() - began)
        self._hold.remember(chunk, self.config.chunk_size - 1)
        if self.config.compile_model and not (self._compiled or self._blind):
            self._compile_guided(batch, chunk[0])
        return chunk

    def _compile_guided(self, batch: dict[str, Tensor], plan: Tensor) -> None:
        """Compile for guided plans, while LeRobot's warm-up waits for the first plan (T, A).

        Guidance compiles the network anew at the first and second number of rows and of periods; then
        PyTorch takes them as variables.
        """
        assert self.config.rtc_config is not None
        rows = self.config.rtc_config.execution_horizon
        with self.trial():
            for periods, left in ((1, rows), (2, max(1, rows - 1)), (0, 1), (2, None)):
                rest = None if left is None else plan[:left]
                super().predict_action_chunk(batch, inference_delay=periods, prev_chunk_left_over=rest)
        self._compiled = True

    def carried_out(self, plan: Tensor, due: int) -> None:
        """A normalised plan (B, T, A) was carried out elsewhere up to row ``due``: there ``hold`` stays.

        So many periods lie between the look that made the plan and the next one. `select_action` and RTC know
        all this by themselves; else it is a guess.
        """
        self._periods = max(1, due)
        self._hold.remember(plan, due)

    def _get_action_chunk(
        self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Upstream's plan, computed in ``policy.acting_dtype``."""
        if self.config.acting_dtype == "float32":
            return self._plan(batch, noise, **kwargs)
        with torch.autocast(batch[OBS_STATE].device.type, torch.bfloat16):
            return self._plan(batch, noise, **kwargs).float()

    def _plan(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Upstream's plan; where nothing is left to see, what ``policy.on_blind`` says."""
        if not self.config.uses_fourm:
            return super()._get_action_chunk(batch, noise, **kwargs)
        seen = PreparedBatch(batch, self.prepare_images(batch))
        if self.config.on_blind == "act":
            return super()._get_action_chunk(seen, noise, **kwargs)
        blind = self._sees_nothing()
        if bool(blind.any()) != self._blind:
            self._blind = not self._blind
            self._diary.blind(self.config.health_log, self.config.on_blind if self._blind else None)
        if not self._blind:
            return super()._get_action_chunk(seen, noise, **kwargs)
        held = self._hold.chunk(self.config, len(blind), kwargs.get("prev_chunk_left_over"))
        if blind.all():
            return held
        return torch.where(blind[:, None, None], held, super()._get_action_chunk(seen, noise, **kwargs))

    def _sees_nothing(self) -> Tensor:
        """Of which samples (B,) the last look had nothing at all."""
        look = self._last_look
        assert look is not None
        return ~look.seen.any(1)

    # -- training -------------------------------------------------------------------------------------------

    def forward(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> Loss:
        """Training loss of the current stage; arguments and result as upstream's.

        Raises:
            ValueError: the first training batch lacks a declared RGB camera, a picture of a training batch
                is not fit to be used (``policy.health``), dropout could not reach the tower, an objective
                would not be trained, or none of the episodes that count as labelled is read.
        """
        if self.training and self.config.health in (None, "strict"):
            check_training_health(self.config, batch)
        if self.training and not self._training_began:
            check_cameras(self.config.views, self.config.absent_streams, batch)
            check_dropout(self.config)
            warn_of_reuse(self.config)
            self._derived.trained = None
            self._begin_curriculum()
            check_length(self.config)
            check_trained(self)
            check_encoder_adapters(self, self.config)
            warn_of_unread(self.config)
            self._training_began = True
        if self.training:
            batch = hide_labels(self.config, batch, self._label_watch)
        draw = FlowDraw(noise, time, reduction)
        if self.config.stage == "robust" and (self.config.uses_fourm or self.training):
            return robust_loss(self, batch, draw)
        if self.config.uses_fourm:
            return connector_loss(self, batch, draw)
        if wants_many_flows(self, draw):
            return many_flows(self, batch, self.prepare_images(batch), draw)
        return super().forward(batch, noise, time, reduction)

    def update(self) -> None:
        """Advance the curriculum; called by ``lerobot-train`` after every optimizer step."""
        self.config.curriculum_step += 1

    # -- PEFT -----------------------------------------------------------------------------------------------

    def _get_default_peft_targets(self) -> dict[str, Any] | None:
        """LoRA on language model, expert and projections; what is new is trained in full and saved."""
        if not self.config.uses_fourm:
            return peft_targets(self.config)
        tower = self.model.tower
        return peft_targets(self.config, tower.soft_domains, len(tower.encoder.encoder))

    def _validate_peft_config(self, peft_config: Any) -> None:
        """No warning that SmolVLM2's own weights were not loaded: the base checkpoint supplies them."""
        super(SmolVLAPolicy, self)._validate_peft_config(peft_config)

    # -- checkpoints ----------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Everything but the frozen tower, which ``config.json`` names by repository, revision and hash."""
        state = self.state_dict() if state_dict is None else state_dict
        super()._save_pretrained(save_directory, {k: v for k, v in state.items() if not is_frozen_key(k)})

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ):
        """Load strictly: the frozen tower must be the only thing the file does not hold.

        Raises:
            ValueError: missing or unexpected keys, other views than the checkpoint's or its processors',
                another kind of actions, a tower other than the one it was trained with, or damaged statistics
                in the processors.
        """
        stored = PreTrainedConfig.from_pretrained(pretrained_name_or_path, revision=kwargs.get("revision"))
        if config is None:
            config = stored
            config.pretrained_path = Path(pretrained_name_or_path)  # stored is where that was trained from
        if isinstance(stored, MultiSmolVLAConfig) and isinstance(config, MultiSmolVLAConfig):
            check_same_views(str(pretrained_name_or_path), stored.views, config.views)
            check_same_action_kind(str(pretrained_name_or_path), stored.action_kind, config.action_kind)
            # with adapters the processors lie beside them, and the weights in another folder
            check_stored_processors(Path(config.pretrained_path or pretrained_name_or_path), config.views)
        policy = super().from_pretrained(pretrained_name_or_path, config=config, restoring=True, **kwargs)
        learned = stored
        if config.use_peft and config.pretrained_path:  # `stored` is what the adapters were trained from
            beside, revision = config.pretrained_path, config.pretrained_revision
            learned = PreTrainedConfig.from_pretrained(beside, revision=revision)
        if isinstance(learned, MultiSmolVLAConfig):
            policy._derived.trained = Pattern.of(learned)
        return policy

    @classmethod
    def _load_as_safetensor(cls, model, model_file: str, map_location: str, strict: bool):
        begin_objectives(model, load_weights(model, read_weights(model_file), model_file))
        return model
