"""Reads a LeRobotDataset v3 episode by episode: rows from parquet, pictures batch by batch, nothing twice in memory.

LeRobot 0.6.1's own reader first copies the whole table into an Arrow cache and decodes picture by picture; the values that
come out here are the same (a test compares them).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.modalities import Modality

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

logger = logging.getLogger(__name__)


class Source:
    """The dataset that is annotated.

    Args:
        dataset: folder, or hub id ``owner/name`` (fetched into the hub cache).
        workers: threads that decode pictures.

    Attributes:
        root: its folder.
        name: last part of its folder or hub id.
        meta: LeRobot's metadata.

    Raises:
        FileNotFoundError: neither a folder with a dataset nor a hub id that can be fetched.
        ValueError: the dataset has an older format, no episodes, or ``episodes`` out of range.
    """

    def __init__(self, dataset: str, workers: int = 1) -> None:
        from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
        from lerobot.datasets.utils import BackwardCompatibilityError

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

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Features as in ``info.json``."""
        return dict(self.meta.features)

    def length(self, episode: int) -> int:
        """Frames of an episode."""
        row = self.meta.episodes[episode]
        return int(row["dataset_to_index"] - row["dataset_from_index"])

    def table(self, episode: int) -> pa.Table:
        """All rows of an episode, in order, pictures still encoded.

        Raises:
            ValueError: the file does not hold as many rows as the metadata say.
        """
        import pyarrow.dataset as pads

        path = self.root / self.meta.get_data_file_path(episode)
        scanner = pads.dataset(path, format="parquet").scanner(
            filter=pads.field("episode_index") == episode,
            batch_size=1024,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
        )
        table = scanner.to_table()
        if len(table) != self.length(episode):
            raise ValueError(
                f"{path}: {len(table)} rows of episode {episode}, but meta/episodes says {self.length(episode)}. The dataset is "
                "damaged, or was not finalized after recording."
            )
        return table

    def pictures(
        self, table: pa.Table, episode: int, start: int, stop: int, keys: Sequence[str]
    ) -> dict[str, Tensor]:
        """Pictures of the rows ``start`` to ``stop`` of an episode, as LeRobotDataset gives them with metres.

        Args:
            table: the episode's rows.
            episode: its index.
            start: first row.
            stop: behind the last row.
            keys: picture features.

        Returns:
            key -> (B, C, H, W): colour uint8; depth float32, metres where the feature's unit is known, else as stored.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            return {
                key: self._video(table, episode, start, stop, key)
                if self.meta.features[key]["dtype"] == "video"
                else self._images(table, start, stop, key, pool)
                for key in keys
            }

    def _images(self, table: pa.Table, start: int, stop: int, key: str, pool: ThreadPoolExecutor) -> Tensor:
        import torch

        rows = table.column(key).slice(start, stop - start).to_pylist()
        pictures = torch.stack(list(pool.map(lambda row: _decode(row, self.root, key), rows)))
        if key not in self.meta.depth_keys:
            return pictures
        return pictures.float() / 1000.0 if self.depth_unit(key) == "mm" else pictures.float()

    def depth_unit(self, key: str) -> str:
        """Unit of stored depth: as the feature declares it, else by LeRobot's rule: integers are millimetres."""
        from lerobot.datasets.io_utils import UINT16_PIL_MODES

        feature = self.meta.features[key]
        declared = (feature.get("info") or {}).get("depth_unit")
        if declared or feature["dtype"] == "video":
            return str(declared or "mm")
        if key not in self._units:
            row = self.table(0).column(key)[0].as_py()
            self._units[key] = "mm" if _open(row, self.root).mode in UINT16_PIL_MODES else "m"
        return self._units[key]

    def _video(self, table: pa.Table, episode: int, start: int, stop: int, key: str) -> Tensor:
        from lerobot.configs import DepthEncoderConfig
        from lerobot.datasets.depth_utils import dequantize_depth
        from lerobot.datasets.video_utils import decode_video_frames

        first = self.meta.episodes[episode][f"videos/{key}/from_timestamp"]
        times = [first + t for t in table.column("timestamp").slice(start, stop - start).to_pylist()]
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

    def stats(self, episode: int) -> dict[str, dict[str, Any]]:
        """Statistics of an episode as the dataset stores them; empty where it stores none."""
        import numpy as np
        import pyarrow.parquet as pq
        from lerobot.datasets.utils import DEFAULT_EPISODES_PATH

        row = self.meta.episodes[episode]
        path = self.root / DEFAULT_EPISODES_PATH.format(
            chunk_index=row["meta/episodes/chunk_index"], file_index=row["meta/episodes/file_index"]
        )
        names = [n for n in pq.read_schema(path).names if n.startswith("stats/")]
        table = pq.read_table(path, columns=names, filters=[("episode_index", "==", episode)])
        stats: dict[str, dict[str, Any]] = {}
        for name, value in table.slice(0, 1).to_pylist()[0].items() if len(table) and names else ():
            _, key, stat = name.split("/", 2)
            if value is not None and key in self.meta.features:
                stats.setdefault(key, {})[stat] = np.array(value)
        return stats


def shape_of(feature: dict[str, Any]) -> tuple[int, int, int]:
    """(height, width, channels) of a picture feature, whichever way its shape is written."""
    first, second, third = (int(s) for s in feature["shape"])
    names: Sequence[Any] = feature.get("names") or []
    channels_first = str(names[0]).startswith("channel") if len(names) == 3 else third not in (1, 3)
    return (second, third, first) if channels_first else (first, second, third)


def modality_of(key: str, feature: dict[str, Any]) -> str:
    """Modality of a picture feature: as its info says, else by the naming of `multismolvla.modalities.default_view_map`."""
    info = feature.get("info") or {}
    if info.get("modality"):
        return str(info["modality"])
    for modality in (Modality.DEPTH, Modality.SEG, Modality.THERMAL):
        if key.endswith(f"_{modality}"):
            return str(modality)
    return str(Modality.DEPTH if info.get("is_depth_map") else Modality.RGB)


def _find(dataset: str) -> Path:
    root = Path(dataset).expanduser()
    if (root / "meta" / "info.json").is_file():
        return root
    if root.exists() or dataset.count("/") != 1 or dataset.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"--dataset={dataset} holds no LeRobotDataset (no meta/info.json). Expected a folder of one, or a hub id owner/name."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(dataset, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"--dataset={dataset} is no folder, and the hub does not deliver it: {first}\nWith network access: `hf download "
            f"--repo-type=dataset {dataset}`; or give the folder of a copy."
        ) from error


def _open(row: dict[str, Any], root: Path) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(row["bytes"]) if row["bytes"] else root / row["path"])


def _decode(row: dict[str, Any], root: Path, key: str) -> Tensor:
    """One encoded picture -> (C, H, W): uint8 of a colour picture, float32 of any other, in stored units."""
    import numpy as np
    import torch

    try:
        array = np.asarray(_open(row, root))
    except OSError as error:
        raise ValueError(f"{key}: a picture cannot be decoded: {error}. The dataset is damaged.") from error
    if array.ndim == 2:
        return torch.from_numpy(array.astype(np.float32))[None]
    return torch.from_numpy(array.copy()).permute(2, 0, 1)
