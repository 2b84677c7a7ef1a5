"""Contact sheet of an annotated data set: a few frames, every view and modality, with what each stream is."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from multismolvla.modalities import MODALITIES, Modality
from multismolvla.pictures import SheetRow, Tile, colourise, contact_sheet
from multismolvla.system.files import whole_file
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC
from multismolvla_data.annotate.config import NUM_OFFICIAL_LABELS, AnnotateConfig
from multismolvla_data.annotate.verify import FinishedDataset, frames_of

SHEET = "contact_sheet.png"
_FRAMES, _PIXELS, _NAMED_CLASSES = 4, 200, 3


def draw_contact_sheet(dataset: FinishedDataset) -> None:
    """Draw frames spread over the data set as a reader sees it: a row per view, a column per modality."""
    plan, lengths = dataset.setup.plan, dataset.setup.lengths
    ends = np.cumsum(lengths)
    chosen = []
    for place in np.linspace(0, ends[-1] - 1, min(_FRAMES, int(ends[-1]))).round().astype(int):
        episode = int(np.searchsorted(ends, place, side="right"))
        chosen.append((episode, int(place - ends[episode] + lengths[episode])))
    data = dataset.open({episode for episode, _ in chosen})
    shown = [m for m in MODALITIES if any(m in keys for keys in plan.views.values())]
    provenance = {keys[Modality.RGB]: "sensor" for keys in plan.views.values() if Modality.RGB in keys}
    for stream in plan.streams:
        info = data.meta.features.get(stream.key, {}).get("info") or {}
        # relative depth is drawn in metres that are none
        provenance[stream.key] = stream.provenance + (", nominal scale" if "meaning" in info else "")
    rows = []
    for episode, t in chosen:
        items = frames_of(data, episode, t, t + 1)
        pictures = dataset.pictures(items, episode, t)
        for view, keys in plan.views.items():
            tiles: list[Tile | None] = []
            for modality in shown:
                key = keys.get(modality, "")
                if key not in provenance:
                    tiles.append(None)
                    continue
                label = f"{view}.{modality}\n{provenance[key]}"
                tiles.append(_tile(dataset.setup.cfg, pictures.get(key), modality, label))
            rows.append(SheetRow(f"episode {episode}, frame {t}: {items[0]['task']}", tiles))
    with whole_file(dataset.root / SHEET) as partial:
        contact_sheet(rows, _PIXELS).save(partial)


def _tile(cfg: AnnotateConfig, batch: Tensor | None, modality: str, label: str) -> Tile:
    """A picture, and a few numbers or names that show at a glance whether units and labels are right."""
    if batch is None:
        return Tile(None, label)
    values = batch[0].numpy()
    if modality == Modality.DEPTH:
        # LeRobot's video gives 10 mm where nothing was measured
        measured = (values > cfg.depth_range_m[0]) & (values <= cfg.depth_range_m[1])
        seen = values[measured]
        detail = f", {seen.min():.2f}-{seen.max():.2f} m" if seen.size else ", nothing measured"
        return Tile(colourise(modality, values, measured, depth_span=None), label + detail)
    # LeRobot gives 8-bit pictures that are not videos as shares of 255
    levels = values if values.dtype == np.uint8 else np.rint(values * 255).astype(np.uint8)
    if modality == Modality.SEG:
        ids, counts = np.unique(levels[0], return_counts=True)
        common = [int(i) for i in ids[np.argsort(-counts)][:_NAMED_CLASSES]]
        coco = {i: n for i, n in enumerate(COCO_PANOPTIC, 1) if cfg.label_count == NUM_OFFICIAL_LABELS}
        names = [coco.get(i, str(i)) for i in common]
        label += ", " + " ".join(names)
    elif modality == Modality.THERMAL:
        label += f", {levels[0].min()}-{levels[0].max()}"
    return Tile(colourise(modality, levels), label)
