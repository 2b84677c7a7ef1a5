"""The plan of an annotation: which streams a dataset has and gets, decided from options and features before any frame is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multismolvla.modalities import MODALITIES, Modality, Provenance, ViewMap, token_key
from multismolvla_data.annotate.config import DERIVABLE, NUM_OFFICIAL_LABELS, OFFICIAL_LABELS, AnnotateConfig
from multismolvla_data.annotate.source import modality_of, shape_of

# Beyond this relative difference of aspect ratios, depth and colour cannot show the same field of view.
_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Stream:
    """One modality of one view in the new dataset.

    Attributes:
        view: its view.
        modality: depth, seg or thermal.
        key: its picture feature.
        provenance: see `multismolvla.modalities.Provenance`.
        derive: estimate it from the view's RGB; otherwise it is read from the source.
        store: write its pictures (derived, or sensor depth with a corrected scale).
        scale: factor on the metres that are read.
        tokenize: cache its ids.
    """

    view: str
    modality: str
    key: str
    provenance: str
    derive: bool
    store: bool
    scale: float = 1.0
    tokenize: bool = True

    @property
    def token_key(self) -> str:
        """Feature of its cached ids."""
        return token_key(self.view, self.modality)


@dataclass(frozen=True)
class Plan:
    """What will be in the new dataset.

    Attributes:
        views: the complete view map, with the keys of what is added.
        streams: all streams but RGB.
        notes: what the user should know, e.g. which streams cannot be made.
    """

    views: ViewMap
    streams: tuple[Stream, ...]
    notes: tuple[str, ...]

    def rgb_key(self, view: str) -> str:
        """RGB feature of a view."""
        return self.views[view][Modality.RGB]

    def source_keys(self) -> list[str]:
        """Features to read from the source: sensor streams, and RGB where something is derived from it."""
        keys = [self.rgb_key(s.view) if s.derive else s.key for s in self.streams]
        return sorted(set(keys))

    def derived(self) -> tuple[str, ...]:
        """Modalities that need an estimator."""
        return tuple(m for m in DERIVABLE if any(s.derive and s.modality == m for s in self.streams))


def infer_views(features: Mapping[str, dict[str, Any]], modalities: list[str]) -> ViewMap:
    """The view map of a dataset: every RGB camera is a view, its other streams follow the naming convention.

    Args:
        features: of the dataset.
        modalities: those that each view shall have beside RGB.

    Returns:
        ``{camera: {"rgb": key, modality: key_modality}}``, in the order of the features.

    Raises:
        ValueError: the dataset has no RGB camera.
    """
    pictures = {k: f for k, f in features.items() if f["dtype"] in ("image", "video")}
    cameras = [k for k, f in pictures.items() if modality_of(k, f) == Modality.RGB and shape_of(f)[2] == 3]
    if not cameras:
        raise ValueError(
            f"No RGB camera among the picture features {sorted(pictures)}. Name the streams with --views."
        )
    wanted = [m for m in MODALITIES if m in modalities]
    return {
        key.rsplit(".", 1)[-1]: {str(Modality.RGB): key} | {m: f"{key}_{m}" for m in wanted}
        for key in cameras
    }


def make_plan(cfg: AnnotateConfig, features: Mapping[str, dict[str, Any]]) -> Plan:
    """Decide per view and modality what is kept, derived, stored and tokenized.

    Raises:
        ValueError: nothing to do, or streams of a view that do not fit together.
    """
    views = cfg.views or infer_views(features, cfg.modalities)
    streams, notes = [], []
    for view, by_modality in views.items():
        rgb = by_modality.get(Modality.RGB)
        for modality in (m for m in MODALITIES if m in cfg.modalities and m in by_modality):
            key = by_modality[modality]
            tokenize = cfg.tokens and not (
                modality == Modality.THERMAL and cfg.tokenizers == "official" and cfg.thermal_route == "soft"
            )
            if key in features:
                _check_stored(modality, key, features[key])
                info = features[key].get("info") or {}
                scale = cfg.depth_scale_m.get(view, 0.001) / 0.001 if modality == Modality.DEPTH else 1.0
                if rgb is not None and rgb in features:
                    _check_aspect(cfg, view, key, features[key], features[rgb])
                provenance = str(info.get("provenance", Provenance.SENSOR))
                streams.append(Stream(view, modality, key, provenance, False, scale != 1.0, scale, tokenize))
            elif rgb in features:
                provenance = str(Provenance.DERIVED)
                streams.append(
                    Stream(view, modality, key, provenance, True, cfg.keep_pictures, 1.0, tokenize)
                )
            else:
                notes.append(f"{view}: no {modality}, the dataset has neither {key} nor this view's RGB.")
    strange = sorted(set(cfg.half_turns) - set(views))
    if strange:
        raise ValueError(f"--half_turns names {strange[0]!r}, which is no view. Views: {list(views)}.")
    unknown = sorted(
        set(cfg.depth_scale_m) - {s.view for s in streams if not s.derive and s.modality == Modality.DEPTH}
    )
    if unknown:
        raise ValueError(
            f"--depth_scale_m names {unknown[0]!r}, which is no view with recorded depth. Views: {list(views)}."
        )
    if not streams:
        raise ValueError(
            f"Nothing to annotate: {' '.join(notes) or 'no view has a stream.'} Correct --views."
        )
    _check_labels(cfg, streams)
    notes += [
        f"{s.token_key} is in the dataset already; the ids are made anew."
        for s in streams
        if s.tokenize and s.token_key in features
    ]
    return Plan(dict(views), tuple(streams), tuple(notes))


def _check_aspect(
    cfg: AnnotateConfig, view: str, key: str, stream: dict[str, Any], rgb: dict[str, Any]
) -> None:
    """Streams of a view are taken as registered to its RGB; other aspect ratios prove that they are not."""
    (h, w, _), (rgb_h, rgb_w, _) = shape_of(stream), shape_of(rgb)
    if cfg.square == "crop" and abs((w / h) / (rgb_w / rgb_h) - 1) > _ASPECT_TOLERANCE:
        raise ValueError(
            f"View {view!r}: {key} is {w}x{h} and its RGB {rgb_w}x{rgb_h}. Streams of a view must show the same field of view, "
            "pixel on pixel after scaling; LeRobot's RealSense driver does not align them. Align when recording (rs.align), "
            "crop the stream, leave it out of --views, or accept a stretched picture with --square=stretch."
        )


def _check_stored(modality: str, key: str, feature: dict[str, Any]) -> None:
    """A recorded stream must be what its name says, before any network is loaded."""
    allowed = (1,) if modality == Modality.DEPTH else (1, 3)
    if shape_of(feature)[2] not in allowed:
        raise ValueError(
            f"{key} is {modality} of shape {tuple(feature['shape'])}; expected {' or '.join(map(str, allowed))} channels. A depth map "
            "drawn in colours or in 8 bits is no measurement: leave it out of --views, so that depth is estimated under "
            "another key."
        )
    if modality == Modality.SEG and feature["dtype"] == "video":
        raise ValueError(
            f"{key} holds class ids in a video, which changes them. Store it losslessly (PNG), or leave it out of --views."
        )


def _check_labels(cfg: AnnotateConfig, streams: list[Stream]) -> None:
    derived = [s for s in streams if s.modality == Modality.SEG and s.derive]
    if derived and cfg.seg_labels != OFFICIAL_LABELS:
        raise ValueError(
            f"--seg_labels={cfg.seg_labels} is the label set of recorded segmentation, but {derived[0].key} would be estimated, in "
            f"{OFFICIAL_LABELS}. A dataset has one label set: leave segmentation out of that view in --views."
        )
    if derived and cfg.tokenizers == "patch" and cfg.tokens:
        raise ValueError(
            f"{derived[0].key} would be estimated in the {NUM_OFFICIAL_LABELS} classes of {OFFICIAL_LABELS}; the weight-free "
            "tokenizers code at most 8. Use --tokenizers=official, or leave seg out of --modalities."
        )
