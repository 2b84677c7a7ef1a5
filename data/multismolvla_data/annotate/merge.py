"""From finished episodes to the new data set: shards joined by LeRobot, the source's videos, metadata."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from lerobot.datasets.aggregate import aggregate_datasets

from multismolvla.system.files import write_json
from multismolvla_data.annotate.setup import AnnotationSetup
from multismolvla_data.annotate.shard import VALID_FILE
from multismolvla_data.annotate.source import joined_metadata
from multismolvla_data.formats.features import Features
from multismolvla_data.formats.metadata import (
    AnnotatedStream,
    Annotation,
    DatasetMetadata,
    read_metadata,
)

logger = logging.getLogger(__name__)

#: Shards joined at once: LeRobot rewrites a file for each one's metadata, quadratic in their number.
GROUP = 32
_LEROBOT_FILES = ("info.json", "stats.json", "tasks.parquet", "episodes")


@dataclass(frozen=True)
class Merge:
    """Joins shards into the new data set."""

    setup: AnnotationSetup
    shards: Sequence[Path]  # of its episodes, in the same order
    added: Features  # beside, or in place of, the source's

    def write(self, target: Path, groups: Path) -> None:
        """Join all shards at ``target``, by way of ``groups``, and add the source's videos and metadata."""
        self._aggregate(list(self.shards), target, groups)
        shutil.rmtree(groups, ignore_errors=True)
        self._attach_videos(target)
        self._finish_info(target)
        self._finish_stats(target)
        _carry(self.setup.source.root / "meta", target / "meta")
        for folder in self.setup.cfg.joined_from:
            _carry(folder / "meta", target / "meta" / "joined_from" / folder.name)

    def _aggregate(self, shards: list[Path], target: Path, groups: Path) -> None:
        """Join shards with LeRobot's tool, group by group where there are many."""
        if len(shards) > GROUP:
            joined = []
            for start in range(0, len(shards), GROUP):
                joined.append(groups / f"{len(shards)}_{start:06d}")
                self._aggregate(shards[start : start + GROUP], joined[-1], groups)
            self._aggregate(joined, target, groups)
            return
        # lerobot 0.6.1 decodes and encodes every row again when it appends pictures: those files stay apart.
        features = _read_json(shards[0] / "meta/info.json")["features"]
        pictures = any(feature["dtype"] == "image" for feature in features.values())
        name = self.setup.cfg.repo_id or f"local/{self.setup.source.name}_annotated"
        aggregate_datasets(
            [name] * len(shards),
            name,
            roots=shards,
            aggr_root=target,
            data_files_size_in_mb=self.setup.source.meta.info.data_files_size_in_mb,
            concatenate_data=not pictures,
        )

    def _attach_videos(self, target: Path) -> None:
        """Copy the episodes' video files byte for byte and say where in them each episode is."""
        meta = self.setup.source.meta
        keys = [key for key in meta.video_keys if key not in self._left_out]
        if not keys:
            return
        for file in sorted({meta.get_video_file_path(e, key) for e in self.setup.episodes for key in keys}):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.setup.source.root / file, target / file)
        fields = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
        for path in sorted((target / "meta" / "episodes").glob("*/*.parquet")):
            table = pd.read_parquet(path)
            rows = [meta.episodes[self.setup.episodes[int(i)]] for i in table["episode_index"]]
            for column in [f"videos/{key}/{name}" for key in keys for name in fields]:
                table[column] = [row[column] for row in rows]
            table.to_parquet(path)

    def _finish_info(self, target: Path) -> None:
        """Features in the source's order, then what was added; each stream says where it comes from."""
        path = target / "meta" / "info.json"
        info, old = _read_json(path), _read_json(self.setup.source.root / "meta" / "info.json")
        features = {key: f for key, f in old["features"].items() if key not in self._left_out}
        features |= {key: info["features"][key] for key in self.added}
        for stream in self.setup.plan.streams:
            if stream.key in self.added or stream.key not in features:
                continue
            own = features[stream.key].get("info") or {}
            known = {"modality": stream.modality, "provenance": stream.provenance}
            if own.get("is_depth_map"):
                known["depth_unit"] = self.setup.source.depth_unit(stream.key)
            features[stream.key]["info"] = known | own
        info["features"] = features
        if any(feature["dtype"] == "video" for feature in features.values()):
            info["video_path"] = old["video_path"]
        for name in ("chunks_size", "data_files_size_in_mb", "video_files_size_in_mb"):
            info[name] = old.get(name, info.get(name))
        write_json(path, info)

    def _finish_stats(self, target: Path) -> None:
        """The source's own statistics where all its episodes are there; none of the ids, ever."""
        path, old_path = target / "meta" / "stats.json", self.setup.source.root / "meta" / "stats.json"
        made = _read_json(path) if path.is_file() else {}
        if self._has_all_episodes and old_path.is_file():
            made |= {key: v for key, v in _read_json(old_path).items() if key not in self._left_out}
        # in the features' order: LeRobot 0.6.1 writes them in that of a set
        order = _read_json(target / "meta" / "info.json")["features"]
        ids = {stream.token_key for stream in self.setup.plan.streams}
        write_json(path, {key: made[key] for key in order if key in made and key not in ids})

    @property
    def _left_out(self) -> Set[str]:
        """Features of the source that are not in the new data set as they were."""
        return self.added.keys() | self.setup.plan.dropped

    @property
    def _has_all_episodes(self) -> bool:
        return list(self.setup.episodes) == list(range(self.setup.source.meta.total_episodes))

    def metadata(self, annotation: Annotation) -> DatasetMetadata:
        """The source's metadata, or what the data sets joined into it tell alike, and the annotation."""
        source = self.setup.source
        metadata = joined_metadata(self.setup.cfg.joined_from, source) or read_metadata(source.root)
        if not metadata.provenance:
            metadata.provenance = {"rgb": "sensor"}
        valid = self._valid_shares()
        for stream in self.setup.plan.streams:
            # one derived view makes the modality derived: never call it a sensor of its own
            if stream.derive or stream.modality not in metadata.provenance:
                metadata.provenance[stream.modality] = stream.provenance
            annotation.streams[stream.key] = AnnotatedStream(
                stream.view, stream.modality, stream.provenance, valid.get(stream.key)
            )
        metadata.views = self.setup.plan.views
        if not self._has_all_episodes:
            metadata.source_episodes = list(self.setup.episodes)
        metadata.annotation = annotation
        return metadata

    def _valid_shares(self) -> dict[str, float]:
        """Picture feature of depth -> share of usable pixels, over all episodes."""
        frames = [self.setup.source.lengths[episode] for episode in self.setup.episodes]
        shares = [_read_json(shard / VALID_FILE) for shard in self.shards]
        valid = {}
        for key in shares[0]:
            usable = sum(count * share[key] for count, share in zip(frames, shares, strict=True))
            valid[key] = round(usable / sum(frames), 6)
            if valid[key] < 0.1:
                logger.warning("%s: only %.1f %% of its pixels are usable depth.", key, 100 * valid[key])
        return valid


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def _carry(source: Path, target: Path) -> None:
    """Keep what other tools wrote beside LeRobot's own metadata, e.g. the recorder's simulator states."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_LEROBOT_FILES, ".*"), dirs_exist_ok=True)


@contextlib.contextmanager
def quiet_datasets(cache: Path) -> Iterator[None]:
    """Silence `datasets`, and keep the copies that it makes of every file it opens inside a folder."""
    bars: Any = importlib.import_module("datasets.utils.tqdm")  # `datasets.utils` has a class of that name
    before, shown = datasets.config.HF_DATASETS_CACHE, bars.HF_DATASETS_DISABLE_PROGRESS_BARS
    datasets.config.HF_DATASETS_CACHE = cache
    # LeRobot 0.6.1 switches the bars on again after every file; only this flag has priority.
    datasets.disable_progress_bars()
    bars.HF_DATASETS_DISABLE_PROGRESS_BARS = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Cannot enable progress bars")
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        bars.HF_DATASETS_DISABLE_PROGRESS_BARS = shown
        shutil.rmtree(cache, ignore_errors=True)
