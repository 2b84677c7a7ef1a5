"""One finished episode on disk: a complete LeRobotDataset of one episode without its videos, written whole or not at all.

Shards are what makes a run resumable and spreads it over processes: the merge joins whatever shards are there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.modalities import Modality
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC
from multismolvla.tokenizers.recipe import id_feature
from multismolvla_data.annotate.annotator import Annotator, encode
from multismolvla_data.annotate.config import AnnotateConfig
from multismolvla_data.annotate.source import Source, shape_of
from multismolvla_data.annotate.streams import Plan, Stream
from multismolvla_data.annotate.work import place_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: Statistics of pictures look at no more pixels per side than this, as LeRobot's own do.
_STATS_SIDE = 150


class Episode:
    """Annotates one episode at a time.

    Args:
        cfg: the options.
        plan: what to make.
        source: where from.
        annotator: how.
        added: features that the new dataset gets, see `added_features`.
    """

    def __init__(
        self,
        cfg: AnnotateConfig,
        plan: Plan,
        source: Source,
        annotator: Annotator,
        added: Mapping[str, dict[str, Any]],
    ) -> None:
        self.cfg, self.plan, self.source, self.annotator = cfg, plan, source, annotator
        self.features = shard_features(source.features, plan, added)

    def write(self, episode: int, target: Path, advance: Callable[[int], object]) -> None:
        """Annotate an episode and store it at ``target``; the folder appears when it is whole.

        Processes that were given other numbers of processes may meet in an episode: the one that is first keeps it.

        Args:
            episode: index in the source.
            target: folder of the shard.
            advance: called with the number of frames that were finished.

        Raises:
            OSError: the disk is full; nothing is left behind.
        """
        # named after the rank, which a lock keeps to one process; host and process id may be equal in two containers
        partial = target.with_name(f".{target.name}.rank{place_of(self.cfg)[0]}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            table = self.source.table(episode)
            columns, stats, valid = self._columns(table, episode, advance)
            self._store(partial, table, episode, columns, stats)
            (partial / "valid.json").write_text(json.dumps(valid))
            _appear(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _columns(
        self, table: pa.Table, episode: int, advance: Callable[[int], object]
    ) -> tuple[dict[str, list[Any]], dict[str, Any], dict[str, float]]:
        """All added columns of an episode, pictures encoded; statistics of the pictures; shares of valid depth."""
        columns: dict[str, list[Any]] = {key: [] for key in self.features if key not in self.source.features}
        columns |= {s.key: [] for s in self.plan.streams if s.store}
        samples = _Samples(len(table))
        valid: dict[str, float] = {}
        keys, size = self.plan.source_keys(), self.cfg.batch_size
        starts = range(0, len(table), size)

        def read(start: int) -> dict[str, Any]:
            return self.source.pictures(table, episode, start, min(start + size, len(table)), keys)

        # the next batch is decoded and the last one encoded while this one is computed
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(self.cfg.num_workers) as encoders:
            upcoming: Future[dict[str, Any]] = ahead.submit(read, 0)
            for start in starts:
                pictures = upcoming.result()
                if start + size < len(table):
                    upcoming = ahead.submit(read, start + size)
                stop = min(start + size, len(table))
                batch = self.annotator.annotate(pictures, [(episode, t) for t in range(start, stop)])
                for stream in (s for s in self.plan.streams if s.store):
                    stored = batch.stored[stream.key]
                    samples.add(stream, start, stored)
                    columns[stream.key] += [
                        {"bytes": data, "path": None} for data in encoders.map(encode, stored)
                    ]
                for key, ids in batch.ids.items():
                    columns[key] += list(ids)
                for key, share in batch.valid.items():
                    valid[key] = valid.get(key, 0.0) + share * (stop - start) / len(table)
                advance(stop - start)
        return columns, samples.stats(), valid

    def _store(
        self,
        root: Path,
        table: pa.Table,
        episode: int,
        columns: Mapping[str, list[Any]],
        stats: dict[str, Any],
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets.table import table_cast
        from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
        from lerobot.datasets.feature_utils import get_hf_features_from_features
        from lerobot.datasets.io_utils import write_tasks
        from lerobot.datasets.utils import DEFAULT_DATA_PATH

        old = self.source.meta
        first = int(old.episodes[episode]["dataset_from_index"])
        meta = LeRobotDatasetMetadata.create(
            "local/shard", old.fps, self.features, old.robot_type, root=root, use_videos=False
        )
        schema = get_hf_features_from_features(meta.features).arrow_schema
        arrays = []
        for name in schema.names:
            if name in columns:
                arrays.append(pa.array(columns[name], type=schema.field(name).type))
            elif name in ("index", "episode_index"):
                arrays.append(
                    pa.array(
                        [v - (first if name == "index" else episode) for v in table.column(name).to_pylist()]
                    )
                )
            else:
                arrays.append(table.column(name))
        path = root / DEFAULT_DATA_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        pq.write_table(table_cast(pa.table(arrays, names=schema.names), schema), path)
        meta.tasks = old.tasks.copy()  # all of them, so that task indices stay what they are
        write_tasks(meta.tasks, root)
        known = _shifted(self.source.stats(episode), first, episode)
        known = {k: v for k, v in known.items() if k not in columns}  # none for ids, new ones for pictures
        meta.save_episode(
            0,
            len(table),
            list(old.episodes[episode]["tasks"]),
            known | stats,
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


class _Samples:
    """Pictures for the statistics: as many per episode, and as small, as LeRobot takes for its own."""

    def __init__(self, length: int) -> None:
        from lerobot.datasets.compute_stats import sample_indices

        self._wanted = set(sample_indices(length))
        self._taken: dict[str, list[np.ndarray]] = {}
        self._scale: dict[str, float] = {}

    def add(self, stream: Stream, start: int, stored: np.ndarray) -> None:
        step = max(1, max(stored.shape[1:3]) // _STATS_SIDE)
        self._scale[stream.key] = 1.0 if stream.modality == Modality.DEPTH else 255.0
        chosen = [picture[::step, ::step] for t, picture in enumerate(stored, start) if t in self._wanted]
        self._taken.setdefault(stream.key, []).extend(chosen)

    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        import numpy as np
        from lerobot.datasets.compute_stats import get_feature_stats

        made = {}
        for key, pictures in self._taken.items():
            channels_first = np.stack(pictures).transpose(0, 3, 1, 2)
            raw = get_feature_stats(channels_first, axis=(0, 2, 3), keepdims=True)
            made[key] = {
                k: v if k == "count" else np.squeeze(v / self._scale[key], axis=0) for k, v in raw.items()
            }
        return made


def added_features(
    cfg: AnnotateConfig,
    plan: Plan,
    source: Mapping[str, dict[str, Any]],
    lengths: Mapping[str, int],
    provenance: Mapping[str, dict[str, Any]],
    fingerprints: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, Any]]:
    """Features that the new dataset gets beside, or in place of, the source's.

    Args:
        cfg: the options.
        plan: what is made.
        source: the source's features.
        lengths: modality -> number of ids per picture.
        provenance: modality -> the estimator's provenance.
        fingerprints: modality -> part -> fingerprint of the tokenizer's weights.
    """
    made: dict[str, dict[str, Any]] = {}
    for stream in plan.streams:
        if stream.store:
            like = stream.key if not stream.derive else plan.rgb_key(stream.view)
            made[stream.key] = _picture_feature(stream, shape_of(source[like]), provenance)
        if stream.tokenize:
            recipe = cfg.recipe(stream.view, stream.modality, fingerprints.get(stream.modality))
            feature = id_feature(recipe, lengths[stream.modality])
            feature["info"] |= {"provenance": stream.provenance}
            made[stream.token_key] = feature
    return made


def shard_features(
    source: Mapping[str, dict[str, Any]], plan: Plan, added: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Features of a shard: the source's without videos and without what is made anew, then the added ones."""
    kept = {k: f for k, f in source.items() if f["dtype"] != "video" and k not in added}
    return {**kept, **added}


