r"""``multismolvla-annotate``: any LeRobotDataset v3 in, a new one out with the modalities it lacks and with cached 4M ids.

    multismolvla-annotate --dataset=PATH --output=PATH            # everything: depth, segmentation, thermal, ids
    multismolvla-annotate --dataset=PATH --output=PATH --dry-run  # what it would do, download and need
    multismolvla-annotate --dataset=PATH --output=PATH --keep_pictures=false      # ids only: 1.3 kB per view and frame
    multismolvla-annotate --dataset=PATH --output=PATH --modalities="[depth]" --depth_scale_m="{wrist: 0.0001}"
    accelerate launch --multi_gpu --num_processes=8 --module multismolvla_data.annotate.command --dataset=PATH --output=PATH

What is recorded stays: a depth camera's stream is read, checked and tokenized, never estimated. What a view lacks is
estimated from its RGB (`multismolvla_data.annotate.estimators`) and marked ``derived``: it dies with its RGB and is no sensor.

**Ids and pictures agree.** The source's videos are copied byte for byte, never encoded again. Ids are computed from
pictures as a reader of the new dataset decodes them; derived pictures are first rounded to what is stored (depth uint16
millimetres, segmentation and thermal 8 bit), and stored losslessly. At the end a sample is decoded through LeRobot,
tokenized again and compared. Ids are ``int16`` features without statistics, with their recipe; a policy with another
recipe refuses them. -1 = this token is absent.

**Recorded depth**: invalid pixels are 0 (LeRobot's video gives them back as 10 mm); whatever is outside
``depth_range_m`` counts as unmeasured. Integer depth is millimetres; another unit is given by ``depth_scale_m`` and the
stream is stored anew in millimetres. All streams of a view are taken to show the same field of view, scaled; a depth
picture of another aspect ratio than its RGB is refused, since LeRobot's RealSense driver does not align them.

**Interruptions**: finished episodes are kept in ``.NAME.annotating`` beside the output; the same command continues after
Ctrl-C, kill -9 or a full disk. The dataset appears under ``--output`` when it is whole and verified. Memory holds the
networks, two batches of pictures and one episode's encoded pictures; joining holds a data file (100 MB) a few times.

**Several processes or machines** take every n-th episode and share the work folder; rank 0 waits for the others and
joins all episodes with LeRobot's aggregation. ``--multi_gpu`` is needed on a machine without GPUs, too: else
`accelerate launch` starts one process there, whatever ``--num_processes`` says. Machines without a common folder: give each ``--rank``, ``--world_size``
and ``--merge=never``, copy their ``.NAME.annotating`` folders into one and run ``--merge=only`` there.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.system.command import CommandError, entry_point, parse_options, show_progress
from multismolvla.system.files import write_json
from multismolvla_data.annotate.config import NUM_OFFICIAL_LABELS, AnnotateConfig

if TYPE_CHECKING:
    from multismolvla_data.annotate.annotator import Annotator
    from multismolvla_data.annotate.job import Job
    from multismolvla_data.annotate.shard import Episode
    from multismolvla_data.annotate.work import Work

logger = logging.getLogger(__name__)

SHEET = "contact_sheet.png"
_SHEET_FRAMES = 4


def annotate(cfg: AnnotateConfig) -> Path | None:
    """Make the new dataset, continue to make it, or find it made.

    Returns:
        Its folder; ``None`` in a process that leaves the merge to another.

    Raises:
        AnnotationError: the output or the work folder holds something else, or other processes do not finish.
        VerificationError: the ids are not those of the pictures.
        ValueError: options and dataset do not fit.
        FileNotFoundError: the dataset or a network is not there; the message says how to get it.
        OSError: the disk is full; finished episodes are kept and the command can be repeated.
    """
    from multismolvla_data.annotate.job import Job
    from multismolvla_data.annotate.shard import Episode, added_features
    from multismolvla_data.annotate.work import Work, finished, launched_alone

    job = Job.open(cfg)
    if finished(cfg, job.fingerprint):
        logger.info("%s is complete already; nothing to do.", cfg.output)
        _tell_policy_options(job)
        return cfg.output
    work = Work(cfg, job.fingerprint, job.episodes)
    if work.world_size > 1:
        logger.info("Process %d of %d.", work.rank + 1, work.world_size)
    elif launched_alone(cfg):
        logger.warning(
            "`accelerate launch` started this process alone; it does all episodes. For several processes add --multi_gpu, "
            "on a machine without GPUs, too, or give each --rank and --world_size."
        )
    work.open()
    with work.claim(f"rank{work.rank}"):
        if finished(cfg, job.fingerprint):  # published by another process since we looked
            return cfg.output
        work.sweep()
        merging = cfg.merge == "only" or (cfg.merge == "auto" and work.rank == 0)
        mine = [] if cfg.merge == "only" else work.mine()
        if cfg.merge == "only":
            _wait(work)
        elif not mine:  # more processes than episodes
            return None
        again = (
            merging and not cfg.keep_pictures
        )  # pictures that are not kept are estimated again to be checked
        estimators = job.estimators() if again or set(mine) - set(work.done(mine)) else {}
        provenance = _agree(work, {m: e.provenance for m, e in estimators.items()}, bool(job.plan.derived()))
        annotator = job.annotator(estimators)
        added = added_features(
            cfg, job.plan, job.source.features, job.id_lengths, provenance, job.fingerprints
        )
        _episodes(job, work, Episode(cfg, job.plan, job.source, annotator, added), mine)
        if not merging:
            logger.info("Finished this process's episodes; rank 0, or --merge=only, joins them.")
            return None
        _wait(work)
        with work.claim("merge"):
            return _finish(job, work, annotator, added, job.annotation(provenance))


def _agree(work: Work, mine: dict[str, dict[str, Any]], needed: bool) -> dict[str, dict[str, Any]]:
    """The estimators' provenance, equal in all processes: bfloat16 here and float32 there would mix two datasets."""
    from multismolvla_data.annotate.work import AnnotationError, first_difference

    path = work.root / "estimators.json"
    if not path.is_file() and (mine or not needed):
        write_json(path, mine)
    if not path.is_file():
        raise AnnotationError(
            f"{path} is missing. Copy it along with the episodes of the process that made them."
        )
    known: dict[str, dict[str, Any]] = json.loads(path.read_text())
    plain = json.loads(json.dumps(mine))
    if plain and known != plain:
        raise AnnotationError(
            f"Other episodes in {work.root} were made with another {first_difference(known, plain)}. Run all processes on "
            "like machines, or give --dtype and --device."
        )
    return known


