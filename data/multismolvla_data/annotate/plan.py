"""The plan of an annotation: which streams a data set has and gets, decided before any frame is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multismolvla.modalities import MODALITIES, Modality, Provenance, ViewMap, stream_name, token_key
from multismolvla_data.annotate.config import DERIVABLE, NUM_OFFICIAL_LABELS, OFFICIAL_LABELS, AnnotateConfig
from multismolvla_data.formats.features import Features, PictureFeature, picture_features

# Beyond this relative difference of aspect ratios, depth and colour cannot show the same field of view.
_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Stream:
    """One modality of one view in the new data set."""

    view: str
    modality: str  # depth, seg or thermal
    key: str  # of its pictures
    provenance: str = Provenance.SENSOR.value
    derive: bool = False  # estimate it from the view's RGB; otherwise it is read from the source
    store: bool = False  # write its pictures (derived, or sensor depth with a corrected scale)
    scale: float = 1.0  # factor on the metres that are read
    tokenize: bool = True  # cache its ids

    @property
    def token_key(self) -> str:
        """Feature of its cached ids."""
        return token_key(self.view, self.modality)


@dataclass(frozen=True)
class AnnotationPlan:
    """What will be in the new data set."""

    views: ViewMap  # with the keys of what is added
    streams: tuple[Stream, ...]  # all but RGB
    dropped: frozenset[str]  # recorded pictures in whose place there are ids
    notes: tuple[str, ...]  # what the user should know, e.g. which streams cannot be made

    @property
    def stored(self) -> list[Stream]:
        """Streams whose pictures are written."""
        return [stream for stream in self.streams if stream.store]

    @property
    def derived(self) -> list[str]:
        """Modalities that need an estimator."""
        return [m for m in DERIVABLE if any(s.derive and s.modality == m for s in self.streams)]

    def rgb_key(self, view: str) -> str:
        """RGB feature of a view."""
        return self.views[view][Modality.RGB]

    def read_key(self, stream: Stream) -> str:
        """Feature of the source that a stream is made of: itself, or its view's RGB."""
        return self.rgb_key(stream.view) if stream.derive else stream.key


def infer_views(pictures: Mapping[str, PictureFeature], modalities: Sequence[str]) -> ViewMap:
    """Every RGB camera of a data set as a view that has these modalities, by the naming convention.

    Raises:
        ValueError: the data set has no RGB camera.
    """
    cameras = [k for k, p in pictures.items() if p.modality == Modality.RGB and p.channels == 3]
    if not cameras:
        raise ValueError(
            f"No RGB camera among the picture features {sorted(pictures)}. Name the streams with --views."
        )
    wanted = [m for m in MODALITIES if m in modalities]
    return {
        key.rsplit(".", 1)[-1]: {Modality.RGB.value: key} | {m: stream_name(key, m) for m in wanted}
        for key in cameras
    }


def make_plan(cfg: AnnotateConfig, features: Features) -> AnnotationPlan:
    """Decide per view and modality what is kept, derived, stored and tokenized.

    Raises:
        ValueError: nothing to do, or streams of a view that do not fit together.
    """
    pictures = picture_features(features)
    views = cfg.views or infer_views(pictures, cfg.modalities)
    streams, notes = [], []
    for view, keys in views.items():
        for modality in (m for m in MODALITIES if m in cfg.modalities and m in keys):
            if keys[modality] in pictures:
                streams.append(_recorded(cfg, view, modality, keys, pictures))
            elif keys.get(Modality.RGB) in pictures:
                key, derived = keys[modality], Provenance.DERIVED.value
                tokenize = _has_ids(cfg, modality)
                stream = Stream(view, modality, key, derived, True, cfg.keep_pictures, tokenize=tokenize)
                streams.append(stream)
            else:
                notes.append(
                    f"{view}: no {modality}, the data set has neither {keys[modality]} nor this view's RGB."
                )
    _check_options(cfg, views, streams)
    if not streams:
        raise ValueError(
            f"Nothing to annotate: {' '.join(notes) or 'no view has a stream.'} Correct --views."
        )
    for stream in streams:
        if stream.tokenize and stream.token_key in features:
            notes.append(f"{stream.token_key} is in the data set already; the ids are made anew.")
    recorded = [s for s in streams if s.tokenize and not s.derive]
    dropped = frozenset() if cfg.keep_pictures else frozenset(s.key for s in recorded)
    return AnnotationPlan(dict(views), tuple(streams), dropped, tuple(notes))


