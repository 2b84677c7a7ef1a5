"""Are the declared cameras in the training data?

At run time a missing stream is an absent sensor. In training a missing RGB is almost always a misspelt key,
and the camera would be lost for days without a word.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping

from multismolvla.modalities import Feature, Modality, ViewMap, modality_of_key

logger = logging.getLogger(__name__)

#: LeRobot's description of a dataset's features, by key.
Features = Mapping[str, Feature]


def check_cameras(views: ViewMap, absent_streams: Collection[str], keys: Collection[str]) -> None:
    """Check that the data have the RGB of every view.

    Args:
        views: the view map.
        absent_streams: streams, as ``view.modality`` or key, that the data lack on purpose.
        keys: of the dataset's features or of a batch.

    Raises:
        ValueError: an RGB key is missing; the message names similar keys of the data.
    """
    declared = {key for streams in views.values() for key in streams.values()}
    for view, streams in views.items():
        key = streams.get(Modality.RGB)
        if key is None or key in keys or not {key, f"{view}.rgb"}.isdisjoint(absent_streams):
            continue
        others = [k for k in keys if k.startswith("observation.image") and k not in declared]
        close = difflib.get_close_matches(key, others, n=3)
        raise ValueError(
            f"The training data lack {key!r}, the RGB of view {view!r}. "
            + (f"Similar keys: {close}. " if close else f"Undeclared keys of the data: {sorted(others)}. ")
            + "Correct --policy.views, or use --rename_map with a checkpoint; if it is absent on purpose, "
            f"declare it: --policy.absent_streams='[\"{view}.rgb\"]'."
        )


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
