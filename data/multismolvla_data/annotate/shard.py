"""One finished episode on disk: a LeRobotDataset of one episode without its videos, whole or not there.

Shards make an annotation resumable and spread it over processes: the merge joins whatever shards are there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import table_cast
from lerobot.datasets.compute_stats import auto_downsample_height_width, get_feature_stats, sample_indices
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import write_tasks
from lerobot.datasets.utils import DEFAULT_DATA_PATH
from torch import Tensor

from multismolvla.estimators import EstimatorRecipe
from multismolvla.modalities import Feature, Modality
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC
from multismolvla_data.annotate.annotator import Annotator, encode
from multismolvla_data.annotate.plan import Stream
from multismolvla_data.annotate.setup import AnnotationSetup
from multismolvla_data.annotate.source import Stats
from multismolvla_data.annotate.tokenizing import FramePlace
from multismolvla_data.formats.features import Features, PictureFeature, declare_pictures

#: Beside a shard's data: picture feature of depth -> share of usable pixels.
VALID_FILE = "valid.json"


@dataclass
class _Columns:
    """What an episode gets."""

    values: dict[str, list[Any]]  # added feature -> a value per row: ids, or pictures as encoded files
    stats: Stats = field(default_factory=dict)  # of the added pictures
    valid: dict[str, float] = field(default_factory=dict)  # depth feature -> share of usable pixels


class EpisodeAnnotator:
    """Annotates one episode at a time.

    Args:
        setup: what to make, and where from.
        annotator: how.
        added: features that the new data set gets, see `added_features`.
        rank: of this process, which names what is unfinished (two containers may share process ids).
    """

    def __init__(self, setup: AnnotationSetup, annotator: Annotator, added: Features, rank: int) -> None:
        self._plan, self._source, self._cfg = setup.plan, setup.source, setup.cfg
        self._annotator, self._rank = annotator, rank
        source = setup.source.features
        self._left_out = added.keys() | setup.plan.dropped
        kept = {key: f for key, f in source.items() if f["dtype"] != "video" and key not in self._left_out}
        self._features, self._added = kept | added, list(added)

    def write(self, episode: int, target: Path, advance: Callable[[int], object]) -> None:
        """Annotate an episode into the folder ``target``, which appears when it is whole.

        Where another process has finished the same episode meanwhile, that one stays. ``advance`` is called
        with the number of frames that were finished.
        """
        partial = target.with_name(f".{target.name}.rank{self._rank}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            table = self._source.table(episode)
            columns = self._columns(table, episode, advance)
            self._store(partial, table, episode, columns)
            (partial / VALID_FILE).write_text(json.dumps(columns.valid))
            _appear(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _columns(self, table: pa.Table, episode: int, advance: Callable[[int], object]) -> _Columns:
        columns = _Columns({key: [] for key in self._added})
        # as many pictures for the statistics, and as small, as LeRobot takes for its own
        sampled: dict[str, list[np.ndarray]] = {stream.key: [] for stream in self._plan.stored}
        wanted = set(sample_indices(len(table)))
        keys = sorted({self._plan.read_key(stream) for stream in self._plan.streams})
        total, size = len(table), self._cfg.batch_size

        def read(start: int) -> dict[str, Tensor]:
            return self._source.pictures(table, episode, start, min(start + size, total), keys)

        # the next batch is decoded and the last one encoded while this one is computed
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(self._cfg.num_workers) as encoders:
            upcoming: Future[dict[str, Tensor]] = ahead.submit(read, 0)
            for start in range(0, total, size):
                pictures = upcoming.result()
                stop = min(start + size, total)
                if stop < total:
                    upcoming = ahead.submit(read, stop)
                batch = self._annotator.annotate(pictures, FramePlace(episode, start))
                for stream in self._plan.stored:
                    stored = batch.stored[stream.key]
                    for picture in (p for t, p in enumerate(stored, start) if t in wanted):
                        small = auto_downsample_height_width(picture.transpose(2, 0, 1))
                        sampled[stream.key].append(small.copy())  # a view would keep the batch in memory
                    files = encoders.map(encode, stored)
                    columns.values[stream.key] += [{"bytes": data, "path": None} for data in files]
                for key, ids in batch.ids.items():
                    columns.values[key] += list(ids)
                for key, share in batch.valid.items():
                    columns.valid[key] = columns.valid.get(key, 0.0) + share * (stop - start) / total
                advance(stop - start)
        columns.stats = {s.key: _statistics(sampled[s.key], s.modality) for s in self._plan.stored}
        return columns

    def _store(self, root: Path, table: pa.Table, episode: int, columns: _Columns) -> None:
        old = self._source.meta
        # Counting columns as if the episode stood alone; the merge shifts them back.
        first = {"index": int(old.episodes[episode]["dataset_from_index"]), "episode_index": episode}
        meta = LeRobotDatasetMetadata.create(
            "local/shard", old.fps, self._features, old.robot_type, root=root, use_videos=False
        )
        schema = get_hf_features_from_features(meta.features).arrow_schema
        arrays = []
        for name in schema.names:
            if name in columns.values:
                arrays.append(pa.array(columns.values[name], type=schema.field(name).type))
            elif name in first:
                arrays.append(pa.array([v - first[name] for v in table.column(name).to_pylist()]))
            else:
                arrays.append(table.column(name))
        path = root / DEFAULT_DATA_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        pq.write_table(table_cast(pa.table(arrays, names=schema.names), schema), path)
        meta.tasks = old.tasks.copy()  # all of them, so that task indices stay what they are
        write_tasks(meta.tasks, root)
        stats = {k: v for k, v in self._source.stats(episode).items() if k not in self._left_out}
        for name in first.keys() & stats.keys():
            unshifted = stats[name].items()
            stats[name] = {k: v if k in ("std", "count") else v - first[name] for k, v in unshifted}
        meta.save_episode(
            0,
            len(table),
            list(old.episodes[episode]["tasks"]),
            stats | columns.stats,
            {"data/chunk_index": 0, "data/file_index": 0},
        )
        meta.finalize()


def _appear(partial: Path, target: Path) -> None:
    """Give a whole episode its name; one that another process finished meanwhile stays."""
    try:
        os.replace(partial, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(partial, ignore_errors=True)


def _statistics(sampled: list[np.ndarray], modality: str) -> dict[str, np.ndarray]:
    """Statistics of pictures (C, H, W), in the shape and scale of LeRobot's own."""
    scale = 1.0 if modality == Modality.DEPTH else 255.0
    raw = get_feature_stats(np.stack(sampled), axis=(0, 2, 3), keepdims=True)
    return {k: v if k == "count" else np.squeeze(v / scale, axis=0) for k, v in raw.items()}


