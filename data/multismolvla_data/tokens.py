r"""``multismolvla-tokens``: caches token ids of a LeRobotDataset's depth, segmentation and thermal pictures.

The tokenizers are frozen, so their ids never change. And LeRobot 0.6.1 decodes *every* picture of *every* row
that an action chunk touches (136 pictures per sample for two views, four modalities and a chunk of 16):
without the cache the loader is slower than the training step.

Example:
    $ multismolvla-tokens --dataset outputs/demo/dataset --encoder outputs/demo/train/pretrain/fourm \\
        --output outputs/demo/tokens
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from multismolvla.modalities import Modality, Provenance, ViewMap, default_view_map
from multismolvla.system.command import AGAIN, entry_point, parse_options, show_progress
from multismolvla_data.annotate.config import TokenizerOptions

if TYPE_CHECKING:
    import numpy as np

    from multismolvla_data.annotate.source import SourceDataset
    from multismolvla_data.annotate.tokenizing import StreamTokenizers
    from multismolvla_data.formats.workspace import Workspace

COMMAND = "multismolvla-tokens"


@dataclass
class TokensConfig(TokenizerOptions):
    """Options of ``multismolvla-tokens``."""

    dataset: Path = Path("outputs/demo/dataset")  # folder of the source LeRobotDataset
    output: Path = Path("outputs/demo/tokens")  # folder of the new data set; must not exist, or be finished
    encoder: str | None = None  # 4M folder whose config.json declares domains of its own
    views: ViewMap = field(default_factory=default_view_map)
    tokenizers: str = "patch"
    domains: dict[str, str] = field(
        default_factory=lambda: {"depth": "tok_depth@64", "seg": "tok_semseg@64", "thermal": "tok_thermal@64"}
    )
    image_size: int = 64
    num_labels: int = 8  # size of the segmentation pictures' label set
    device: str = "cpu"  # of the official networks
    keep_pictures: bool = False  # keep the tokenized pictures, and those that no view declares
    batch_size: int = 64
    repo_id: str | None = None  # default: the source's, with "_tokens"


def cache_tokens(cfg: TokensConfig) -> Path:
    """Make the data set with ids; returns its folder.

    Raises:
        WorkspaceError: ``output`` exists and was made of other pictures or by another recipe.
        ValueError: the source has none of the declared streams, or its pictures are not what they claim.
    """
    from multismolvla_data.annotate.plan import Stream
    from multismolvla_data.annotate.source import SourceDataset, dataset_digest
    from multismolvla_data.annotate.tokenizing import StreamTokenizers
    from multismolvla_data.formats.features import picture_features
    from multismolvla_data.formats.workspace import Workspace, make

    source = SourceDataset(str(cfg.dataset))
    pictures = picture_features(source.features)
    streams = [
        Stream(view, m, key, pictures[key].provenance)
        for view, keys in cfg.views.items()
        for m, key in keys.items()
        if m in cfg.domains and m != Modality.RGB and key in pictures
    ]
    if not streams:
        raise ValueError(f"{cfg.dataset} has none of the tokenizable streams of the view map {cfg.views}.")
    tokenizers = StreamTokenizers(cfg, streams, cfg.num_labels, cfg.encoder)
    identity = {"source": dataset_digest(source.root), "recipes": tokenizers.recipes}
    workspace = Workspace(COMMAND, cfg.output, identity | {"keep_pictures": cfg.keep_pictures})
    return make(workspace, lambda: _write(cfg, source, tokenizers, workspace))


def _write(
    cfg: TokensConfig, source: SourceDataset, tokenizers: StreamTokenizers, workspace: Workspace
) -> None:
    import datasets
    from lerobot.datasets.dataset_tools import modify_features
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from multismolvla_data.formats.card import write_card
    from multismolvla_data.formats.metadata import read_metadata, write_metadata

    shutil.rmtree(workspace.dataset, ignore_errors=True)
    ids = _tokenize(cfg, source, tokenizers)
    added = {}
    for stream in tokenizers.tokenized:
        feature = tokenizers.feature(stream)
        if stream.provenance == Provenance.DERIVED:  # ids of sensors say nothing
            feature["info"]["provenance"] = stream.provenance
        added[stream.token_key] = (ids[stream.token_key], feature)
    dropped = [] if cfg.keep_pictures else _pictures_to_drop(cfg, source, tokenizers)
    datasets.disable_progress_bars()  # one for every file, inside LeRobot's own
    modify_features(
        LeRobotDataset(f"local/{source.name}", root=source.root),
        add_features=added,
        remove_features=dropped or None,
        output_dir=workspace.dataset,
        repo_id=cfg.repo_id or f"local/{source.name}_tokens",
    )
    _drop_statistics(workspace.dataset, dropped)
    metadata = read_metadata(source.root)
    metadata.identities[COMMAND] = workspace.identity
    write_card(workspace.dataset, metadata)
    write_metadata(workspace.dataset, metadata)


def _pictures_to_drop(cfg: TokensConfig, source: SourceDataset, tokenizers: StreamTokenizers) -> list[str]:
    """Pictures for which ids stand, and those that no view declares: reading a row decodes all it has."""
    from multismolvla_data.formats.features import picture_features

    declared = {key for keys in cfg.views.values() for key in keys.values()}
    tokenized = {stream.key for stream in tokenizers.tokenized}
    return sorted(key for key in picture_features(source.features) if key in tokenized or key not in declared)


def _tokenize(
    cfg: TokensConfig, source: SourceDataset, tokenizers: StreamTokenizers
) -> dict[str, np.ndarray]:
    """Token feature -> ids, int16 (frames, N); under 2 kB per frame, so they fit in memory."""
    import numpy as np
    from tqdm import tqdm

    from multismolvla_data.annotate.tokenizing import FramePlace, IdMaker

    id_maker = IdMaker(tokenizers, cfg.views, cfg.device, cfg.health)
    parts: dict[str, list[np.ndarray]] = {stream.token_key: [] for stream in tokenizers.tokenized}
    keys = sorted(stream.key for stream in tokenizers.streams)
    with tqdm(total=sum(source.lengths), desc="tokenize", unit="frame") as bar:
        for episode, length in enumerate(source.lengths):
            table = source.table(episode)
            for start in range(0, length, cfg.batch_size):
                stop = min(start + cfg.batch_size, length)
                pictures = source.pictures(table, episode, start, stop, keys)
                ids, _ = id_maker.ids(pictures, FramePlace(episode, start))
                for key, made in ids.items():
                    parts[key].append(made)
                bar.update(stop - start)
    return {key: np.concatenate(made) for key, made in parts.items()}


def _drop_statistics(root: Path, keys: list[str]) -> None:
    """Drop episodes' statistics of removed features: lerobot 0.6.1 copies them, then stumbles over them."""
    import pyarrow.parquet as pq

    for path in (root / "meta/episodes").glob("*/*.parquet"):
        table = pq.read_table(path)
        gone = [n for n in table.column_names if n.startswith(tuple(f"stats/{key}/" for key in keys))]
        pq.write_table(table.drop_columns(gone).replace_schema_metadata(None), path)


@entry_point(COMMAND, interrupted=AGAIN, loads="lerobot")
def main() -> int:
    """Entry point of ``multismolvla-tokens``; exit code 0 done, 1 a named error, 130 interrupted."""
    show_progress("multismolvla_data", "multismolvla")
    cache_tokens(parse_options(TokensConfig))
    return 0


if __name__ == "__main__":
    sys.exit(main())
