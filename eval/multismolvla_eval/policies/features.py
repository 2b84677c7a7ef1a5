"""What a checkpoint reads, and whether it fits the environment.

A mismatch is an error before the first episode.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from safetensors import SafetensorError, safe_open

from multismolvla.modalities import (
    MODALITIES,
    Modality,
    captured_key,
    default_view_map,
    modality_of_key,
    padding_mask_key,
    token_key,
)

logger = logging.getLogger(__name__)

#: Modality -> picture key -> key of its cached ids, or ``None``.
Streams = dict[str, dict[str, str | None]]

#: LeRobot's own place-holders for cameras that are declared absent.
_EMPTY_CAMERA = "empty_camera"
#: Options of policies that bring pictures to a size of their own.
_RESIZING = ("resize_imgs_with_padding", "image_resolution", "resize_shape", "crop_shape", "image_size")
#: A policy's own, or an adapter's; processors have files of other names.
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def check_features(
    path: str, config: Any, features: Mapping[str, PolicyFeature], rename_map: Mapping[str, str]
) -> None:
    """Compare what a policy reads and gives with what the environment gives and takes.

    LeRobot compares the names of pictures only, and nothing once there is a rename map; a policy with another
    action space would then run and fail for a reason that looks like lack of robustness.

    Args:
        path: of the policy, for messages.
        config: the policy's configuration as stored, before LeRobot overwrites its outputs.
        features: the environment's, by the environment's own names.
        rename_map: environment's name -> policy's name.

    Raises:
        ValueError: a name that does not exist on either side, pictures of another size for a policy that does
            not resize them, or another number of actions or states; the message holds the remedy.
    """
    unknown = [k for k in rename_map if k not in features]
    if unknown:
        raise ValueError(
            f"--rename_map renames {unknown[0]!r}, which the environment does not give; it gives "
            f"{sorted(features)}."
        )
    given = {rename_map.get(k, k): f for k, f in features.items()}
    reads = {k: f for k, f in (config.input_features or {}).items() if _EMPTY_CAMERA not in k}
    _check_pictures(path, config, reads, given, rename_map)
    hidden = [k for k, f in reads.items() if f.type is FeatureType.ENV and k not in given]
    if hidden:
        raise ValueError(
            f"The policy {path!r} reads {hidden[0]!r}, the state of the world, which the environment does "
            "not give. Only policies that go by pictures and the robot's own state can be evaluated."
        )
    state, action = reads.get(OBS_STATE), (config.output_features or {}).get(ACTION)
    padded = (getattr(config, "max_state_dim", None),)  # declared at the width to which it pads
    if state is not None and tuple(state.shape) != padded:
        _check_size(path, "state numbers", state, given.get(OBS_STATE))
    if action is not None:
        _check_size(path, "action numbers", action, features.get(ACTION))


def refuse_missing_weights(path: str, folder: str) -> None:
    """See that a local checkpoint has readable weights: LeRobot's pi0 and pi05 would go on with random ones.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is damaged.
    """
    root = Path(folder)
    files = [root / name for name in _WEIGHTS if (root / name).is_file()]
    if root.is_dir() and not files:
        raise FileNotFoundError(
            f"The policy {path!r} has no weights: {root} holds config.json but none of {list(_WEIGHTS)}. "
            "Copy or train it again."
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{file} is damaged ({error}). Copy or train the policy {path!r} again."
            ) from error


def check_labels(path: str, config: Any, labels: Sequence[str]) -> None:
    """Compare the segmentation ids that a policy knows with those that the environment draws.

    An official tokenizer maps ids by its label table, where any small number means something: pictures of
    another label set would become plausible nonsense. Only the number of labels can be compared.

    Args:
        path: of the policy, for messages.
        config: the policy's configuration; policies without ``num_labels`` read no ids.
        labels: names of the environment's classes by id; empty when it does not say.

    Raises:
        ValueError: the numbers do not fit; the message holds the remedies.
    """
    known = getattr(config, "num_labels", None)
    if (
        known is None
        or not labels
        or not any(modality_of_key(k) == Modality.SEG for k in config.input_features or {})
    ):
        return
    exact = config.tokenizers == "official" and config.seg_unknown == "error"
    if len(labels) == known or (len(labels) < known and not exact):
        return
    raise ValueError(
        f"The policy {path!r} knows {known} segmentation labels (seg_labels={config.seg_labels!r}), but the "
        f"environment draws {len(labels)}: {', '.join(labels[:4])}, ... Its ids would mean something else. "
        "Evaluate it in the suites it was trained for; a policy of COCO ids (coco_panoptic, 134) gets them "
        "with --env.options='{seg_labels: coco}'."
    )


@dataclass(frozen=True)
class Reads:
    """What a policy reads.

    Attributes:
        keys: by the environment's names, of the pictures only those that it looks at; it may declare more.
        modalities: of these pictures.
        views: cameras of these pictures.
        provenance: of these modalities, where the policy's configuration has a say; see
            `multismolvla.provenance`.
        derives: of the keys, the streams that it can compute of their view's RGB.
    """

    keys: list[str]
    modalities: list[str]
    views: list[str]
    provenance: dict[str, str]
    derives: list[str]


def what_it_reads(config: Any, cameras: Sequence[str], rename_map: Mapping[str, str]) -> Reads:
    """Look up what a policy reads.

    Args:
        config: of the policy, loaded.
        cameras: of the environment.
        rename_map: environment's name -> policy's name.
    """
    from multismolvla.provenance import ProvenanceMap

    pictures = {k for keys in streams_by_modality(config).values() for k in keys}
    others = {k for k in config.input_features or {} if k not in config.image_features}
    original = {new: old for old, new in rename_map.items()}
    keys = {original.get(k, k) for k in pictures | others}
    views = default_view_map(tuple(cameras))
    given = {c: {m for m, k in streams.items() if k in keys} for c, streams in views.items()}
    modalities = [str(m) for m in MODALITIES if any(m in found for found in given.values())]
    stated = hasattr(config, "provenance")
    table = ProvenanceMap.parse(config.provenance, config.views).table() if stated else {}
    return Reads(
        sorted(keys),
        modalities,
        [c for c, found in given.items() if found],
        {k: kind for k, kind in table.items() if k.split(".")[-1] in modalities},
        sorted(original.get(k, k) for k in computed_streams(config)),
    )


def computed_streams(config: Any) -> dict[str, str]:
    """The streams that a policy computes of RGB where nobody delivers them: picture key -> key of its ids."""
    from lerobot_policy_multismolvla.derived import derived_streams

    if not getattr(config, "uses_fourm", False):
        return {}
    return {s.key: s.ids for s in derived_streams(config)}


def streams_of_rgb(config: Any) -> dict[str, str]:
    """The streams that somebody computed of RGB, the policy or not: picture key -> key of its ids."""
    if not hasattr(config, "provenance_map"):
        return {}
    views = list(config.views)
    places = [(views[v], MODALITIES[m]) for v, m in config.provenance_map.derived()]
    return {config.views[view][m]: token_key(view, m) for view, m in places}


def with_masks(rename_map: Mapping[str, str]) -> dict[str, str]:
    """The rename map with the pictures' padding masks, so that a loss stays announced, and capture times."""
    masks = {
        beside(old): beside(new)
        for old, new in rename_map.items()
        for beside in (padding_mask_key, captured_key)
        if old.startswith(f"{OBS_IMAGES}.")
    }
    return {**masks, **rename_map}


