"""From finished episodes to the new dataset: LeRobot's aggregation of the shards, the source's videos as they are, metadata."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multismolvla.system.files import write_json
from multismolvla_data.annotate.config import AnnotateConfig
from multismolvla_data.annotate.source import Source
from multismolvla_data.annotate.streams import Plan
from multismolvla_data.annotate.work import is_disk_full
from multismolvla_data.formats.workspace import METADATA_FILE

logger = logging.getLogger(__name__)

#: Shards that are joined at once: each one's metadata are appended by rewriting a file, which is quadratic in their number.
GROUP = 32
_LEROBOT_FILES = ("info.json", "stats.json", "tasks.parquet", "episodes")


def merge(
    cfg: AnnotateConfig,
    plan: Plan,
    source: Source,
    episodes: Sequence[int],
    shards: Sequence[Path],
    added: Mapping[str, dict[str, Any]],
    annotation: dict[str, Any],
    work: Path,
) -> Path:
    """Join all shards and give the result the source's videos, statistics and metadata.

    Args:
        cfg: the options.
        plan: what was made.
        source: where from.
        episodes: indices in the source, in the order of the new dataset.
        shards: their folders, in the same order.
        added: features of the new dataset beside, or in place of, the source's.
        annotation: entry ``annotation`` of the new dataset's own metadata.
        work: folder for what is unfinished.

    Returns:
        Folder of the complete dataset, inside ``work``.

    Raises:
        OSError: the disk is full; the unfinished dataset is removed, the shards stay.
    """
    target, name = work / "dataset", cfg.repo_id or f"local/{source.name}_annotated"
    for folder in (target, work / "groups"):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        with quiet_datasets(work / "cache"):
            _aggregate(list(shards), target, name, work / "groups", source.meta.info.data_files_size_in_mb)
        shutil.rmtree(work / "groups", ignore_errors=True)
        _attach_videos(source, episodes, target, skip=set(added))
        _finish_info(plan, source, target, added)
        _finish_stats(source, episodes, target, added)
        _carry(source.root / "meta", target / "meta")
        _carry_joined(cfg, source, target)
        _write_metadata(plan, source, episodes, shards, target, annotation)
    except BaseException:
        for folder in (target, work / "groups"):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return target


def _aggregate(shards: list[Path], target: Path, name: str, groups: Path, megabytes: int) -> None:
    """Join shards with LeRobot's tool, group by group where there are many."""
    from lerobot.datasets.aggregate import aggregate_datasets

    if len(shards) > GROUP:
        joined = []
        for start in range(0, len(shards), GROUP):
            group = groups / f"{len(shards)}_{start:06d}"
            _aggregate(shards[start : start + GROUP], group, name, groups, megabytes)
            joined.append(group)
        _aggregate(joined, target, name, groups, megabytes)
        return
    # Appending to a file with pictures decodes and encodes every row again (lerobot 0.6.1), so those stay apart.
    pictures = any(f["dtype"] == "image" for f in _features(shards[0]).values())
    aggregate_datasets(
        [name] * len(shards),
        name,
        roots=shards,
        aggr_root=target,
        data_files_size_in_mb=megabytes,
        concatenate_data=not pictures,
    )


def _features(root: Path) -> dict[str, dict[str, Any]]:
    return dict(json.loads((root / "meta" / "info.json").read_text())["features"])


def _attach_videos(source: Source, episodes: Sequence[int], target: Path, skip: set[str]) -> None:
    """Copy the video files that the episodes are in, byte for byte, and say where in them each episode is."""
    import pandas as pd

    keys = [k for k in source.meta.video_keys if k not in skip]
    if not keys:
        return
    files = {source.meta.get_video_file_path(e, key) for e in episodes for key in keys}
    for file in sorted(files):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.root / file, target / file)
    fields = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    for path in sorted((target / "meta" / "episodes").glob("*/*.parquet")):
        table = pd.read_parquet(path)
        rows = [source.meta.episodes[episodes[int(i)]] for i in table["episode_index"]]
        for key in keys:
            for name in fields:
                table[f"videos/{key}/{name}"] = [row[f"videos/{key}/{name}"] for row in rows]
        table.to_parquet(path)


def _finish_info(plan: Plan, source: Source, target: Path, added: Mapping[str, dict[str, Any]]) -> None:
    """Features in the source's order, with its videos, then what was added; each stream says where it comes from."""
    path = target / "meta" / "info.json"
    info, old = json.loads(path.read_text()), json.loads((source.root / "meta" / "info.json").read_text())
    features = {k: old["features"][k] for k in old["features"] if k not in added}
    features |= {k: info["features"][k] for k in added}
    for stream in (s for s in plan.streams if s.key not in added and s.key in features):
        said = features[stream.key].get("info") or {}
        unit = {"depth_unit": source.depth_unit(stream.key)} if said.get("is_depth_map") else {}
        features[stream.key]["info"] = (
            unit | {"modality": stream.modality, "provenance": stream.provenance} | said
        )
    info["features"] = features
    if any(f["dtype"] == "video" for f in features.values()):
        info["video_path"] = old["video_path"]
    for name in ("chunks_size", "data_files_size_in_mb", "video_files_size_in_mb"):
        info[name] = old.get(name, info.get(name))
    write_json(path, info)


