r"""Cache token ids: a LeRobotDataset with pictures of depth, segmentation and temperature in, one with their ids out.

The tokenizers are frozen, so their ids never change. And LeRobot 0.6.1 decodes *every* picture of *every* row that an action
chunk touches (136 pictures per sample for two views, four modalities and a chunk of 16): without the cache the loader is
slower than the training step. Ids are made by the same functions that the policy uses at run time.

Example:
    $ multismolvla-tokens --dataset outputs/demo/dataset --encoder outputs/demo/train/pretrain/fourm \\
        --output outputs/demo/tokens
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.modalities import Modality, Provenance, ViewMap, default_view_map, token_key
from multismolvla.system.command import AGAIN, entry_point, parse_options, show_progress

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)


@dataclass
class TokensConfig:
    """Options of ``multismolvla-tokens``."""

    dataset: Path = Path("outputs/demo/dataset")  # folder of the source LeRobotDataset
    output: Path = Path("outputs/demo/tokens")  # folder of the new dataset; must not exist, or be finished
    encoder: Path = Path("outputs/demo/pretrained/fourm")  # 4M folder; only its config.json is read
    domains: dict[str, str] = field(
        default_factory=lambda: {"depth": "tok_depth@64", "seg": "tok_semseg@64", "thermal": "tok_thermal@64"}
    )  # modality -> encoder domain
    views: ViewMap = field(default_factory=default_view_map)
    tokenizers: str = "patch"  # or official, with the options of the same names as the policy's
    tokenizer_sources: dict[str, str] = field(default_factory=dict)
    seg_labels: str = "coco_panoptic"
    seg_unknown: str = "error"
    thermal_route: str = "vision"
    imagebind: str = "nielsr/imagebind-huge"
    imagebind_rows: str = "trunk"
    bridge_map: str | None = None
    image_size: int = 64
    square: str = "crop"
    num_labels: int = 8
    device: str = "cpu"  # of the official networks
    half_turns: dict[str, int] = field(default_factory=dict)
    depth_range_m: tuple[float, float] = (0.011, 10.0)  # as the policy's
    keep_pictures: bool = False  # keep the tokenized pictures in the new dataset too
    batch_size: int = 64
    repo_id: str | None = None  # default: the source's, with "_tokens"


def cache_tokens(cfg: TokensConfig) -> Path:
    """Make the dataset with ids. It appears complete or not at all.

    Returns:
        ``cfg.output``.

    Raises:
        FileExistsError: ``output`` exists and is another dataset's.
        ValueError: the source has none of the declared streams, or its pictures are not what they claim to be.
    """
    import datasets
    from lerobot.datasets.dataset_tools import modify_features
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    if (cfg.output / "meta/info.json").is_file():
        _check_same(cfg)
        logger.info("%s is complete already.", cfg.output)
        return cfg.output
    name = cfg.repo_id or f"local/{cfg.dataset.name}_tokens"
    data = LeRobotDataset(
        f"local/{cfg.dataset.name}", root=cfg.dataset, depth_output_unit="m", return_uint8=True
    )
    streams = {
        (view, m): key
        for view, by_modality in cfg.views.items()
        for m, key in by_modality.items()
        if m in cfg.domains and m != Modality.RGB and key in data.features
    }
    if not streams:
        raise ValueError(f"{cfg.dataset} has none of the tokenizable streams of the view map {cfg.views}.")
    ids = _tokenize(cfg, data, streams)
    added = {
        token_key(view, m): (array, _feature(cfg, view, m, array.shape[1]))
        for (view, m), array in ids.items()
    }
    for view, m in ids:  # what was computed from RGB stays so; ids of sensors say nothing
        if (data.features[streams[view, m]].get("info") or {}).get("provenance") == Provenance.DERIVED:
            added[token_key(view, m)][1]["info"]["provenance"] = Provenance.DERIVED.value
    partial = cfg.output.with_name(cfg.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    drop = None if cfg.keep_pictures else sorted(streams.values())
    datasets.disable_progress_bars()  # one for every file, inside LeRobot's own
    modify_features(data, add_features=added, remove_features=drop, output_dir=partial, repo_id=name)
    _carry_metadata(cfg.dataset, partial)
    partial.rename(cfg.output)
    return cfg.output


def _tokenize(
    cfg: TokensConfig, data: Any, streams: dict[tuple[str, str], str]
) -> dict[tuple[str, str], np.ndarray]:
    """All ids of the dataset, int16 (frames, N) per stream; under 2 kB per frame, so they fit in memory."""
    import torch
    from tqdm import trange

    from multismolvla.fourm import FourMConfig
    from multismolvla.sensors import SensorReader
    from multismolvla.tokenizers import OfficialOptions, make_tokenizers
    from multismolvla.tokenizers.recipe import split_domains
    from multismolvla.tower import tokenize_view

    encoder = FourMConfig.from_json(cfg.encoder / "config.json")
    wanted = {
        m: [encoder.modality(d) for d in split_domains(names)]
        for m, names in cfg.domains.items()
        if any(modality == m for _, modality in streams)
    }
    tokenizers = make_tokenizers(
        cfg.tokenizers, wanted, cfg.num_labels, image_size=cfg.image_size, official=OfficialOptions.of(cfg)
    )
    reader = SensorReader(
        cfg.views, depth_range_m=cfg.depth_range_m, num_labels=cfg.num_labels, half_turns=cfg.half_turns
    )
    parts: dict[tuple[str, str], list[torch.Tensor]] = {s: [] for s in streams}
    rows = data.hf_dataset.select_columns(sorted(streams.values()))
    for start in trange(0, len(data), cfg.batch_size, desc="tokenize", unit="batch"):
        batch = rows[start : min(start + cfg.batch_size, len(data))]
        pictures = reader.read({k: torch.stack(list(v)) for k, v in batch.items()})
        for (view, m), key in streams.items():
            canonical = {m: pictures[key].to(cfg.device)}
            if m == Modality.DEPTH:
                canonical["depth_valid"] = pictures[f"{key}_valid"].to(cfg.device)
            ids = tokenize_view(m, canonical, tokenizers[m], cfg.image_size, cfg.square)
            parts[view, m].append(ids.to("cpu", torch.int16))
    return {s: torch.cat(p).numpy() for s, p in parts.items()}


def _feature(cfg: TokensConfig, view: str, modality: str, length: int) -> dict[str, Any]:
    """Description of an id feature with its recipe; the policy compares the recipe with its own."""
    from multismolvla.fourm import FourMConfig
    from multismolvla.tokenizers.recipe import (
        OfficialOptions,
        fingerprints_of,
        id_feature,
        parts_of,
        split_domains,
        token_recipe,
    )

    fingerprints = {}
    if cfg.tokenizers == "official":
        official = OfficialOptions.of(cfg)
        encoder = FourMConfig.from_json(cfg.encoder / "config.json")
        domains = [encoder.modality(d) for d in split_domains(cfg.domains[modality])]
        fingerprints = fingerprints_of(parts_of(modality, domains, official), official)
    recipe = token_recipe(cfg, view, modality, num_labels=cfg.num_labels, fingerprints=fingerprints)
    return id_feature(recipe, length)


def _check_same(cfg: TokensConfig) -> None:
    features = json.loads((cfg.output / "meta/info.json").read_text())["features"]
    for view in cfg.views:
        for m in cfg.domains:
            found = features.get(token_key(view, m))
            wanted = _feature(cfg, view, m, 1)["info"] if found else None
            made = {k: v for k, v in (found or {}).get("info", {}).items() if k != "provenance"}
            if found and made != wanted:
                raise FileExistsError(
                    f"{cfg.output} holds ids made with {made}, expected {wanted}. "
                    "Remove it, or choose another --output."
                )


def _carry_metadata(source: Path, target: Path) -> None:
    """Keep the recorder's own metadata (suite, label set, provenance, initial states) with the derived dataset."""
    own = source / "meta" / "multismolvla.json"
    if own.is_file():
        shutil.copy2(own, target / "meta" / own.name)


@entry_point("multismolvla-tokens", interrupted=AGAIN, loads="lerobot")
def main() -> int:
    """Entry point of ``multismolvla-tokens``.

    Returns:
        0 when the dataset is complete, 1 on an error named on stderr, 130 when interrupted.
    """
    show_progress("multismolvla_data", "multismolvla")
    cache_tokens(parse_options(TokensConfig))
    return 0


if __name__ == "__main__":
    sys.exit(main())
