"""Annotation: from the options to the finished data set, by one process or several."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from tqdm import tqdm

from multismolvla.estimators import EstimatorRecipe
from multismolvla.system.files import write_json
from multismolvla_data.annotate.annotator import Annotator
from multismolvla_data.annotate.config import AnnotateConfig
from multismolvla_data.annotate.contact_sheet import SHEET, draw_contact_sheet
from multismolvla_data.annotate.merge import Merge, quiet_datasets
from multismolvla_data.annotate.setup import COMMAND, AnnotationSetup
from multismolvla_data.annotate.shard import EpisodeAnnotator, added_features
from multismolvla_data.annotate.verify import FinishedDataset, VerificationError, verify
from multismolvla_data.annotate.work import WorkShare, launched_alone
from multismolvla_data.formats.card import write_card
from multismolvla_data.formats.features import Features
from multismolvla_data.formats.metadata import write_metadata
from multismolvla_data.formats.workspace import WorkspaceError, first_difference, naming_full_disk

logger = logging.getLogger(__name__)


def annotate(cfg: AnnotateConfig) -> Path | None:
    """Make the new data set, continue to make it, or find it made.

    Returns:
        Its folder; ``None`` in a process that leaves the joining to rank 0.

    Raises:
        WorkspaceError: the output or the workspace holds something else, or other processes do not finish.
        VerificationError: the ids are not those of the pictures.
        ValueError: options and data set do not fit.
        FileNotFoundError: the data set or a network is not there; the message says how to get it.
    """
    setup = AnnotationSetup.of(cfg)
    workspace = setup.workspace
    if workspace.is_published():
        logger.info("%s is complete already; nothing to do.", cfg.output)
        _tell_policy_options(setup)
        return cfg.output
    share = WorkShare.of(cfg, workspace, setup.episodes)
    if share.world_size > 1:
        logger.info("Process %d of %d.", share.rank + 1, share.world_size)
    elif launched_alone(cfg):
        logger.warning(
            "`accelerate launch` started this process alone; it does all episodes. For several processes add "
            "--multi_gpu, on a machine without GPUs, too, or give each --rank and --world_size."
        )
    with naming_full_disk():
        workspace.open()
        with workspace.claim(f"rank{share.rank}"):
            if workspace.is_published():  # by another process since we looked
                return cfg.output
            share.sweep()
            return cfg.output if _work(setup, share) else None


def _work(setup: AnnotationSetup, share: WorkShare) -> bool:
    """Do this process's share; whether the data set is made then."""
    if not share.mine:  # more processes than episodes
        return False
    # what is not kept is estimated again to be checked
    again = share.rank == 0 and not setup.cfg.keep_pictures
    unfinished = set(share.mine) - set(share.done(share.mine))
    estimators = setup.load_estimators() if again or unfinished else {}
    recipes = _agree(setup, {modality: e.recipe for modality, e in estimators.items()})
    annotator = Annotator(setup.plan, estimators, setup.id_maker(), setup.cfg.half_turns)
    added = added_features(setup, recipes)
    _annotate_episodes(setup, share, annotator, added)
    if share.rank != 0:
        logger.info("Finished this process's episodes; rank 0 joins them.")
        return False
    share.wait(setup.cfg.wait_minutes)
    _finish(setup, share, annotator, added, recipes)
    return True


def _agree(setup: AnnotationSetup, mine: Mapping[str, EstimatorRecipe]) -> dict[str, EstimatorRecipe]:
    """The estimators' recipes, which must be equal in all processes, e.g. in their dtype."""
    path = setup.workspace.root / "estimators.json"
    if not path.is_file():
        write_json(path, msgspec.to_builtins(mine))
    known = msgspec.json.decode(path.read_bytes(), type=dict[str, EstimatorRecipe])
    if mine and known != mine:
        difference = first_difference(msgspec.to_builtins(known), msgspec.to_builtins(mine))
        raise WorkspaceError(
            f"Other episodes in {path.parent} were made with another {difference}. Run all processes on like "
            "machines, or give --dtype and --device."
        )
    return known


def _annotate_episodes(
    setup: AnnotationSetup, share: WorkShare, annotator: Annotator, added: Features
) -> None:
    """Annotate this process's episodes that are not finished."""
    writer, mine = EpisodeAnnotator(setup, annotator, added, share.rank), share.mine
    done, lengths = set(share.done(mine)), setup.source.lengths
    name = f"annotate {share.rank}/{share.world_size}" if share.world_size > 1 else "annotate"
    total, before = (sum(lengths[episode] for episode in group) for group in (mine, done))
    with tqdm(total=total, initial=before, desc=name, unit="frame", position=share.rank) as bar:
        for episode in (episode for episode in mine if episode not in done):
            if share.done([episode]):  # by a process that was given another number of processes
                bar.update(lengths[episode])
            else:
                writer.write(episode, share.shard(episode), bar.update)


def _finish(
    setup: AnnotationSetup,
    share: WorkShare,
    annotator: Annotator,
    added: Features,
    recipes: Mapping[str, EstimatorRecipe],
) -> None:
    """Join, verify, draw, publish; an unfinished data set is removed, so that it does not fill the disk."""
    workspace = share.workspace
    unfinished = (workspace.dataset, workspace.root / "groups")
    logger.info("Joining %d episodes.", len(setup.episodes))
    merge = Merge(setup, [share.shard(episode) for episode in setup.episodes], added)
    made = FinishedDataset(setup, annotator, workspace.dataset)
    annotation = setup.annotation(recipes)
    _remove(unfinished)
    try:
        with quiet_datasets(workspace.root / "cache"):
            merge.write(*unfinished)
            annotation.verified = verify(made)
            draw_contact_sheet(made)
        metadata = merge.metadata(annotation)
        metadata.identities[COMMAND] = workspace.identity
        write_card(workspace.dataset, metadata)
        write_metadata(workspace.dataset, metadata)
    except BaseException as error:
        if not isinstance(error, VerificationError):  # whose cause may be looked for in it
            _remove(unfinished)
        raise
    workspace.publish()
    logger.info("Look at %s.", setup.cfg.output / SHEET)
    _tell_policy_options(setup)


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _tell_policy_options(setup: AnnotationSetup) -> None:
    logger.info("Options of the policy for it:\n  %s", "\n  ".join(setup.policy_arguments()))