def _finish_stats(
    source: Source, episodes: Sequence[int], target: Path, added: Mapping[str, dict[str, Any]]
) -> None:
    """The source's own statistics where all its episodes are there; none of the ids, ever."""
    path = target / "meta" / "stats.json"
    made = json.loads(path.read_text()) if path.is_file() else {}
    old_path = source.root / "meta" / "stats.json"
    if list(episodes) == list(range(source.meta.total_episodes)) and old_path.is_file():
        old = json.loads(old_path.read_text())
        made |= {k: v for k, v in old.items() if k not in added}
    # in the features' order: LeRobot 0.6.1 writes them in that of a set
    order = json.loads((target / "meta" / "info.json").read_text())["features"]
    write_json(path, {k: made[k] for k in order if k in made and not k.startswith("observation.tokens.")})


def _carry(source: Path, target: Path) -> None:
    """Keep what other tools wrote beside LeRobot's own metadata, e.g. the recorder's initial states."""
    for path in sorted(source.iterdir()):
        if path.name in _LEROBOT_FILES or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.name)


def joined_metadata(folders: Sequence[Path], source: Source) -> dict[str, Any]:
    """What datasets that were joined into the source tell about themselves.

    Args:
        folders: the datasets, in the order in which they were joined; none = nothing was joined.
        source: the joined dataset.

    Returns:
        What they all say alike, and ``joined_from``: their names and numbers of episodes. Empty without folders.

    Raises:
        FileNotFoundError: a folder is no dataset with metadata of its own.
        ValueError: equal names, or the lengths of their episodes are not the source's.
    """
    if not folders:
        return {}
    told, parts, lengths = [], [], []
    for folder in folders:
        path = folder / METADATA_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"--joined_from: {path} is missing. Name the datasets that multismolvla-replay or -record wrote."
            )
        told.append(json.loads(path.read_text()))
        part = Source(str(folder))
        lengths += [part.length(e) for e in range(part.meta.total_episodes)]
        parts.append({"name": folder.name, "episodes": part.meta.total_episodes})
    if len({part["name"] for part in parts}) < len(parts):
        raise ValueError(f"--joined_from: expected different folder names, not {[p['name'] for p in parts]}.")
    if lengths != [source.length(e) for e in range(source.meta.total_episodes)]:
        raise ValueError(
            f"--joined_from: {parts} are not what {source.root} was joined from: the lengths of the episodes differ. Name all of "
            "them, in the order of the merge."
        )
    common = {k: v for k, v in told[0].items() if all(k in t and t[k] == v for t in told)}
    return common | {"joined_from": parts}


def _carry_joined(cfg: AnnotateConfig, source: Source, target: Path) -> None:
    """The joined datasets' metadata: what they say alike as the new one's, all of it under ``meta/joined_from``."""
    common = joined_metadata(cfg.joined_from, source)
    for folder in cfg.joined_from:
        _carry(folder / "meta", target / "meta" / "joined_from" / folder.name)
    if common:
        path = target / METADATA_FILE
        write_json(path, common | (json.loads(path.read_text()) if path.is_file() else {}))


def _write_metadata(
    plan: Plan,
    source: Source,
    episodes: Sequence[int],
    shards: Sequence[Path],
    target: Path,
    annotation: dict[str, Any],
) -> None:
    path = target / METADATA_FILE
    content = json.loads(path.read_text()) if path.is_file() else {}
    frames = [source.length(e) for e in episodes]
    shares = [json.loads((s / "valid.json").read_text()) for s in shards]
    valid = {
        key: round(sum(n * s[key] for n, s in zip(frames, shares, strict=True)) / sum(frames), 6)
        for key in shares[0]
    }
    provenance: dict[str, str] = dict(content.get("provenance", {"rgb": "sensor"}))
    for stream in plan.streams:  # one derived view makes the modality derived: never call it an own sensor
        if stream.derive or stream.modality not in provenance:
            provenance[stream.modality] = stream.provenance
    streams = {
        s.key: {
            "view": s.view,
            "modality": s.modality,
            "provenance": s.provenance,
            "valid_share": valid.get(s.key),
        }
        for s in plan.streams
    }
    content |= {"views": plan.views, "provenance": provenance}
    if list(episodes) != list(range(source.meta.total_episodes)):
        content["source_episodes"] = list(episodes)
    content["annotation"] = annotation | {"streams": streams}
    for key, share in valid.items():
        if share < 0.1:
            logger.warning("%s: only %.1f %% of its pixels are usable depth.", key, 100 * share)
    write_json(path, content)


@contextlib.contextmanager
def quiet_datasets(cache: Path) -> Iterator[None]:
    """Keep the copies that `datasets` makes of every file it opens inside the work folder, and its bars to itself.

    Raises:
        OSError: the disk is full, whatever `datasets` wrapped it into.
    """
    import datasets
    from datasets.exceptions import DatasetsError

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
    except DatasetsError as error:
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} while joining: {error}") from error
        raise
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        bars.HF_DATASETS_DISABLE_PROGRESS_BARS = shown
        shutil.rmtree(cache, ignore_errors=True)