def _has_ids(cfg: AnnotateConfig, modality: str) -> bool:
    """Whether ids of a modality are cached; the thermal route ``soft`` makes rows of numbers instead."""
    soft = modality == Modality.THERMAL and cfg.tokenizers == "official" and cfg.thermal_route == "soft"
    return cfg.tokens and not soft


def _recorded(
    cfg: AnnotateConfig,
    view: str,
    modality: str,
    keys: Mapping[str, str],
    pictures: Mapping[str, PictureFeature],
) -> Stream:
    """A stream that the source has; it must be what its name says and show the same field of view as RGB."""
    key = keys[modality]
    picture = pictures[key]
    allowed = (1,) if modality == Modality.DEPTH else (1, 3)
    if picture.channels not in allowed:
        raise ValueError(
            f"{key} is {modality} with {picture.channels} channels; expected "
            f"{' or '.join(map(str, allowed))}. A depth map drawn in colours or in 8 bits is no measurement: "
            "leave it out of --views, so that depth is estimated under another key."
        )
    if modality == Modality.SEG and picture.is_video:
        raise ValueError(
            f"{key} holds class ids in a video, which changes them. Store it losslessly (PNG), or leave it "
            "out of --views."
        )
    rgb = pictures.get(keys.get(Modality.RGB, ""))
    if rgb is not None and cfg.square != "stretch":
        stretch = (picture.width / picture.height) / (rgb.width / rgb.height)
        if abs(stretch - 1) > _ASPECT_TOLERANCE:
            raise ValueError(
                f"View {view!r}: {key} is {picture.width}x{picture.height} and its RGB "
                f"{rgb.width}x{rgb.height}. Streams of a view must show the same field of view; LeRobot's "
                "RealSense driver does not align them. Align when recording (rs.align), crop the stream, "
                "leave it out of --views, or accept a stretched picture with --square=stretch."
            )
    scale = cfg.depth_scale_m.get(view, 0.001) / 0.001 if modality == Modality.DEPTH else 1.0
    provenance, tokenize = picture.provenance, _has_ids(cfg, modality)
    store = scale != 1.0 and (cfg.keep_pictures or not tokenize)
    return Stream(view, modality, key, provenance, store=store, scale=scale, tokenize=tokenize)


def _check_options(cfg: AnnotateConfig, views: ViewMap, streams: Sequence[Stream]) -> None:
    """Options that name views or label sets must fit the streams."""
    measured = {s.view for s in streams if not s.derive and s.modality == Modality.DEPTH}
    for option, named, known, what in (
        ("half_turns", cfg.half_turns, set(views), "view"),
        ("depth_scale_m", cfg.depth_scale_m, measured, "view with recorded depth"),
    ):
        if unknown := sorted(set(named) - known):
            raise ValueError(f"--{option} names {unknown[0]!r}, which is no {what}. Views: {list(views)}.")
    estimated = [s.key for s in streams if s.modality == Modality.SEG and s.derive]
    if estimated and cfg.seg_labels != OFFICIAL_LABELS:
        raise ValueError(
            f"--seg_labels={cfg.seg_labels} is the label set of recorded segmentation, but {estimated[0]} "
            f"would be estimated, in {OFFICIAL_LABELS}. A data set has one label set: leave segmentation out "
            "of that view in --views."
        )
    if estimated and cfg.tokens and cfg.label_count < NUM_OFFICIAL_LABELS:
        raise ValueError(
            f"{estimated[0]} would be estimated in the {NUM_OFFICIAL_LABELS} classes of {OFFICIAL_LABELS}; "
            f"the {cfg.tokenizers} tokenizers would code {cfg.label_count} (weight-free ones by default 8). "
            f"Set --num_labels={NUM_OFFICIAL_LABELS}, or leave seg out of --modalities."
        )