def _picture_feature(
    stream: Stream, size: tuple[int, int, int], provenance: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    depth = stream.modality == Modality.DEPTH
    info: dict[str, Any] = {"modality": stream.modality, "provenance": stream.provenance}
    if depth:
        info |= {"is_depth_map": True, "depth_unit": "mm"}
    elif stream.modality == Modality.SEG:
        info |= {"channels": ["class", "zero", "zero"], "labels": ["none", *COCO_PANOPTIC]}
    else:
        info |= {"unit": "relative temperature, 0..255 = 0..1"}
    if stream.derive:
        info |= {"estimator": dict(provenance[stream.modality])}
        if depth and provenance[stream.modality].get("output") == "relative":
            info |= {"meaning": "affine-invariant depth on a nominal scale, not metres"}
    else:
        info |= {"scale": stream.scale}
    shape = (size[0], size[1], 1 if depth else 3)
    return {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"], "info": info}


def _shifted(stats: dict[str, dict[str, Any]], first: int, episode: int) -> dict[str, dict[str, Any]]:
    """Statistics of the counting columns as if the episode stood alone; the merge shifts them back."""
    for key, offset in (("index", first), ("episode_index", episode)):
        if key in stats:
            stats[key] = {k: v if k in ("std", "count") else v - offset for k, v in stats[key].items()}
    return stats