def added_features(setup: AnnotationSetup, recipes: Mapping[str, EstimatorRecipe]) -> Features:
    """Features that the new data set gets beside, or in place of, the source's.

    ``recipes`` are the estimators', by modality.
    """
    made: Features = {}
    for stream in setup.plan.streams:
        if stream.store:
            key = setup.plan.read_key(stream)
            like = PictureFeature.read(key, setup.source.features[key])
            made[stream.key] = _stored_pictures(stream, like, recipes.get(stream.modality))
        if stream.tokenize:
            ids = setup.tokenizers.feature(stream)
            ids["info"]["provenance"] = stream.provenance
            if stream.derive and stream.modality in recipes:
                ids["info"]["estimator"] = msgspec.to_builtins(recipes[stream.modality])
            made[stream.token_key] = ids
    return made


def _stored_pictures(stream: Stream, like: PictureFeature, recipe: EstimatorRecipe | None) -> Feature:
    info: dict[str, object] = {}
    if stream.modality == Modality.DEPTH:
        info["depth_unit"] = "mm"
    if stream.derive and recipe:
        info["estimator"] = msgspec.to_builtins(recipe)
        if recipe.settings.get("output") == "relative":
            info["meaning"] = "affine-invariant depth on a nominal scale, not metres"
    if stream.modality == Modality.SEG:
        info["channels"] = ["class", "zero", "zero"]
    if not stream.derive:
        info["scale"] = stream.scale
    labels = ["none", *COCO_PANOPTIC]
    return declare_pictures(stream.modality, like.height, like.width, stream.provenance, labels, **info)
