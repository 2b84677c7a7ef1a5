"""Which tensors a checkpoint holds, and strict loading of base checkpoints.

LeRobot 0.6.1 loads non-strictly: missing and unexpected keys are a warning. A policy with a randomly
initialised language model then trains for hours. Here exactly the expected keys may be missing or unexpected,
anything else is an error.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lerobot_policy_multismolvla.training_data import ANEW
from multismolvla import weights
from multismolvla.fourm.soft import SOFT_PREFIX
from multismolvla.modalities import ViewMap
from multismolvla.objectives.registry import objective_of

logger = logging.getLogger(__name__)

FROZEN_PREFIX = "model.tower."
#: What is trained although it lies in the tower: the maps of soft modalities.
TRAINED_PREFIX = f"{FROZEN_PREFIX}encoder.encoder_embeddings.{SOFT_PREFIX}"
#: In keys of policies that were saved before LeRobot moved normalisation into processors, or while compiled;
#: its migration script takes both away.
_BEFORE_PROCESSORS = (
    ".normalize_inputs.", ".normalize_targets.", ".unnormalize_outputs.", ".normalize.", ".unnormalize.",
    "._orig_mod.",
)  # fmt: skip


def is_frozen_key(key: str) -> bool:
    """Whether a state-dict key belongs to the frozen tower, which checkpoints leave out."""
    return key.startswith(FROZEN_PREFIX) and not key.startswith(TRAINED_PREFIX)


def check_restored_keys(source: str | Path, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Check a restored policy: only the frozen tower may be missing, nothing may be unexpected.

    Raises:
        ValueError: otherwise, naming the first bad key.
    """
    lost = sorted(k for k in missing if not is_frozen_key(k))
    extra = sorted(unexpected)
    if lost or extra:
        first = f"missing {lost[0]!r}" if lost else f"unexpected {extra[0]!r}"
        raise ValueError(
            f"{source} does not fit this policy: {first} ({len(lost)} keys missing, {len(extra)} "
            "unexpected). Expected a checkpoint of the same vision_tower, views and sizes. For a plain "
            "SmolVLA checkpoint use --policy.base_checkpoint."
        )


def check_same_views(source: str, stored: ViewMap, wanted: ViewMap) -> None:
    """A checkpoint's processors are of its own views: others would reach the policy as they come.

    Raises:
        ValueError: the views differ.
    """
    if wanted != stored:
        raise ValueError(
            f"--policy.views={wanted} are not those of {source}, whose processors read {stored}. Rename the "
            f"data's cameras with --rename_map, or make a start for fine-tuning with these views: {ANEW}"
        )


def check_same_action_kind(source: str, stored: str, wanted: str) -> None:
    """A checkpoint's guard knows which actions stand still: of another kind, others would.

    Raises:
        ValueError: the kinds differ.
    """
    if wanted != stored:
        raise ValueError(
            f"--policy.action_kind={wanted}, but {source} and its guard are of {stored} actions. Write a "
            f"checkpoint of the other kind: multismolvla-export --checkpoint=... --action_kind={wanted} (for "
            "another robot with --views and --dataset)."
        )


def load_weights(policy: nn.Module, state: dict[str, torch.Tensor], source: str) -> list[str]:
    """Load a policy's weights into one of the same sizes; views of other names start with no embedding.

    Objectives join and leave as a whole: those that only the weights have are left out.

    Returns:
        The objectives that only the policy has.

    Raises:
        ValueError: anything else is missing or unexpected.
    """
    own, stored = (_objectives(keys) for keys in (policy.state_dict(), state))
    state = {key: value for key, value in state.items() if objective_of(key) not in stored - own}
    missing, unexpected = policy.load_state_dict(state, strict=False)
    missing = [key for key in missing if objective_of(key) not in own - stored]
    new = [key.rpartition(".")[2] for key in missing if ".view_embedding." in key]
    if new:
        logger.warning("%s knows no view %s; its embedding starts at zero.", source, ", ".join(new))
    ours = [[k for k in keys if ".view_embedding." not in k] for keys in (missing, unexpected)]
    check_restored_keys(source, *ours)
    return sorted(own - stored)


def _objectives(keys: Iterable[str]) -> set[str]:
    return {name for key in keys if (name := objective_of(key)) is not None}


def load_base_checkpoint(model: nn.Module, source: str) -> None:
    """Load a SmolVLA checkpoint strictly into upstream's freshly built ``VLAFlowMatching``.

    Args:
        model: upstream's model, before its vision path is replaced; weights are written into it.
        source: folder with ``model.safetensors``, or a hub repository.

    Raises:
        FileNotFoundError: the folder has no weights, or the hub cannot be reached; the message says what to
            do by hand.
        ValueError: the keys or shapes differ, or the checkpoint is older than LeRobot's processors.
    """
    state = {k.removeprefix("model."): v for k, v in _read_base(source).items()}
    _load_strictly(model, state, source)


def load_teacher(vision: nn.Module, connector: nn.Module, source: str) -> None:
    """Load SigLIP and its connector, the teacher of stage 1, from a SmolVLA checkpoint; errors as above."""
    state = _read_base(source)
    for module, name in ((vision, "vision_model"), (connector, "connector")):
        prefix = f"model.vlm_with_expert.vlm.model.{name}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        _load_strictly(module, part, source)


def _read_base(source: str) -> dict[str, torch.Tensor]:
    (file,) = weights.locate(source, (weights.WEIGHTS_FILE,))
    return read_weights(file)


def _load_strictly(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    own = model.state_dict()
    old = sorted(k for k in state if k not in own and any(part in f".{k}" for part in _BEFORE_PROCESSORS))
    if old:
        raise ValueError(
            f"--policy.base_checkpoint={source} is from before LeRobot's processors: it holds {old[0]!r} "
            f"({len(old)} such keys). Migrate it once with `python -m "
            f"lerobot.processor.migrate_policy_normalization --pretrained-path {source} --output-dir FOLDER` "
            "and name that folder."
        )
    # lm_head is tied away or unused in some exports (lerobot 0.6.1 never calls it)
    optional = {k for k in own if k.endswith("lm_head.weight")}
    missing = sorted(set(own) - set(state) - optional)
    extra = sorted(set(state) - set(own))
    wrong = sorted(k for k in set(own) & set(state) if own[k].shape != state[k].shape)
    found = [f"missing {k!r}" for k in missing] + [f"unexpected {k!r}" for k in extra]
    found += [f"{k!r} has shape {tuple(state[k].shape)}, expected {tuple(own[k].shape)}" for k in wrong]
    if found:
        raise ValueError(
            f"--policy.base_checkpoint={source} is not a SmolVLA of the configured size: {found[0]} "
            f"({len(missing)} missing, {len(extra)} unexpected, {len(wrong)} of another shape). Check "
            "--policy.vlm_model_name, num_vlm_layers and expert_width_multiplier against the checkpoint's "
            "config.json."
        )
    model.load_state_dict(state, strict=False)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ValueError: it is truncated or no safetensors file, as a full disk or a broken download leaves it.
    """
    try:
        return load_file(path)
    except SafetensorError as e:
        size = Path(path).stat().st_size
        raise ValueError(
            f"{path} ({size} bytes) is truncated or no safetensors file: {e}. Fetch it again, or resume from "
            "an earlier checkpoint."
        ) from e


def tensors_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of a module's tensors, in name order, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
