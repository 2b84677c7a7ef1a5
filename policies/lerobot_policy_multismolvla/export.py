"""Make what was trained or downloaded fit to be given away: slim encoders, merged adapters, an upload.

The command is ``multismolvla-export`` (`multismolvla_run.export`). Every export appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import DeviceProcessorStep
from lerobot.utils.constants import ACTION, OBS_STATE
from peft import PeftConfig, PeftModel
from safetensors import safe_open

from lerobot_policy_multismolvla.checkpoints import (
    FROZEN_PREFIX,
    is_frozen_key,
    load_weights,
    tensors_hash,
)
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.model_card import SlimEncoder, encoder_card, policy_card
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.objectives.modules import give_up_objectives
from lerobot_policy_multismolvla.options import check_options
from lerobot_policy_multismolvla.processor_multismolvla import (
    POST_FILE,
    PRE_FILE,
    complete_processors,
    make_multismolvla_pre_post_processors,
)
from lerobot_policy_multismolvla.safety.guard import guard_of, put_guard, statistics_of
from lerobot_policy_multismolvla.safety.holding import standstill
from multismolvla import weights
from multismolvla.fourm import FourMEncoder
from multismolvla.fourm.soft import SOFT_PREFIX
from multismolvla.modalities import ViewMap
from multismolvla.objectives.options import ObjectivesOptions
from multismolvla.objectives.registry import objective_of
from multismolvla.pretrained import SOURCE_FILE, is_hub_id, licence_of, needed_to_act
from multismolvla.tokenizers.recipe import split_domains

logger = logging.getLogger(__name__)

LICENCE_NOTE = "LICENCE-OF-THE-WEIGHTS.txt"
_ADAPTER_CONFIG, _ADAPTERS = "adapter_config.json", "adapter_model.safetensors"
#: Written anew, or meaningless once the adapters are merged.
_NOT_COPIED = {_ADAPTER_CONFIG, _ADAPTERS, "config.json", "model.safetensors", "README.md"}


def slim_encoder(
    source: str,
    modalities: Sequence[str],
    output: Path,
    *,
    revision: str | None = None,
    expected_hash: str | None = None,
) -> SlimEncoder:
    """Write the few tensors of a 4M checkpoint that some modalities need, in the official layout.

    Values and dtype stay as they are, so that policies trained with the whole checkpoint accept the slim one.

    Args:
        source: folder in the official layout, or hub id.
        modalities: encoder domains to keep, e.g. ``["rgb@224", "tok_depth@224"]``.
        output: new folder.
        revision: commit, branch or tag on the hub.
        expected_hash: what the encoder must hash to (a policy's ``encoder_hash``); ``None`` = anything.

    Returns:
        What is written into ``source.json``.

    Raises:
        FileExistsError: ``output`` exists.
        ValueError: the checkpoint lacks a modality, does not fit, or hashes to something else.
    """
    with new_folder(output) as folder:
        config_file, _ = weights.locate(source, revision=revision)
        encoder = FourMEncoder.from_pretrained(source, modalities, revision=revision)
        found = tensors_hash(encoder)
        if expected_hash not in (None, found):
            raise ValueError(
                f"The encoder at {source!r} with {list(modalities)} hashes to {found[:12]}…, but the policy "
                f"was trained with {str(expected_hash)[:12]}…. Name the original encoder with --encoder and "
                "--revision."
            )
        encoder.save_pretrained(folder)
        if tensors_hash(FourMEncoder.from_pretrained(folder, modalities)) != found:
            raise OSError(f"{output}: what was written differs from what was read. Is the disk in order?")
        # a file in the hub's cache: …/snapshots/<commit>/<file>
        cached = config_file.parent.parent.name == "snapshots"
        made = SlimEncoder(
            source=source,
            revision=config_file.parent.name if cached else revision,
            modalities=tuple(modalities),
            encoder_hash=found,
            licence=licence_of(source),
            made_by=f"multismolvla-export {metadata.version('lerobot_policy_multismolvla')}",
        )
        (folder / SOURCE_FILE).write_text(json.dumps(asdict(made), indent=2) + "\n")
        _write_licence_note(folder, config_file.parent, source)
        (folder / "README.md").write_text(encoder_card(made))
    return made


def export_policy(
    checkpoint: Path,
    output: Path,
    *,
    base: Path | None = None,
    action_kind: str | None = None,
    bf16: bool = False,
) -> list[str]:
    """Write a checkpoint that stands alone: adapters merged, processors and model card beside it.

    What the objectives trained for themselves is left out, and they are off.

    Args:
        checkpoint: folder of a policy (``…/pretrained_model``), with adapters or without.
        output: new folder.
        base: the checkpoint that the adapters were trained on, if it is no longer where they say.
        action_kind: of a checkpoint from before this was declared; ``None`` = as it says, else absolute.
        bf16: write the weights in bfloat16, half the file, and let the policy act in it.

    Returns:
        What the checkpoint lacked and the export has: ``health``, ``guard``.

    Raises:
        FileNotFoundError: no policy there, or the adapters' base is gone.
        FileExistsError: ``output`` exists.
        ValueError: another policy type, or weights that do not fit.
    """
    values, config = _read_config(checkpoint), read_policy_config(checkpoint)
    config.action_kind = action_kind or config.action_kind
    check_options(config)
    _check_tower_is_official(checkpoint)
    with new_folder(output) as folder:
        policy = load_policy(checkpoint, base)
        give_up_objectives(policy)
        if bf16:
            policy.to(torch.bfloat16)  # the frozen tower, too, which is not saved
            values["acting_dtype"] = "bfloat16"
        policy.save_pretrained(folder)
        # The policy's own configuration as it was, not as this machine understood it (device).
        values["use_peft"] = False
        for name, off in (("objectives", ObjectivesOptions()), ("consistency_weight", 0.0)):
            if getattr(config, name) != off:
                del values[name]  # off is the default
        for path in sorted(checkpoint.iterdir()):
            if path.is_file() and path.name not in _NOT_COPIED:
                shutil.copyfile(path, folder / path.name)
        added = _complete(folder, config, values["device"], anew=action_kind is not None)
        values |= {"action_kind": config.action_kind, "standstill": config.standstill}
        (folder / "config.json").write_text(json.dumps(values, indent=4) + "\n")
        train = checkpoint / "train_config.json"
        training = json.loads(train.read_text()) if train.is_file() else None
        (folder / "README.md").write_text(policy_card(values, training, merged=_is_adapter(checkpoint)))
    local = [where for where in needed_to_act(values) if not is_hub_id(where)]
    if local:
        logger.warning(
            "The policy reads networks from folders of this machine, which others do not have: %s. Name hub "
            "repositories in config.json before you give it away.",
            ", ".join(local),
        )
    return added


def _complete(folder: Path, config: MultiSmolVLAConfig, device: str, *, anew: bool) -> list[str]:
    """Give the processors in a folder what they lack, and the configuration what stands still.

    Args:
        folder: of the export.
        config: the policy's.
        device: that it was saved for, which need not be here.
        anew: whether actions are of another kind than the checkpoint says.

    Returns:
        Names of what the processors lacked.
    """
    if not all((folder / name).is_file() for name in (PRE_FILE, POST_FILE)):
        return []
    pre, post = make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides={"device_processor": {"device": "cpu"}}
    )
    if anew or not config.standstill:
        config.standstill = standstill(config, statistics_of(post))
    guard = guard_of(post)
    if guard is not None:
        put_guard(post, config.stopped, guard.step, guard.start)
    added = complete_processors(config, pre, post)
    for step in pre.steps:
        if isinstance(step, DeviceProcessorStep):
            step.device = device
    for name, pipeline in ((PRE_FILE, pre), (POST_FILE, post)):
        for path in folder.glob(f"{Path(name).stem}*"):
            path.unlink()  # the files' names hold the numbers of the steps
        pipeline.save_pretrained(folder, config_filename=name)
    return added


class Transfer(NamedTuple):
    """What a starting point for fine-tuning has of a part of the policy."""

    part: str
    kept: str  # of the checkpoint
    new: str


def export_for_finetuning(
    checkpoint: Path,
    output: Path,
    *,
    views: ViewMap,
    dataset: Path,
    base: Path | None = None,
    action_kind: str | None = None,
) -> list[Transfer]:
    """Write a checkpoint for other cameras, another robot: ``lerobot-train --policy.path`` starts from it.

    A checkpoint's processors know its views by name, so ``--policy.views`` alone cannot change them.

    Args:
        checkpoint: folder of a policy, with adapters (they are merged) or without.
        output: new folder.
        views: the new view map; a view that is called as one of the checkpoint's keeps its embedding.
        dataset: folder of the LeRobotDataset that is going to be trained on.
        base: as for `export_policy`.
        action_kind: of the data's actions; ``None`` = that of the checkpoint.

    Returns:
        What was kept and what is new, part by part.

    Raises:
        FileNotFoundError, FileExistsError: as `export_policy`; or no data set there.
        ValueError: the data set lacks an RGB camera of ``views`` or exceeds the policy's sizes, or a view
            has a modality that the checkpoint was trained without; or its actions are of another kind.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.utils.feature_utils import dataset_to_policy_features

    if not (dataset / "meta/info.json").is_file():
        raise FileNotFoundError(f"--dataset={dataset} is not a LeRobotDataset (no meta/info.json).")
    meta = LeRobotDatasetMetadata(f"local/{dataset.name}", root=dataset)
    old = read_policy_config(checkpoint)
    _check_tower_is_official(checkpoint)
    features = dataset_to_policy_features(meta.features)
    config = _config_for(old, views, features, action_kind or old.action_kind)
    config.set_dataset_feature_metadata(meta.features)
    config.validate_features()
    with new_folder(output) as folder:
        state = load_policy(checkpoint, base).state_dict()
        policy = MultiSmolVLAPolicy(config, restoring=True, dataset_stats=meta.stats, dataset_meta=meta)
        gone = set(old.tower_modalities) - set(config.tower_modalities)
        kept = {
            k: v
            for k, v in state.items()
            if not is_frozen_key(k) and objective_of(k) is None and not gone & set(k.split("."))
        }
        load_weights(policy, kept, str(checkpoint))
        policy.save_pretrained(folder)
        for steps in make_multismolvla_pre_post_processors(config, meta.stats):
            steps.save_pretrained(folder)
    return _transfers(old, config)


def _config_for(
    old: MultiSmolVLAConfig, views: ViewMap, features: dict[str, PolicyFeature], action_kind: str
) -> MultiSmolVLAConfig:
    """The configuration with new views and features; what spoke of the old views is at its default."""
    if old.uses_fourm:
        unknown = sorted({m for streams in views.values() for m in streams} - set(old.tower_modalities))
        if unknown:
            raise ValueError(
                f"--views declares {unknown[0]}, but the checkpoint was trained with "
                f"{', '.join(old.tower_modalities)} alone. Leave it out, or train both stages from the base."
            )
    for name, most in ((OBS_STATE, old.max_state_dim), (ACTION, old.max_action_dim)):
        if name in features and features[name].shape[0] > most:
            raise ValueError(
                f"The data set's {name} has {features[name].shape[0]} numbers; the checkpoint holds {most}."
            )
    config = deepcopy(old)
    config.views, config.action_kind = views, action_kind
    config.input_features = {k: f for k, f in features.items() if f.type is not FeatureType.ACTION}
    config.output_features = {k: f for k, f in features.items() if f.type is FeatureType.ACTION}
    config.half_turns = {view: turns for view, turns in old.half_turns.items() if view in views}
    config.absent_streams, config.deployment, config.dropout_deployment = [], [], 0.0
    config.provenance, config.estimators = {}, {}  # the data set says it
    config.estimator_sources, config.refresh = {}, {}
    config.objectives, config.consistency_weight = ObjectivesOptions(), 0.0
    config.curriculum_step, config.use_peft, config.pretrained_path = 0, False, None
    check_options(config)
    if config.tower_modalities != old.tower_modalities:
        config.encoder_hash = None  # it is that of the domains that are read
    return config


def _transfers(old: MultiSmolVLAConfig, new: MultiSmolVLAConfig) -> list[Transfer]:
    before, after = (
        {**(config.input_features or {}), **(config.output_features or {})} for config in (old, new)
    )
    rows = [Transfer("language model, action expert", "all weights", "")]
    if new.uses_fourm:
        read, gone = new.tower_modalities, sorted(set(old.tower_modalities) - set(new.tower_modalities))
        left_out = f"without {', '.join(gone)}, which no view has" if gone else ""
        rows.append(Transfer("tower, fusion, connector", f"all weights of {', '.join(read)}", left_out))
    sizes = {"{2}x{1}".format(*after[key].shape) for key in new.rgb_keys if key in after}
    how = f"{new.image_size} pixels, square={new.square}" if new.uses_fourm else ""
    rows.append(Transfer("pictures", how, f"cameras of {', '.join(sorted(sizes))} pixels"))
    embedded = new.uses_fourm and new.view_embedding
    for view in new.views:
        turned = f"turned by {new.half_turns[view] * 180} degrees" if new.half_turns.get(view) else ""
        known = ["its embedding"] if embedded and view in old.views else []
        begun = "its embedding, at zero" if embedded and not known else ""
        if known or begun or turned:
            rows.append(Transfer(f"view {view}", ", ".join(filter(None, [*known, turned])), begun))
    for name, what in ((OBS_STATE, "state"), (ACTION, "action")):
        numbers = " -> ".join(str(f[name].shape[0] if name in f else 0) for f in (before, after))
        rows.append(Transfer(what, "projection", f"{numbers} numbers, ranges of the data set"))
    kinds = {"absolute": "goals", "delta": "displacements: 0 stands still, but for the gripper"}
    same = new.action_kind == old.action_kind
    said = f"{new.action_kind} ({kinds[new.action_kind]})"
    rows.append(Transfer("actions", said if same else "", "" if same else said))
    chunk = f"{new.chunk_size} steps of the data set, {new.n_action_steps} of them carried out"
    rows.append(Transfer("chunk", chunk, ""))
    rows.append(Transfer("guard, hold", "", "ranges of the data set"))
    rows.append(Transfer("health", "", "no statistics: multismolvla-health fit, after training"))
    return rows


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a finished export.

    Args:
        folder: what to upload.
        repo: hub id ``owner/name``; made where missing.
        private: visibility of a new repository.

    Returns:
        Address of the repository.

    Raises:
        ConnectionError: the hub is switched off, unreachable, or refuses; the export itself stays where it
            is.
    """
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    by_hand = f"The export is complete in {folder}. Later: `hf auth login`, then `hf upload {repo} {folder}`."
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"Not pushed to {repo}: the hub is switched off by HF_HUB_OFFLINE. {by_hand}")
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with multismolvla-export")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, httpx.HTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConnectionError(f"Not pushed to {repo}: {reason} {by_hand}") from error
    return str(url)


def encoder_domains(config: MultiSmolVLAConfig) -> list[str]:
    """Domains of the encoder that a policy was trained with; soft ones are in the policy's own checkpoint.

    Raises:
        ValueError: a policy without the 4M tower.
    """
    if not config.uses_fourm:
        raise ValueError(
            f"The policy has vision_tower={config.vision_tower!r} and no 4M encoder to slim down."
        )
    domains = [d for m in config.tower_modalities for d in split_domains(config.domains[m])]
    return [d for d in domains if not d.startswith(SOFT_PREFIX)]


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that takes its name when all went well, and vanishes otherwise.

    Raises:
        FileExistsError: ``output`` exists.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists. Name a new folder with --output, or remove it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        folder = Path(scratch) / output.name
        folder.mkdir()
        yield folder
        folder.replace(output)


def load_policy(
    checkpoint: Path, base: Path | None = None, config: MultiSmolVLAConfig | None = None
) -> MultiSmolVLAPolicy:
    """A policy with its adapters merged.

    Args:
        checkpoint: folder of the policy.
        base: as for `export_policy`.
        config: instead of the stored one.

    Raises:
        FileNotFoundError: no policy there, or the adapters' base is gone.
        ValueError: another policy type, or weights that do not fit.
    """
    config = config or read_policy_config(checkpoint)
    if not _is_adapter(checkpoint):
        return MultiSmolVLAPolicy.from_pretrained(checkpoint, config=config)
    adapter = PeftConfig.from_pretrained(str(checkpoint))
    below = base or Path(adapter.base_model_name_or_path or "")
    if not (below / "config.json").is_file():
        raise FileNotFoundError(
            f"The adapters in {checkpoint} need the checkpoint {str(below)!r}, which is not there. If it was "
            "moved, name its folder with --base."
        )
    policy = MultiSmolVLAPolicy.from_pretrained(below, config=config)
    merged = PeftModel.from_pretrained(policy, str(checkpoint), config=adapter).merge_and_unload()
    assert isinstance(merged, MultiSmolVLAPolicy)
    return merged


def read_policy_config(checkpoint: Path, overrides: Sequence[str] = ()) -> MultiSmolVLAConfig:
    """Configuration of the policy in a folder; ``overrides`` such as ``--device=cpu`` change it.

    Raises:
        FileNotFoundError: no policy there.
        ValueError: a policy of another type.
    """
    _read_config(checkpoint)
    config = PreTrainedConfig.from_pretrained(checkpoint, cli_overrides=list(overrides))
    if not isinstance(config, MultiSmolVLAConfig):
        raise ValueError(f"{checkpoint} holds a policy of type {config.type!r}; expected 'multismolvla'.")
    config.pretrained_path = checkpoint
    return config


def _read_config(checkpoint: Path) -> dict[str, Any]:
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint} has no config.json. Expected a policy's folder, e.g. "
            "…/checkpoints/last/pretrained_model."
        )
    return weights.read_json(checkpoint / "config.json")


def _is_adapter(checkpoint: Path) -> bool:
    return (checkpoint / _ADAPTER_CONFIG).is_file()


def _check_tower_is_official(checkpoint: Path) -> None:
    """What is merged into the tower would be lost: a checkpoint names the tower, and does not hold it.

    Raises:
        ValueError: there are adapters on the tower.
    """
    if not _is_adapter(checkpoint):
        return
    with safe_open(checkpoint / _ADAPTERS, framework="pt") as file:
        keys = [key.partition(FROZEN_PREFIX) for key in file.keys()]  # noqa: SIM118  (not a mapping)
    adapted = [where for _, found, where in keys if found and is_frozen_key(found + where)]
    if adapted:
        raise ValueError(
            f"{checkpoint} has adapters on the encoder ({adapted[0]}), and an export names its encoder by "
            "hash instead of holding it. Use the checkpoint as it is: LeRobot reads adapters, "
            "multismolvla-serve, too."
        )


def _write_licence_note(folder: Path, source_folder: Path, source: str) -> None:
    """Write what the licence asks for: a pointer to it, and the source's own file where there is one."""
    (folder / LICENCE_NOTE).write_text(
        f"The tensors in this folder are an unchanged part of {source}.\nLicence of {source}: "
        f"{licence_of(source)}.\nIt applies to this part as to the whole. Keep this note, and the licence's "
        "own text if it is here.\n"
    )
    for path in sorted(source_folder.iterdir()):
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
            shutil.copyfile(path, folder / path.name)
