"""The objectives' modules in a policy: which are active, built, begun, and given up for an export."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Protocol

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor, nn

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from multismolvla.objectives.classes import cosines, labelled_episodes
from multismolvla.objectives.interface import ObjectiveModule, Start
from multismolvla.objectives.registry import OBJECTIVES, Parts, modules_to_save

logger = logging.getLogger(__name__)


class OtherDataError(ValueError):
    """The data are not those that an objective was begun with: they can be acted on, but not trained on."""


class TaskTable(Protocol):
    """LeRobot's table of a data set's tasks: a frame with the instructions as its index."""

    task_index: Collection[int]
    index: Collection[str]


class EpisodeTable(Protocol):
    """LeRobot's table of a data set's episodes, by column."""

    def __getitem__(self, column: str) -> Collection[Any]:
        """``episode_index`` and ``tasks``, a list of instructions each."""


def adopt_labels(cfg: MultiSmolVLAConfig, episodes: EpisodeTable | None) -> float:
    """Take over or draw the episodes that count as labelled, where not all do.

    Args:
        cfg: written to.
        episodes: of the data's metadata: all, whichever of them are trained on; ``None`` outside of training.

    Returns:
        Their share of the table, 0 without one.

    Raises:
        OtherDataError: an episode that was named does not exist.
    """
    options = cfg.objectives
    named = options.label_episodes
    if named or not options.hides_labels:
        options.labelled = sorted(named)
    if episodes is None or not options.hides_labels:
        return 0.0
    pairs = zip(episodes["episode_index"], episodes["tasks"], strict=True)
    tasks = {int(number): " / ".join(said) for number, said in pairs}
    if strangers := sorted({*named} - tasks.keys()):
        raise OtherDataError(
            f"--policy.objectives.label_episodes names {strangers}; the data have the episodes "
            f"{min(tasks)} to {max(tasks)}."
        )
    if not named:
        options.labelled = labelled_episodes(tasks, options.label_fraction, options.label_seed)
    logger.info(
        "%d of the data's %d episodes count as labelled (%s); the others teach no actions and no task.",
        len(options.labelled),
        len(tasks),
        "label_episodes" if named else f"label_seed={options.label_seed}",
    )
    return len(options.labelled) / len(tasks)


def adopt_tasks(cfg: MultiSmolVLAConfig, tasks: TaskTable | None) -> None:
    """Take over the instructions of the training data, where an active objective asks for them.

    Args:
        cfg: written to.
        tasks: of the data's metadata; ``None`` outside of training.

    Raises:
        OtherDataError: they are others than the checkpoint was trained with.
        ValueError: there are none, or they are not numbered one by one.
    """
    asking = [name for name in cfg.active_objectives if OBJECTIVES[name].trains]
    if not asking:
        cfg.objectives.tasks = []
        return
    known = cfg.objectives.tasks
    if tasks is not None:
        pairs = sorted(zip(tasks.task_index, tasks.index, strict=True))
        found = [str(instruction) for _, instruction in pairs]
        if [int(number) for number, _ in pairs] != list(range(len(pairs))):
            raise ValueError(
                f"The data's tasks are numbered {[int(n) for n, _ in pairs]}, expected 0, 1, 2, ... Repair "
                "meta/tasks.parquet."
            )
        if known and known != found:
            raise OtherDataError(
                f"The checkpoint's objectives ({', '.join(asking)}) know the tasks {known}, the data have "
                f"{found}. Begin them anew: export the checkpoint first (multismolvla-export leaves them "
                "out), then switch them on."
            )
        cfg.objectives.tasks = known = found
    if not known:
        raise ValueError(
            f"--policy.{OBJECTIVES[asking[0]].option} needs the instructions of the training data, and there "
            "are none. Train on a data set with tasks, or name them in the order of their task_index: "
            "--policy.objectives.tasks='[\"put the cube in the basket\"]'."
        )


def check_start(cfg: MultiSmolVLAConfig, *, restoring: bool) -> None:
    """See that the active objectives can start from what there is.

    Raises:
        ValueError: one builds on a trained connector, and the connector is new.
    """
    for name in cfg.active_objectives:
        if OBJECTIVES[name].needs_trained_connector and not restoring:
            raise ValueError(
                f"--policy.{OBJECTIVES[name].option}={cfg.objective_weights[name]} holds the connector to "
                "what it was before, and this one is new. Start from a trained checkpoint: --policy.path=..."
            )


def check_length(cfg: MultiSmolVLAConfig) -> None:
    """See that the stage's length is known, which the objectives' ramps are shares of.

    Raises:
        ValueError: it is not.
    """
    ramped = [name for name in cfg.active_objectives if OBJECTIVES[name].trains]
    if ramped and cfg.curriculum_steps <= 0:
        raise ValueError(
            f"--policy.curriculum_steps={cfg.curriculum_steps}: {', '.join(ramped)} needs the length of the "
            "stage. Set it to the value of --steps."
        )


def check_trained(policy: SmolVLAPolicy) -> None:
    """See that what the active objectives train is trained.

    Raises:
        ValueError: it is frozen, since adapters bring with them what is trained and saved beside them.
    """
    for name, weight in policy.config.active_objectives.items():
        module = policy.model.objectives[name]
        if OBJECTIVES[name].trains and not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"--policy.{OBJECTIVES[name].option}={weight} was switched on over adapters that do not know "
                "it: its heads would neither be trained nor saved. Merge the adapters (multismolvla-export "
                "--checkpoint=...) and start from that. If --peft.full_training_modules is given, it must "
                f"name {modules_to_save([name])[0]}, too."
            )


def build_objectives(policy: SmolVLAPolicy) -> nn.ModuleDict:
    """The active objectives' modules, not begun yet.

    Their weights are drawn apart, so that whatever is drawn after them (adapters) is as it is without them.

    Raises:
        ValueError: no sensor delivers any modality that the tower reads.
    """
    cfg, model = policy.config, policy.model
    built: dict[str, nn.Module] = {}
    asking = [name for name in cfg.active_objectives if OBJECTIVES[name].trains]
    if asking and not alone_modalities(cfg):
        raise ValueError(
            f"--policy.{OBJECTIVES[asking[0]].option} shows one modality alone, but all that the tower reads "
            f"({', '.join(cfg.tower_modalities)}) is computed from RGB. Add rgb to --policy.domains."
        )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(policy.curriculum_seed)
        for name in cfg.active_objectives:
            sizes = (model.text_width, model.tower.encoder.config.dim)
            parts = Parts(model.bridge, *sizes, alone_modalities(cfg), len(cfg.objectives.tasks))
            built[name] = OBJECTIVES[name].build(cfg.objectives, parts)
    return nn.ModuleDict(built)


def alone_modalities(cfg: MultiSmolVLAConfig) -> tuple[str, ...]:
    """Modalities of the tower that a sensor delivers: what is computed from RGB is never there alone."""
    measured = {m for view, streams in cfg.views.items() for m in streams if not cfg.is_derived(view, m)}
    return tuple(m for m in cfg.tower_modalities if m in measured)


@torch.no_grad()
def begin_objectives(policy: SmolVLAPolicy, names: Collection[str]) -> None:
    """Let objectives that no checkpoint brings take over what they start from."""
    trained = [name for name in names if OBJECTIVES[name].trains]
    if not trained:
        return
    start = Start(_instruction_embeddings(policy), policy.model.bridge)
    for name in trained:
        module = policy.model.objectives[name]
        assert isinstance(module, ObjectiveModule)
        module.begin(start)
        anchors = module.anchors
        gram = [" ".join(f"{cosine:5.2f}" for cosine in row) for row in cosines(anchors, anchors).tolist()]
        logger.info(
            "%s begins with %d tasks, whose anchors have these cosines to each other:\n%s",
            name,
            len(anchors),
            "\n".join(gram),
        )


def _instruction_embeddings(policy: SmolVLAPolicy) -> Tensor:
    """Mean language embedding of each task's instruction, float (C, D)."""
    vlm = policy.model.vlm_with_expert
    device = next(vlm.parameters()).device
    rows = []
    for instruction in policy.config.objectives.tasks:
        ids = torch.tensor([vlm.processor.tokenizer(instruction)["input_ids"]], device=device)
        rows.append(vlm.embed_language_tokens(ids)[0].float().mean(0).cpu())
    return torch.stack(rows)


def give_up_objectives(policy: SmolVLAPolicy) -> None:
    """Leave out what only training needs."""
    policy.model.objectives = nn.ModuleDict()
