"""Make what was trained or downloaded fit to be given away: slim encoders, merged adapters, a model card, an upload.

The command is ``multismolvla-export`` (`multismolvla_run.export`); the work is here. Every export appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from peft import PeftConfig, PeftModel

from lerobot_policy_multismolvla.checkpoints import tensors_hash
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.model_card import encoder_card, policy_card
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from multismolvla import weights
from multismolvla.fourm import FourMEncoder
from multismolvla.fourm.soft import SOFT_PREFIX
from multismolvla.pretrained import PROVENANCE, is_hub_id, licence_of, needed_by
from multismolvla.tokenizers.recipe import split_domains

logger = logging.getLogger(__name__)

LICENCE_NOTE = "LICENCE-OF-THE-WEIGHTS.txt"
_ADAPTER_CONFIG = "adapter_config.json"
#: Written anew, or meaningless once the adapters are merged.
_NOT_COPIED = {_ADAPTER_CONFIG, "adapter_model.safetensors", "config.json", "model.safetensors", "README.md"}


def slim_encoder(
    source: str,
    modalities: Sequence[str],
    output: Path,
    *,
    revision: str | None = None,
    expected_hash: str | None = None,
) -> dict[str, Any]:
    """Write the few tensors of a 4M checkpoint that an encoder of some modalities needs, in the official layout.

    Values and dtype stay as they are, so that policies trained with the whole checkpoint accept the slim one.

    Args:
        source: folder in the official layout, or hub id.
        modalities: encoder domains to keep, e.g. ``["rgb@224", "tok_depth@224"]``.
        output: new folder.
        revision: commit, branch or tag on the hub.
        expected_hash: what the encoder must hash to (a policy's ``encoder_hash``); ``None`` = anything.

    Returns:
        What is written into ``provenance.json``: source, revision, modalities, ``encoder_hash``, licence.

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
                f"The encoder at {source!r} with {list(modalities)} hashes to {found[:12]}…, but the policy was trained with "
                f"{str(expected_hash)[:12]}…. Name the original encoder with --encoder and --revision."
            )
        encoder.save_pretrained(folder)
        if tensors_hash(FourMEncoder.from_pretrained(folder, modalities)) != found:
            raise OSError(f"{output}: what was written differs from what was read. Is the disk in order?")
        provenance = {
            "source": source,
            "revision": _commit_of(config_file) or revision,
            "modalities": list(modalities),
            "encoder_hash": found,
            "licence": licence_of(source),
            "made_by": f"multismolvla-export {metadata.version('lerobot_policy_multismolvla')}",
        }
        (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
        _write_licence_note(folder, config_file.parent, source)
        (folder / "README.md").write_text(encoder_card(provenance))
    return provenance


def export_policy(checkpoint: Path, output: Path, *, base: Path | None = None) -> Path:
    """Write a checkpoint that stands alone: adapters merged, processors and model card beside it.

    Args:
        checkpoint: folder of a policy (``…/pretrained_model``), with adapters or without.
        output: new folder.
        base: the checkpoint that the adapters stand on, if it is no longer where they say.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: no policy there, or the adapters' base is gone.
        FileExistsError: ``output`` exists.
        ValueError: another policy type, or weights that do not fit.
    """
    values = _read_config(checkpoint)
    with new_folder(output) as folder:
        policy = _load(checkpoint, base)
        policy.save_pretrained(folder)
        # The policy's own configuration as it was, not as this machine understood it (device).
        values["use_peft"] = False
        (folder / "config.json").write_text(json.dumps(values, indent=4) + "\n")
        for path in sorted(checkpoint.iterdir()):
            if path.is_file() and path.name not in _NOT_COPIED:
                shutil.copyfile(path, folder / path.name)
        train = checkpoint / "train_config.json"
        training = json.loads(train.read_text()) if train.is_file() else None
        (folder / "README.md").write_text(policy_card(values, training, merged=_is_adapter(checkpoint)))
    local = [where for where in needed_by(values | {"base_checkpoint": None}) if not is_hub_id(where)]
    if local:
        logger.warning(
            "The policy reads networks from folders of this machine, which others do not have: %s. Name hub repositories in "
            "config.json before you give it away.", ", ".join(local),
        )  # fmt: skip
    return output


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a finished export.

    Args:
        folder: what to upload.
        repo: hub id ``owner/name``; made where missing.
        private: visibility of a new repository.

    Returns:
        Address of the repository.

    Raises:
        ConnectionError: the hub is switched off, unreachable, or refuses; the export itself stays where it is.
    """
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    by_hand = (
        f"The export lies complete in {folder}. Later: `hf auth login`, then `hf upload {repo} {folder}`."
    )
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


def policy_encoder(checkpoint: Path) -> dict[str, Any]:
    """The encoder that a policy was trained with: ``encoder``, ``revision``, ``modalities``, ``encoder_hash``.

    Raises:
        FileNotFoundError: no policy there.
        ValueError: a policy without the 4M tower.
    """
    config = _config(checkpoint)
    if not config.uses_fourm:
        raise ValueError(
            f"{checkpoint} has vision_tower={config.vision_tower!r} and no 4M encoder to slim down."
        )
    domains = [d for m in config.tower_modalities for d in split_domains(config.domains[m])]
    return {
        "encoder": config.encoder,
        "revision": config.encoder_revision,
        # soft modalities are the policy's own and lie in its checkpoint
        "modalities": [d for d in domains if not d.startswith(SOFT_PREFIX)],
        "encoder_hash": config.encoder_hash,
    }


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


def _load(checkpoint: Path, base: Path | None) -> MultiSmolVLAPolicy:
    config = _config(checkpoint)
    if not _is_adapter(checkpoint):
        return MultiSmolVLAPolicy.from_pretrained(checkpoint, config=config)
    adapter = PeftConfig.from_pretrained(str(checkpoint))
    below = base or Path(adapter.base_model_name_or_path or "")
    if not (below / "config.json").is_file():
        raise FileNotFoundError(
            f"The adapters in {checkpoint} stand on the checkpoint {str(below)!r}, which is not there. If it was moved, name its "
            "folder with --base."
        )
    policy = MultiSmolVLAPolicy.from_pretrained(below, config=config)
    merged = PeftModel.from_pretrained(policy, str(checkpoint), config=adapter).merge_and_unload()
    assert isinstance(merged, MultiSmolVLAPolicy)
    return merged


def _config(checkpoint: Path) -> MultiSmolVLAConfig:
    _read_config(checkpoint)
    config = PreTrainedConfig.from_pretrained(checkpoint)
    if not isinstance(config, MultiSmolVLAConfig):
        raise ValueError(f"{checkpoint} holds a policy of type {config.type!r}; expected 'multismolvla'.")
    return config


def _read_config(checkpoint: Path) -> dict[str, Any]:
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint} has no config.json. Expected a policy's folder, e.g. …/checkpoints/last/pretrained_model."
        )
    return weights.read_json(checkpoint / "config.json")


def _is_adapter(checkpoint: Path) -> bool:
    return (checkpoint / _ADAPTER_CONFIG).is_file()


def _commit_of(path: Path) -> str | None:
    """Commit of a file in the hub cache (``…/snapshots/<commit>/<file>``); ``None`` elsewhere."""
    return path.parent.name if path.parent.parent.name == "snapshots" else None


def _write_licence_note(folder: Path, source_folder: Path, source: str) -> None:
    """The licence asks that its notice goes with the weights: the source's own file where there is one, and a pointer."""
    (folder / LICENCE_NOTE).write_text(
        f"The tensors in this folder are an unchanged part of {source}.\nLicence of {source}: {licence_of(source)}.\n"
        "It applies to this part as to the whole. Keep this note, and the licence's own text where it lies beside it.\n"
    )
    for path in sorted(source_folder.iterdir()):
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
            shutil.copyfile(path, folder / path.name)
