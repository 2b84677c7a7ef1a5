"""Reads a LeRobotDataset v3 episode by episode, its pictures batch by batch.

LeRobot 0.6.1's own reader first copies the whole table into an Arrow cache and decodes picture by picture;
the values that come out here are the same (a test compares them).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from lerobot.configs import DepthEncoderConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.depth_utils import dequantize_depth
from lerobot.datasets.io_utils import UINT16_PIL_MODES
from lerobot.datasets.utils import DEFAULT_EPISODES_PATH, BackwardCompatibilityError
from lerobot.datasets.video_utils import decode_video_frames
from PIL import Image
from torch import Tensor

from multismolvla.modalities import padding_mask_key
from multismolvla.tokenizers.recipe import file_fingerprint
from multismolvla_data.formats.features import Features
from multismolvla_data.formats.metadata import METADATA_FILE, DatasetMetadata, JoinedPart, read_metadata

#: Feature -> name of the statistic -> value.
Stats = dict[str, dict[str, np.ndarray]]
#: A picture in a table: its file's bytes, or a path within the data set.
Encoded = Mapping[str, bytes | str | None]


class SourceDataset:
    """The data set that is annotated.

    Args:
        dataset: folder, or hub id ``owner/name`` (fetched into the hub cache).
        workers: threads that decode pictures.

    Attributes:
        root: its folder.
        name: last part of its folder or hub id.
        meta: LeRobot's metadata.
        lengths: frames of its episodes.
    """

    def __init__(self, dataset: str, workers: int = 1) -> None:
        self.root, self.name = _find(dataset), Path(dataset).name
        self.workers = max(1, workers)
        self._units: dict[str, str] = {}
        try:
            self.meta = LeRobotDatasetMetadata(f"local/{self.root.name}", root=self.root)
        except BackwardCompatibilityError as error:
            raise ValueError(
                f"{dataset} is not in LeRobot's format v3.0. Convert it first: python -m "
                "lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=..."
            ) from error
        if not self.meta.total_episodes:
            raise ValueError(f"{dataset} has no episodes.")
        columns = (self.meta.episodes["dataset_from_index"], self.meta.episodes["dataset_to_index"])
        self.lengths = [int(stop - start) for start, stop in zip(*columns, strict=True)]

    @property
    def features(self) -> Features:
        """Features as in ``info.json``."""
        return dict(self.meta.features)

    def table(self, episode: int) -> pa.Table:
        """All rows of an episode, in order, pictures still encoded."""
        path = self.root / self.meta.get_data_file_path(episode)
        # a small look-ahead: a file may hold gigabytes of pictures
        table = pads.dataset(path, format="parquet").to_table(
            filter=pads.field("episode_index") == episode,
            batch_size=1024,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
        )
        if len(table) != self.lengths[episode]:
            raise ValueError(
                f"{path}: {len(table)} rows of episode {episode}, but meta/episodes says "
                f"{self.lengths[episode]}. The data set is damaged, or was not finalized after recording."
            )
        return table

    def pictures(
        self, table: pa.Table, episode: int, start: int, stop: int, keys: Sequence[str]
    ) -> dict[str, Tensor]:
        """Pictures of the rows ``start`` to ``stop`` of an episode's table, as LeRobotDataset gives them.

        Returns:
            key -> (B, C, H, W): colour uint8; depth float32 metres. Beside them their presence flags (B,)
            under `multismolvla.modalities.padding_mask_key`, where the data set has them.
        """
        rows = table.slice(start, stop - start)
        flags = [flag for flag in map(padding_mask_key, keys) if flag in table.column_names]
        found = {flag: torch.tensor(rows.column(flag).to_pylist()).reshape(-1) for flag in flags}
        with ThreadPoolExecutor(self.workers) as pool:
            return found | {
                key: self._video(rows, episode, key)
                if self.meta.features[key]["dtype"] == "video"
                else self._images(rows, key, pool)
                for key in keys
            }

    def _images(self, rows: pa.Table, key: str, pool: ThreadPoolExecutor) -> Tensor:
        encoded = rows.column(key).to_pylist()
        pictures = torch.stack(list(pool.map(lambda picture: self._decode(picture, key), encoded)))
        if key not in self.meta.depth_keys:
            return pictures
        return pictures.float() / 1000.0 if self.depth_unit(key) == "mm" else pictures.float()

    def _decode(self, encoded: Encoded, key: str) -> Tensor:
        """One picture -> (C, H, W): uint8 of a colour picture, float32 of any other, in stored units."""
        try:
            array = np.asarray(_open(encoded, self.root))
        except OSError as error:
            raise ValueError(
                f"{key}: a picture cannot be decoded: {error}. The data set is damaged."
            ) from error
        if array.ndim == 2:
            return torch.from_numpy(array.astype(np.float32))[None]
        return torch.from_numpy(array.copy()).permute(2, 0, 1)

    def depth_unit(self, key: str) -> str:
        """Unit of stored depth: as declared, else by LeRobot's rule that integers are millimetres."""
        feature = self.meta.features[key]
        declared = (feature.get("info") or {}).get("depth_unit")
        if declared or feature["dtype"] == "video":
            return str(declared or "mm")
        if key not in self._units:
            first = self.table(0).column(key)[0].as_py()
            self._units[key] = "mm" if _open(first, self.root).mode in UINT16_PIL_MODES else "m"
        return self._units[key]

    def _video(self, rows: pa.Table, episode: int, key: str) -> Tensor:
        first = self.meta.episodes[episode][f"videos/{key}/from_timestamp"]
        times = [first + t for t in rows.column("timestamp").to_pylist()]
        is_depth = key in self.meta.depth_keys
        path = self.root / self.meta.get_video_file_path(episode, key)
        frames = decode_video_frames(path, times, 1e-4, return_uint8=True, is_depth=is_depth)
        if not is_depth:
            return frames
        encoder = DepthEncoderConfig.from_video_info(self.meta.features[key].get("info"))
        depth: Tensor = dequantize_depth(
            frames,
            depth_min=encoder.depth_min,
            depth_max=encoder.depth_max,
            shift=encoder.shift,
            use_log=encoder.use_log,
            output_unit="m",
        )
        return depth

    def stats(self, episode: int) -> Stats:
        """Statistics of an episode as the data set stores them; empty where it stores none."""
        row = self.meta.episodes[episode]
        path = self.root / DEFAULT_EPISODES_PATH.format(
            chunk_index=row["meta/episodes/chunk_index"], file_index=row["meta/episodes/file_index"]
        )
        names = [name for name in pq.read_schema(path).names if name.startswith("stats/")]
        table = pq.read_table(path, columns=names, filters=[("episode_index", "==", episode)])
        stats: Stats = {}
        for name, value in table.slice(0, 1).to_pylist()[0].items() if len(table) and names else ():
            _, key, stat = name.split("/", 2)
            if value is not None and key in self.meta.features:
                stats.setdefault(key, {})[stat] = np.array(value)
        return stats


