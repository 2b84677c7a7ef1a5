"""Streams that the policy computes of its RGB: the training data had them so, and no sensor delivers them.

A policy that learned from annotated data and acts on RGB alone is in a state that it has hardly seen in
training. It has the recipes of the estimators from the data set, and makes the same pictures where it looks:
when it plans, not at the steps between.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lerobot_policy_multismolvla.options import MultiSmolVLAOptions
from lerobot_policy_multismolvla.training_data import Features
from multismolvla.estimators import Estimator, EstimatorRecipe, restore_estimator
from multismolvla.estimators.interface import estimate_checked
from multismolvla.estimators.stored import as_stored
from multismolvla.health import Cause
from multismolvla.modalities import MODALITIES, Modality, padding_mask_key, token_key, valid_key
from multismolvla.pretrained import is_hub_id, licence_of, size_of
from multismolvla.sensors import SensorReader

logger = logging.getLogger(__name__)

#: As JSON has them: modality -> fields of an `EstimatorRecipe`; ``None``, only in what is typed in, is none.
Recipes = dict[str, dict[str, Any] | None]
#: Key of how many looks ago each derived stream was estimated, int64 (B, D) in the order of
#: `derived_streams`; where a caller remembers that in the policy's stead.
AGE_KEY = "observation.derived_age"
NEVER = -1  # age of what was not estimated yet
_GREY = 0.5  # of a picture that stands in for one
#: What a network may raise at a picture: a robot goes on with what it has.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


def last_key(key: str) -> str:
    """Key of the last estimate of the picture ``key``, or of its validity, beside `AGE_KEY`."""
    return f"{key}_last"


class DerivedStream(NamedTuple):
    """A stream that the policy computes of its view's RGB.

    Attributes:
        view: number of the view.
        modality: number of the modality.
        name: of the modality.
        place: ``view.modality``, for people.
        key: of its picture.
        ids: key of its cached ids.
        rgb: key of the picture it is computed from.
    """

    view: int
    modality: int
    name: str
    place: str
    key: str
    ids: str
    rgb: str


def derived_streams(cfg: MultiSmolVLAOptions) -> list[DerivedStream]:
    """The streams that a recipe can make and the tower reads."""
    found = []
    views = list(cfg.views.items())
    for v, m in cfg.provenance_map.derived():
        name, (view, streams) = MODALITIES[m], views[v]
        if name in cfg.estimators and name in cfg.domains and Modality.RGB in streams:
            ids, rgb = token_key(view, name), streams[Modality.RGB]
            found.append(DerivedStream(v, m, name, f"{view}.{name}", streams[name], ids, rgb))
    return found


def remembers(cfg: MultiSmolVLAOptions) -> bool:
    """Whether some stream is not estimated at every look."""
    return any(every > 1 for every in cfg.refresh.values())


def first_ages(rows: int, streams: int, device: torch.device | None = None) -> dict[str, Tensor]:
    """What is remembered before the first look."""
    return {AGE_KEY: torch.full((rows, streams), NEVER, device=device)}


def check_derived(cfg: MultiSmolVLAOptions) -> None:
    """See that every derived stream has an RGB, and that what is estimated less often is estimated.

    Raises:
        ValueError: a view lacks the RGB of a derived stream; or what is to be estimated less often comes from
            a sensor, or nothing says what estimates it.
    """
    cfg.provenance_map.check_rgb()
    derived = {MODALITIES[m] for _, m in cfg.provenance_map.derived()}
    for modality in (m for m, every in cfg.refresh.items() if every > 1):
        if modality not in derived:
            raise ValueError(
                f"--policy.refresh={cfg.refresh}: {modality} is no derived modality of this policy "
                f"({sorted(derived) or 'it has none'}); a sensor is read at every look. Leave it out; of a "
                "checkpoint's, set it to 1."
            )
        if modality not in cfg.estimators:
            raise ValueError(
                f"--policy.refresh={cfg.refresh}: no recipe says what estimates {modality} "
                f"(--policy.estimators has {sorted(cfg.estimators) or 'none'}), so it would be left out of "
                "training and never be estimated. Annotate the dataset anew, or set it to 1."
            )


class Pattern(NamedTuple):
    """When derived streams are not estimated, and what they are then."""

    refresh: Mapping[str, int]
    between: str | None

    @classmethod
    def of(cls, cfg: MultiSmolVLAOptions) -> Pattern:
        """As a configuration says; the same for all that says the same."""
        every = {modality: k for modality, k in cfg.refresh.items() if k > 1}
        return cls(every, cfg.refresh_between if every else None)


def warn_of_reuse(cfg: MultiSmolVLAOptions) -> None:
    """Say when training begins that it does not show what the policy will act on between estimates."""
    if remembers(cfg) and cfg.refresh_between == "reuse":
        logger.warning(
            "--policy.refresh_between=reuse: the policy acts on estimates of earlier pictures (refresh=%s). "
            "Training cannot show it those: a sample holds one frame. What stage 2 does imitate is "
            "--policy.refresh_between=absent.",
            cfg.refresh,
        )


def adopt_recipes(cfg: MultiSmolVLAOptions, features: Features) -> Recipes:
    """The recipes of the derived streams: the policy's, completed by what the dataset says of its own.

    Raises:
        ValueError: the dataset's pictures of a modality were made in another way than the policy's.
    """
    recipes: Recipes = dict(cfg.estimators)
    for key, (view, modality) in cfg.stream_keys().items():
        feature = features.get(key) or features.get(token_key(view, modality))
        found = (feature.get("info") or {}).get("estimator") if feature else None
        if not found:
            continue
        found = json.loads(json.dumps(found))
        known = recipes.setdefault(modality, found) or {}
        fields = {*known, *found}
        if not (known.get("files") and found.get("files")):  # of older data; as where a network is restored
            fields -= {"files"}
        different = sorted(name for name in fields if known.get(name) != found.get(name))
        if different:
            name = different[0]
            raise ValueError(
                f"{key}: the dataset's {modality} was estimated with {name}={found.get(name)!r}, the "
                f"policy's with {known.get(name)!r}. Annotate the dataset as the policy's was "
                "(multismolvla-annotate), or let the policy learn the new pictures: "
                f"--policy.estimators='{{\"{modality}\": null}}'."
            )
    provenance = cfg.provenance_map
    orphans = [
        f"{view}.{m}"
        for key, (view, m) in cfg.stream_keys().items()
        if provenance.is_derived(view, m) and m not in recipes and {key, token_key(view, m)} & set(features)
    ]
    if orphans:
        logger.warning(
            "The dataset does not say what estimated %s. Where no sensor delivers them the policy will act "
            "without them; annotate the dataset anew to let it estimate them.",
            ", ".join(orphans),
        )
    return recipes


class DerivedStreams:
    """The estimators of one policy, read at their first use, and what they gave at the looks before.

    Attributes:
        every_row: estimate a whole batch, where anything of it is due, so that the rounding of a row does not
            depend on what others need; what is not due is grey and left out again.
        memory: what a caller that serves several episodes gives back with an episode's next look; empty where
            every stream is estimated at every look.
        trained: what training showed, as far as a checkpoint says.
        outcome: of the last look, int64 (B, V, M): `Cause.FIT` = estimated, `Cause.NOT_DUE`,
            `Cause.NO_ESTIMATE`, `Cause.NO_RGB`, and -1 = nothing was to be estimated; ``None`` = of no
            stream.
    """

    def __init__(self) -> None:
        self._failing: set[str] = set()  # modalities of which nothing could be estimated last time
        self._loaded: dict[str, Estimator | None] = {}
        self.every_row = False
        self._taken: set[DerivedStream] = set()  # those that were delivered though a recipe makes them
        self.memory: dict[str, Tensor] = {}
        self.trained: Pattern | None = None
        self.outcome: Tensor | None = None

    def forget(self) -> None:
        """A new episode begins."""
        self.memory = {}

    def warm(self, cfg: MultiSmolVLAOptions, device: torch.device) -> None:
        """Read what will be needed before the robot moves and run it once, so that no first action is late.

        Raises:
            FileNotFoundError: an estimator's files are not there (``policy.missing_estimator=error``).
            ValueError: they are others than those of the training data.
        """
        now = Pattern.of(cfg)
        if self.trained is not None and self.trained != now:
            logger.warning(
                "The policy was trained with refresh=%s (between: %s) and acts with %s (%s).",
                *self.trained,
                *now,
            )
        self.trained = None
        for stream in derived_streams(cfg):
            if stream.name in self._loaded:
                continue
            if self._estimator(cfg, stream.name, device) is not None:
                feature = (cfg.input_features or {}).get(stream.rgb)
                size = feature.shape[-2:] if feature else (cfg.image_size, cfg.image_size)
                grey = torch.full((1, 3, *size), _GREY, device=device)
                with torch.no_grad():
                    self._pictures(cfg, stream.name, stream.key, grey)

    @torch.no_grad()
    def complete(
        self, cfg: MultiSmolVLAOptions, batch: dict[str, Tensor], there: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Add what can be derived.

        Args:
            cfg: of the policy.
            batch: canonical. A stream whose picture or ids it has is somebody's: taken from there, or absent,
                as the batch says. One without, whose loss is announced, is lost: nobody makes up for it.
            there: bool (B, V, M), what may be looked at; a stream is derived where its view's RGB is.

        Returns:
            The batch with the pictures that were made, and what is there now.

        Raises:
            FileNotFoundError: an estimator's files are not there (``policy.missing_estimator=error``).
            ValueError: they are others than those of the training data.
        """
        streams, self.outcome = derived_streams(cfg), None
        if not streams:
            return batch, there
        made, now = dict(batch), there.clone()
        outcome = self.outcome = torch.full_like(there, -1, dtype=torch.int64)
        before = self._before(batch, there, len(streams))
        age = torch.where(before[AGE_KEY] == NEVER, NEVER, before[AGE_KEY] + 1)
        kept: dict[str, Tensor] = {}
        for number, stream in enumerate(streams):
            every = cfg.refresh.get(stream.name, 1)
            reused = every > 1 and cfg.refresh_between == "reuse"
            names = (stream.key, valid_key(stream.key))
            if reused:  # the ages go on also where nothing is to be estimated
                kept |= {last: before[last] for last in map(last_key, names) if last in before}
            if self._delivered(cfg, batch, stream):
                continue
            of_stream = outcome[:, stream.view, stream.modality]
            rows = there[:, stream.view, MODALITIES.index(Modality.RGB)] & (stream.rgb in batch)
            of_stream[~rows] = int(Cause.NO_RGB)
            if stream.rgb not in batch:
                continue
            announced = batch.get(padding_mask_key(stream.key))
            if announced is not None:
                rows = rows & announced.bool()
                of_stream[~announced.bool()] = -1
            due = rows & ((age[:, number] == NEVER) | (age[:, number] >= every))
            pictures: dict[str, Tensor] = {}
            fresh = due.clone()
            if due.any() and self.every_row:
                shown = torch.where(due[:, None, None, None], batch[stream.rgb], _GREY)
                whole_batch, made_of = self._pictures(cfg, stream.name, stream.key, shown)
                fresh = due & made_of
                pictures = {name: picture[due[made_of]] for name, picture in whole_batch.items()}
            elif due.any():
                pictures, fresh[due] = self._pictures(cfg, stream.name, stream.key, batch[stream.rgb][due])
            again = rows & ~due & reused
            for name in names:
                whole = _with_rows(kept.get(last_key(name)), fresh, pictures.get(name))
                if whole is not None:
                    made[name] = whole
                    if reused:
                        kept[last_key(name)] = whole
            age[fresh, number] = 0
            now[:, stream.view, stream.modality] = fresh | again
            for which, cause in (
                (rows, Cause.NOT_DUE), (due & ~fresh, Cause.NO_ESTIMATE), (fresh | again, Cause.FIT)
            ):  # fmt: skip
                of_stream[which] = int(cause)
        self.memory = {AGE_KEY: age, **kept} if remembers(cfg) else {}
        return made, now

    def _before(self, batch: dict[str, Tensor], there: Tensor, streams: int) -> dict[str, Tensor]:
        """What is known of the looks before: the caller's memory, or the policy's own."""
        found = batch if AGE_KEY in batch else self.memory
        if AGE_KEY in found and found[AGE_KEY].shape == (len(there), streams):
            return found
        return first_ages(len(there), streams, there.device)  # also where the rows are others

    def _delivered(self, cfg: MultiSmolVLAOptions, batch: dict[str, Tensor], stream: DerivedStream) -> bool:
        """Whether somebody else makes the stream; told once, as it may look otherwise than in training.

        The network is kept: where they cease to, none is to be read in the control loop.
        """
        if stream.key not in batch and stream.ids not in batch:
            return False
        if stream not in self._taken:
            self._taken.add(stream)
            logger.warning(
                "%s is delivered, so it is not estimated; the training data had it from %s.",
                stream.place,
                recipe_from(cfg.estimators[stream.name]).model,
            )
        return True

    def _pictures(
        self, cfg: MultiSmolVLAOptions, modality: str, key: str, rgb: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Canonical pictures under ``key``, with their validity, and of which rows they are, bool (B,)."""
        estimator = self._estimator(cfg, modality, rgb.device)
        if estimator is None:
            return {}, rgb.new_zeros(len(rgb), dtype=torch.bool)
        tried = [_try(cfg, estimator, modality, key, rgb)]
        if isinstance(tried[0], Exception) and len(rgb) > 1:  # one row's picture takes no other row's along
            tried = [_try(cfg, estimator, modality, key, row[None]) for row in rgb]
        made = [pictures for pictures in tried if not isinstance(pictures, Exception)]
        errors = [error for error in tried if isinstance(error, Exception)]
        if errors and modality not in self._failing:
            logger.warning("No %s can be estimated: %r It counts as absent.", modality, errors[0])
        (self._failing.add if errors else self._failing.discard)(modality)
        rows = torch.tensor([not isinstance(found, Exception) for found in tried], device=rgb.device)
        return {name: torch.cat([p[name] for p in made]) for name in (made or [{}])[0]}, rows.expand(len(rgb))

    def _estimator(self, cfg: MultiSmolVLAOptions, modality: str, device: torch.device) -> Estimator | None:
        if modality not in self._loaded:
            recipe = recipe_from(cfg.estimators[modality])
            source = cfg.estimator_sources.get(modality)
            place = source or recipe.model
            logger.info("Reading the %s estimator: %s (%s).", modality, place, size_of(place))
            try:
                made = restore_estimator(modality, recipe, source=source, device=str(device))
            except FileNotFoundError as error:
                if cfg.missing_estimator == "error":
                    raise FileNotFoundError(
                        f"The policy learned from {modality} that {_called(recipe)} estimates of RGB. "
                        f"{error}\nFiles elsewhere: --policy.estimator_sources='{{\"{modality}\": FOLDER}}'; "
                        "without, or with what a sensor delivers: --policy.missing_estimator=absent. For "
                        "multismolvla-eval and its checks on recorded frames: --estimator_sources, "
                        "--missing_estimator."
                    ) from error
                logger.warning("%s is not estimated and counts as absent: %s", modality, error)
                self._loaded[modality] = None
                return None
            self._loaded[modality] = made
        return self._loaded[modality]


def _try(
    cfg: MultiSmolVLAOptions, estimator: Estimator, modality: str, key: str, rgb: Tensor
) -> dict[str, Tensor] | Exception:
    """Canonical pictures under ``key``, with their validity, or why there are none."""
    try:
        found = estimate_checked(estimator, rgb, modality)
        reader = SensorReader({"": {modality: key}}, "m", cfg.depth_range_m, cfg.num_labels)
        canonical = reader.read({key: as_stored(modality, found)})
    except _FAILURES as error:
        return error
    return {name: canonical[name] for name in (key, valid_key(key)) if name in canonical}


def _with_rows(last: Tensor | None, rows: Tensor, picture: Tensor | None) -> Tensor | None:
    """The last pictures (B, ...) with new ones in some rows; zeros where there were none."""
    if picture is None:
        return last
    whole = picture.new_zeros(len(rows), *picture.shape[1:]) if last is None else last.clone()
    whole[rows] = picture
    return whole


def _called(recipe: EstimatorRecipe) -> str:
    """The network of a recipe, as one looks for it."""
    if is_hub_id(recipe.model):
        return f"{recipe.model} ({size_of(recipe.model)}; licence: {licence_of(recipe.model)})"
    return (
        f"a network in a folder called {recipe.model!r} (of which the recipe knows neither repository nor "
        "licence: copy it from where the data were annotated)"
    )


def recipe_from(stored: Mapping[str, Any] | None) -> EstimatorRecipe:
    """A recipe as a configuration or data set stores it.

    Raises:
        ValueError: fields are missing or unknown.
    """
    try:
        return EstimatorRecipe(**(stored or {}))
    except TypeError as error:
        raise ValueError(f"--policy.estimators: {stored} is no recipe of an estimator: {error}.") from error
