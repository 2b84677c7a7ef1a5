"""Model cards (README.md of an export): what it is, what it needs, licences, how it was made and is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multismolvla.pretrained import licence_of, needed_to_act
from multismolvla.system.files import front_matter

#: Settings of the training run that a reader of the card wants first.
_TRAINING = ("steps", "batch_size", "seed", "dataset", "peft")


@dataclass(frozen=True)
class SlimEncoder:
    """What a slim encoder is a part of.

    Attributes:
        source: folder or hub id of the whole.
        revision: its commit, as far as known.
        modalities: encoder domains that were kept.
        encoder_hash: of the tensors, the same as that of the whole with these domains.
        licence: of the whole, in one line.
        made_by: command and version.
    """

    source: str
    revision: str | None
    modalities: tuple[str, ...]
    encoder_hash: str
    licence: str
    made_by: str


def policy_card(policy: Mapping[str, Any], training: Mapping[str, Any] | None, *, merged: bool) -> str:
    """README.md of an exported policy.

    Args:
        policy: content of its ``config.json``.
        training: content of its ``train_config.json``, if known.
        merged: whether adapters were merged into the weights.
    """
    front = {
        "license": policy.get("license") or "other",
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["lerobot", "robotics", "multismolvla", "multimodal"],
    }
    lines = [
        *front_matter(front),
        "# MultiSmolVLA policy",
        "",
        "A SmolVLA whose vision tower is the multimodal encoder 4M-21. A sensor that is absent or fails is "
        "masked.",
        "Adapters of stage 2 are merged into these weights." if merged else "",
        "",
        "## Inputs",
        "",
        "| view | modality | key |",
        "|---|---|---|",
        *(f"| {v} | {m} | `{k}` |" for v, streams in policy["views"].items() for m, k in streams.items()),
        "",
        "## Licences",
        "",
        "The frozen networks are not in this repository. They are fetched from where the configuration "
        "says, each",
        "under its own licence; one that forbids commercial use binds this policy, too.",
        "",
        "| weights | used as | licence |",
        "|---|---|---|",
        *(
            f"| {where} | {purpose} | {licence_of(where)} |"
            for where, purpose in needed_to_act(policy).items()
        ),
        "",
    ]
    if policy.get("encoder"):
        lines += [f"The encoder must hash to `{policy.get('encoder_hash')}`; another one is refused.", ""]
    lines += [
        "## Run it",
        "",
        "```bash",
        "pip install lerobot_policy_multismolvla   # LeRobot finds the plugin by itself",
        "lerobot-rollout --policy.path=THIS_REPOSITORY ...",
        "lerobot-eval --policy.path=THIS_REPOSITORY --env.type=multismolvla_libero ...",
        "```",
        "",
    ]
    if training is not None:
        shown = {name: training[name] for name in _TRAINING if training.get(name) is not None}
        lines += [
            "## Training",
            "",
            f"Stage `{policy.get('stage')}`; all settings are in `train_config.json` "
            "(`lerobot-train --config_path=train_config.json`).",
            "",
            *_json_block(shown),
            "",
        ]
    lines += ["## Configuration", "", *_json_block(policy)]
    return "\n".join(lines) + "\n"


def encoder_card(made: SlimEncoder) -> str:
    """README.md of a slim encoder."""
    lines = [
        *front_matter({"license": "other", "tags": ["4m-21", "encoder"]}),
        "# 4M-21 encoder, slim",
        "",
        f"An unchanged part of `{made.source}` (revision {made.revision or 'unknown'}): the encoder with the "
        "embeddings of these modalities, in the official layout.",
        "",
        *(f"- `{name}`" for name in made.modalities),
        "",
        f"Licence: {made.licence}.",
        "",
        "Use it in place of the whole checkpoint: `--policy.encoder=THIS_FOLDER`. Its tensors hash to "
        f"`{made.encoder_hash}`, as those of the whole one do.",
    ]
    return "\n".join(lines) + "\n"


def _json_block(values: Mapping[str, object]) -> list[str]:
    return ["```json", json.dumps(values, indent=2), "```"]
