"""The published checkpoints that the package reads: where they are, how large, under which licence.

Data only, so that error messages, ``train.py --dry-run``, ``multismolvla-doctor`` and the README say the same. Nothing here
is shipped with the package, and nothing here imports PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EPFL = (
    "Sample Code License 1.1 of EPFL and Apple: non-commercial use only, redistribution with the notice kept"
)
_CC = "CC-BY-NC-SA 4.0 (README: CC-BY-NC 4.0): research, non-commercial use only"


IMAGEBIND = "nielsr/imagebind-huge"
#: Beside a slim encoder: where its tensors come from, and under which licence.
PROVENANCE = "provenance.json"
LANGUAGE_MODEL = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
TOWER = "EPFL-VILAB/4M-21_B"

#: Encoder domain -> (name in ``policy.tokenizer_sources``, hub id of its tokenizer).
_TOKENIZERS = {
    "tok_depth@224": ("depth", "EPFL-VILAB/4M_tokenizers_depth_8k_224-448"),
    "tok_semseg@224": ("seg", "EPFL-VILAB/4M_tokenizers_semseg_4k_224-448"),
    "tok_imagebind@224": ("imagebind", "EPFL-VILAB/4M_tokenizers_ImageBind-H14_8k_224-448"),
    "tok_imagebind_global": (
        "imagebind_global",
        "EPFL-VILAB/4M_tokenizers_ImageBind-H14-global_8k_16_224",
    ),
}


@dataclass(frozen=True)
class Source:
    """One published checkpoint.

    Attributes:
        repo: hub id.
        purpose: what the package uses it for.
        licence: of the weights, in one line.
        size_bytes: of all files that are fetched.
        files: names of the files that are read.
        known: how the size is known: ``listed`` (hub page, rounded), ``computed`` (from the official configuration) or
            ``estimated`` (from what is known of the model).
    """

    repo: str
    purpose: str
    licence: str
    size_bytes: int
    files: tuple[str, ...] = ("config.json", "model.safetensors")
    known: str = "listed"

    @property
    def url(self) -> str:
        """Page where the licence is read and accepted."""
        return f"https://huggingface.co/{self.repo}"

    @property
    def size(self) -> str:
        """The size in words, e.g. ``3.37 GB`` or ``99 MB (estimated)``."""
        size = (
            f"{self.size_bytes / 1e9:.2f} GB" if self.size_bytes >= 1e9 else f"{self.size_bytes / 1e6:.0f} MB"
        )
        return f"{size} (estimated)" if self.known == "estimated" else size


def _all() -> dict[str, Source]:
    tokenizer = "EPFL-VILAB/4M_tokenizers_"
    thermalgen = "code MIT; weights: none stated beside it, read the model card (the training sets carry their own terms)"
    hf_model = ("config.json", "preprocessor_config.json", "model.safetensors")
    found = (
        # 4M-21: four bytes times the elements of the official configuration (tests/multismolvla/test_sources.py)
        Source("EPFL-VILAB/4M-21_B", "vision tower, size B", _EPFL, 3_370_521_600, known="computed"),
        Source("EPFL-VILAB/4M-21_L", "vision tower, size L", _EPFL, 6_256_881_664, known="computed"),
        Source("EPFL-VILAB/4M-21_XL", "vision tower, size XL", _EPFL, 18_159_689_728, known="computed"),
        Source(f"{tokenizer}depth_8k_224-448", "depth ids", _EPFL, 1_150_000_000),
        Source(f"{tokenizer}semseg_4k_224-448", "segmentation ids", _EPFL, 880_000_000),
        Source(f"{tokenizer}ImageBind-H14_8k_224-448", "dense thermal ids", _EPFL, 732_000_000),
        Source(f"{tokenizer}ImageBind-H14-global_8k_16_224", "global thermal ids", _EPFL, 464_000_000),
        Source(IMAGEBIND, "thermal routes (vision and thermal branch)", _CC, 4_800_000_000),
        # ThermalGen: denoiser and both autoencoders in fp32
        Source("xjh19972/ThermalGen-XL-2", "thermal from RGB", thermalgen, 4_409_908_592, known="computed"),
        Source("xjh19972/ThermalGen-L-2", "thermal from RGB", thermalgen, 3_205_910_384, known="computed"),
        Source("xjh19972/ThermalGen-B-2", "thermal from RGB", thermalgen, 1_388_917_616, known="computed"),
        Source(
            "lerobot/smolvla_base", "language model and expert", "Apache-2.0", 907_000_000, known="estimated"
        ),
        Source(
            LANGUAGE_MODEL,
            "configuration and processor of the language model (its weights come from the base checkpoint)",
            "Apache-2.0",
            5_000_000,
            ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json"),
            "estimated",
        ),
        Source(
            "depth-anything/Depth-Anything-V2-Small-hf",
            "depth from RGB",
            "Apache-2.0 (Base and Large: CC-BY-NC 4.0)",
            99_200_000,
            hf_model,
            "estimated",
        ),
        Source(
            "facebook/mask2former-swin-base-coco-panoptic",
            "segmentation from RGB",
            "code MIT; weights: see the model card (most of the family: CC-BY-NC 4.0)",
            430_000_000,
            hf_model,
            "estimated",
        ),
    )
    return {source.repo: source for source in found}


#: Hub id -> what is known of it.
SOURCES: dict[str, Source] = _all()


def is_hub_id(where: str) -> bool:
    """Whether a name has the form of a hub id ``owner/name`` and is no folder or file here."""
    return where in SOURCES or (
        where.count("/") == 1 and not where.startswith((".", "/", "~", "{")) and not Path(where).exists()
    )


def licence_of(where: str) -> str:
    """Licence of a checkpoint in one line; for an unknown one, where to read it.

    Args:
        where: hub id, or a local folder; one made by ``multismolvla-export`` tells its licence itself.
    """
    if where in SOURCES:
        return SOURCES[where].licence
    if is_hub_id(where):
        return f"unknown to this package, read https://huggingface.co/{where}"
    provenance = Path(where) / PROVENANCE
    if provenance.is_file():
        return str(json.loads(provenance.read_text(encoding="utf-8")).get("licence"))
    return "unknown to this package: that of whatever lies in this folder"


def needed_by(policy: Mapping[str, Any]) -> dict[str, str]:
    """Where a policy's networks come from, as its configuration says.

    Args:
        policy: fields of the policy's configuration (``config.json``, or a preset's ``policy.*``); what is absent has the
            default of the policy.

    Returns:
        Hub id, folder or file -> what it is for, in the order in which they are read.
    """
    found: dict[str, str] = {}

    def add(where: str | None, purpose: str) -> None:
        if where:
            found.setdefault(where, SOURCES[where].purpose if where in SOURCES else purpose)

    add(policy.get("base_checkpoint"), "base checkpoint")
    add(policy.get("vlm_model_name", LANGUAGE_MODEL), "configuration and processor of the language model")
    if "fourm" not in policy.get("vision_tower", "fourm"):
        return found
    add(policy.get("encoder", TOWER), "vision tower")
    if policy.get("tokenizers") != "official":
        return found
    domains: Mapping[str, str] = policy.get("domains") or {}
    named: Mapping[str, str] = policy.get("tokenizer_sources") or {}
    if "thermal" in domains:
        add(policy.get("imagebind") or IMAGEBIND, "thermal routes")
    for domain in [part for joined in domains.values() for part in joined.split("+")]:
        if domain in _TOKENIZERS:
            name, repo = _TOKENIZERS[domain]
            add(named.get(name, repo), f"{name} ids")
    return found