def _check_pictures(
    path: str,
    config: Any,
    reads: Mapping[str, PolicyFeature],
    given: Mapping[str, PolicyFeature],
    rename_map: Mapping[str, str],
) -> None:
    wanted = {k: f for k, f in reads.items() if f.type is FeatureType.VISUAL}
    there = {k: f for k, f in given.items() if f.type is FeatureType.VISUAL}
    if not any(getattr(config, option, None) for option in _RESIZING):
        for key in wanted.keys() & there.keys():
            (height, width), now = wanted[key].shape[-2:], there[key].shape[-2:]
            if (height, width) != tuple(now):  # it would run at another scale than it was trained at
                raise ValueError(
                    f"The policy {path!r} was trained with pictures {key} of {height}x{width} pixels and "
                    f"does not resize them; the environment gives {now[0]}x{now[1]}. Say "
                    f"--env.options='{{observation_height: {height}, observation_width: {width}}}'; policies "
                    "of different sizes need runs of their own."
                )
    missing = [k for k in wanted if k not in there]
    if not missing:
        return
    # Policies with `empty_cameras` go on with the pictures there are; others would stop in their first step.
    if hasattr(config, "empty_cameras") and len(missing) < len(wanted):
        logger.warning("%s reads %s, which the environment does not give: absent for it.", path, missing)
        return
    original = {new: old for old, new in rename_map.items()}
    unused = [k for k in there if k not in wanted and modality_of_key(k) == Modality.RGB]
    free = [original.get(k, k) for k in unused]
    remedy = {**rename_map, **dict(zip(free, missing, strict=False))}
    raise ValueError(
        f"The policy {path!r} reads the pictures {missing}, which the environment does not give; it gives "
        f"{list(there)}. If its cameras are only named otherwise, say which is which, e.g. "
        f"--rename_map='{json.dumps(remedy)}'; for one policy of several: --rename_map='{{name: {{...}}}}'."
    )


def _check_size(path: str, what: str, policy: PolicyFeature, env: PolicyFeature | None) -> None:
    if env is not None and tuple(policy.shape) != tuple(env.shape):
        raise ValueError(
            f"The policy {path!r} was trained with {policy.shape[0]} {what}, the environment has "
            f"{env.shape[0]}. It belongs to another robot or control mode; no option changes that. Evaluate "
            "a checkpoint that was trained for this one."
        )


def streams_by_modality(config: Any) -> Streams:
    """The streams a policy looks at: modality -> picture key -> key of its cached ids, if it has any.

    Policies other than ours tell modalities by the keys' endings.
    """
    found: Streams = {}
    if not hasattr(config, "stream_keys"):
        for key in config.image_features:
            found.setdefault(modality_of_key(key), {})[key] = None
        return found
    ids = {place: key for key, place in config.token_keys().items()}
    read = set(config.tower_modalities if config.uses_fourm else ())
    if config.vision_tower != "fourm":
        read.add(Modality.RGB.value)
    for key, (view, modality) in config.stream_keys().items():
        if modality in read:
            found.setdefault(modality, {})[key] = ids.get((view, modality))
    return found