def _episodes(job: Job, work: Work, writer: Episode, mine: list[int]) -> None:
    """Annotate this process's episodes that are not finished."""
    from tqdm import tqdm

    done = set(work.done(mine))
    name = f"annotate {work.rank}/{work.world_size}" if work.world_size > 1 else "annotate"
    total, before = (sum(job.source.length(e) for e in group) for group in (mine, done))
    with tqdm(total=total, initial=before, desc=name, unit="frame", position=work.rank) as bar:
        for episode in mine:
            if episode in done:
                continue
            if work.done([episode]):  # by a process that was given another number of processes
                bar.update(job.source.length(episode))
            else:
                writer.write(episode, work.shard(episode), bar.update)


def _wait(work: Work) -> None:
    from tqdm import tqdm

    from multismolvla_data.annotate.work import AnnotationError

    here = len(work.done(work.episodes))
    if here == len(work.episodes):
        return
    if work.cfg.merge == "only" or work.world_size == 1:
        raise AnnotationError(work.missing())
    with tqdm(total=len(work.episodes), initial=here, desc="wait for the others", unit="episode") as bar:
        work.wait(bar.update)


def _finish(
    job: Job,
    work: Work,
    annotator: Annotator,
    added: Mapping[str, dict[str, Any]],
    annotation: dict[str, Any],
) -> Path:
    """Join, verify, draw, publish."""
    from multismolvla_data.annotate.merge import merge, quiet_datasets
    from multismolvla_data.annotate.verify import verify
    from multismolvla_data.formats.workspace import METADATA_FILE

    cfg = job.cfg
    shards = [work.shard(e) for e in job.episodes]
    logger.info("Joining %d episodes.", len(shards))
    root = merge(cfg, job.plan, job.source, job.episodes, shards, added, annotation, work.root)
    with quiet_datasets(work.root / "cache"):
        result = verify(cfg, job.plan, annotator, root, job.lengths, job.episodes)
        _draw(job, annotator, root)
    metadata = json.loads((root / METADATA_FILE).read_text())
    metadata["annotation"]["verified"] = {
        "frames": result.frames, "ids": result.ids, "mismatches": result.mismatches
    }  # fmt: skip
    write_json(root / METADATA_FILE, metadata)
    work.publish(root)
    logger.info("Dataset: %s (look at %s)", cfg.output, cfg.output / SHEET)
    _tell_policy_options(job)
    return cfg.output