def joined_metadata(folders: Sequence[Path], source: SourceDataset) -> DatasetMetadata | None:
    """What data sets that were joined into the source, in this order, tell alike, and which they were.

    Raises:
        FileNotFoundError: a folder is no data set with metadata of its own.
        ValueError: equal names, or the lengths of their episodes are not the source's.
    """
    if not folders:
        return None
    parts, lengths = [], []
    for folder in folders:
        if not (folder / METADATA_FILE).is_file():
            raise FileNotFoundError(
                f"--joined_from: {folder / METADATA_FILE} is missing. Name the data sets that "
                "multismolvla-replay or -record wrote."
            )
        part = SourceDataset(str(folder))
        lengths += part.lengths
        parts.append(JoinedPart(folder.name, part.meta.total_episodes))
    if len({part.name for part in parts}) < len(parts):
        raise ValueError(f"--joined_from: expected different folder names, not {[p.name for p in parts]}.")
    if lengths != source.lengths:
        raise ValueError(
            f"--joined_from: {parts} are not what {source.root} was joined from: the lengths of the episodes "
            "differ. Name all of them, in the order of the merge."
        )
    first, *others = [read_metadata(folder) for folder in folders]
    for name in DatasetMetadata.__struct_fields__:
        if any(getattr(other, name) != getattr(first, name) for other in others):
            setattr(first, name, getattr(DatasetMetadata(), name))
    first.joined_from = parts
    return first


def dataset_digest(root: Path) -> str:
    """Recognise a data set's content by its metadata: features, episodes and their statistics."""
    digest = hashlib.sha256((root / "meta/info.json").read_bytes())
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        digest.update(file_fingerprint(path).encode())
    return digest.hexdigest()


def _find(dataset: str) -> Path:
    root = Path(dataset).expanduser()
    if (root / "meta" / "info.json").is_file():
        return root
    try:
        return Path(snapshot_download(dataset, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"--dataset={dataset} holds no LeRobotDataset (no meta/info.json), nor does the hub: {first}"
            "\nGive the folder of one, or a hub id owner/name. With network access: `hf download "
            f"--repo-type=dataset {dataset}`."
        ) from error


def _open(encoded: Encoded, root: Path) -> Image.Image:
    data = encoded["bytes"]
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else root / str(encoded["path"]))
