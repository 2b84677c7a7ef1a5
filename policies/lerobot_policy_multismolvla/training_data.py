"""Are the declared cameras in the training data?

At run time a missing stream is an absent sensor. In training a missing RGB is almost always a misspelt key,
and the camera would be lost for days without a word.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping, Sequence

from lerobot.configs.types import PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from multismolvla.health import health_key
from multismolvla.modalities import Feature, Modality, ViewMap, modality_of_key

logger = logging.getLogger(__name__)

#: LeRobot's description of a dataset's features, by key.
Features = Mapping[str, Feature]
#: What makes a checkpoint ready for another robot.
ANEW = "multismolvla-export --checkpoint=... --views=... --dataset=..."


def check_cameras(views: ViewMap, absent_streams: Collection[str], keys: Collection[str]) -> None:
    """Check that the data have the RGB of every view.

    Args:
        views: the view map.
        absent_streams: streams, as ``view.modality`` or key, that the data lack on purpose.
        keys: of the dataset's features or of a batch.

    Raises:
        ValueError: an RGB key is missing; the message names similar keys of the data.
    """
    lacking = _lacking(views, absent_streams, keys)
    if not lacking:
        return
    view, key = next(iter(lacking.items()))
    declared = {key for streams in views.values() for key in streams.values()}
    internal = {health_key(key) for key in declared}
    others = [
        k for k in keys if k.startswith("observation.image") and k not in declared and k not in internal
    ]
    close = difflib.get_close_matches(key, others, n=3)
    raise ValueError(
        f"The training data lack {key!r}, the RGB of view {view!r}. "
        + (f"Similar keys: {close}. " if close else f"Undeclared keys of the data: {sorted(others)}. ")
        + "Correct --policy.views; with a checkpoint, use --rename_map or make a start for other views with "
        f"{ANEW}. If it is absent on purpose, declare it: --policy.absent_streams='[\"{view}.rgb\"]'."
    )


def _lacking(views: ViewMap, absent_streams: Collection[str], keys: Collection[str]) -> dict[str, str]:
    """View -> its RGB key, where that is neither there nor declared absent."""
    rgb = {view: streams[Modality.RGB] for view, streams in views.items() if Modality.RGB in streams}
    absent = set(absent_streams)
    return {
        view: key for view, key in rgb.items() if key not in keys and absent.isdisjoint({key, f"{view}.rgb"})
    }


def warn_of_undeclared_cameras(views: ViewMap, features: Features) -> None:
    """Warn of each RGB camera of a dataset that no view declares."""
    declared = {key for streams in views.values() for key in streams.values()}
    for key, feature in features.items():
        picture = feature.get("dtype") in ("image", "video") and not (feature.get("info") or {}).get(
            "is_depth_map"
        )
        if picture and key not in declared and modality_of_key(key) == Modality.RGB:
            logger.warning(
                "The camera %s of the data is declared by no view (--policy.views) and is not read.", key
            )


def names_of(feature: Feature | None) -> list[str]:
    """Names of a feature's numbers, empty where there are none."""
    names: object = feature["names"] if feature else None
    if isinstance(names, Mapping):  # {"motors": [...]}, of older data sets
        names = next(iter(names.values()), None)
    return list(map(str, names)) if isinstance(names, Sequence) else []


def check_action_kind(kind: str, features: Features) -> None:
    """Check that goals of joints are not taken for displacements.

    A displacement that is held or replaced becomes 0: as a goal that would drive the joint there.

    Raises:
        ValueError: they are.
    """
    goals = [name for name in names_of(features.get(ACTION)) if name.endswith(".pos")]
    if kind == "delta" and goals:
        raise ValueError(
            f"action_kind=delta, but the data's actions are goals, by LeRobot's names ({', '.join(goals)}): "
            "where an action is held or replaced, each of these joints would be driven to 0. Expected "
            f"--policy.action_kind=absolute; for a finished policy {ANEW} --action_kind=absolute."
        )


def check_same_robot(stored: Mapping[str, PolicyFeature], features: Features) -> None:
    """Check that state and action have as many numbers as the checkpoint that is trained further.

    Args:
        stored: the checkpoint's features.
        features: of the data.

    Raises:
        ValueError: they have not. Its ranges and its guard would be of another robot.
    """
    for key in (OBS_STATE, ACTION):
        if key not in stored or key not in features:
            continue
        known, found = tuple(stored[key].shape), tuple(features[key]["shape"])
        if known != found:
            raise ValueError(
                f"The data's {key} has the shape {found}, the checkpoint's {known}. Make a start for another "
                f"robot with {ANEW}, and train from that."
            )


def adopt_classes(
    known: Sequence[str], keys: Collection[str], features: Features, labels: int | None
) -> list[str]:
    """Names of the segmentation ids that training data show.

    Args:
        known: the policy's, empty = not known yet.
        keys: of the segmentation pictures that are read.
        features: of the data.
        labels: how many ids the policy takes; ``None`` = its own table maps them.

    Returns:
        ``known``, or what the data say.

    Raises:
        ValueError: the data mean something else by an id, or have another number of them.
    """
    found = list(known)
    for key in sorted(keys & features.keys()):
        said = (features[key].get("info") or {}).get("labels")
        if not isinstance(said, Sequence) or isinstance(said, str):
            continue
        named = list(map(str, said))
        if found and named != found:
            pairs = enumerate(zip(found, named, strict=False))
            first = [f" Id {n} is {a!r} there and {b!r} here." for n, (a, b) in pairs if a != b][:1]
            raise ValueError(
                f"{key}: the policy knows {len(found)} segmentation classes, the data have {len(named)}."
                f"{''.join(first)} Map the data's ids to the policy's classes, or leave seg out of "
                f"--policy.views (of a finished policy: {ANEW})."
            )
        if labels is not None and len(named) != labels:
            raise ValueError(
                f"{key}: the data name {len(named)} segmentation classes, but --policy.num_labels={labels}. "
                f"Set it to {len(named)}."
            )
        found = named
    return found


def warn_of_other_cameras(views: ViewMap, absent_streams: Collection[str], features: Features) -> None:
    """Say what to do about a checkpoint's cameras, before LeRobot refuses them or ``--rename_map`` helps."""
    lacking = _lacking(views, absent_streams, features)
    if lacking:
        found = sorted(key for key in features if key.startswith("observation.image"))
        logger.warning(
            "The data lack the checkpoint's cameras %s; they have %s. If these are the same under other "
            "names: --rename_map. If they are others, make a start for them with %s, and train from that.",
            sorted(lacking.values()),
            found,
            ANEW,
        )