def _tell_policy_options(job: Job) -> None:
    from multismolvla_data.annotate.plan import policy_options

    logger.info("Options of the policy for it:\n  %s", "\n  ".join(policy_options(job)))


def _draw(job: Job, annotator: Annotator, root: Path) -> None:
    """Contact sheet of a few frames, as a reader of the dataset sees them."""
    from multismolvla_data.annotate.contact_sheet import SheetFrame, write_contact_sheet
    from multismolvla_data.annotate.verify import frames_of, open_dataset, pictures_of, sample_frames

    plan, chosen = job.plan, sample_frames(job.lengths, _SHEET_FRAMES)
    data = open_dataset(root, sorted({e for e, _ in chosen}))
    keys = {(view, m): key for view, streams in plan.views.items() for m, key in streams.items()}
    frames = []
    for episode, t in chosen:
        items = frames_of(data, episode, t, t + 1)
        found = pictures_of(items, sorted(keys.values()))
        missing = [s for s in plan.streams if s.derive and s.key not in found]
        found |= annotator.derive(missing, found, [(job.episodes[episode], t)])
        shown = {place: found[key][0] for place, key in keys.items() if key in found}
        frames.append(SheetFrame(f"episode {episode}, frame {t}: {items[0]['task']}", shown))
    labels = {(view, "rgb"): "sensor" for view, streams in plan.views.items() if "rgb" in streams}
    for stream in plan.streams:
        info = data.meta.features.get(stream.key, {}).get("info") or {}
        nominal = (
            ", nominal scale" if "meaning" in info else ""
        )  # relative depth is drawn in metres that are none
        labels[stream.view, stream.modality] = stream.provenance + nominal
    ordered = {place: labels[place] for place in keys if place in labels}
    write_contact_sheet(
        frames,
        ordered,
        root / SHEET,
        coco=job.cfg.label_count == NUM_OFFICIAL_LABELS,
        depth_range_m=job.cfg.depth_range_m,
    )


@entry_point("multismolvla-annotate", loads="lerobot")
def main() -> int:
    """Entry point of ``multismolvla-annotate``.

    Returns:
        0 when this process's work is done, 1 on an error named on stderr, 130 when interrupted.
    """
    show_progress("multismolvla_data", "multismolvla")
    return _run(parse_options(AnnotateConfig))


def _run(cfg: AnnotateConfig) -> int:
    from datasets.exceptions import DatasetsError

    from multismolvla_data.annotate.job import Job
    from multismolvla_data.annotate.plan import describe
    from multismolvla_data.annotate.work import AnnotationError, is_disk_full

    try:
        if cfg.dry_run:
            sys.stdout.write(describe(Job.open(cfg)) + "\n")
        else:
            annotate(cfg)
    except (CommandError, OSError, DatasetsError) as error:
        if not is_disk_full(error):
            raise
        raise AnnotationError(
            f"the disk is full ({error}). Finished episodes are kept; free some space and repeat the same command. "
            "--dry-run tells how much is needed."
        ) from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
