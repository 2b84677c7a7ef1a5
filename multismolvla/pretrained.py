"""The published checkpoints that the package reads: where they are, how large, under which licence.

Data only, so that error messages, ``train.py --dry-run``, ``multismolvla-doctor`` and the documentation say
the same. None of it is shipped with the package, and nothing here imports PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOWER = "EPFL-VILAB/4M-21_B"
LANGUAGE_MODEL = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
IMAGEBIND = "nielsr/imagebind-huge"
#: The official tokenizers, by the names of ``policy.tokenizer_sources``.
TOKENIZER_SOURCES: dict[str, str] = {
    "depth": "EPFL-VILAB/4M_tokenizers_depth_8k_224-448",
    "seg": "EPFL-VILAB/4M_tokenizers_semseg_4k_224-448",
    "imagebind": "EPFL-VILAB/4M_tokenizers_ImageBind-H14_8k_224-448",
    "imagebind_global": "EPFL-VILAB/4M_tokenizers_ImageBind-H14-global_8k_16_224",
}
_TOKENIZER_OF_DOMAIN = {
    "tok_depth@224": "depth",
    "tok_semseg@224": "seg",
    "tok_imagebind@224": "imagebind",
    "tok_imagebind_global": "imagebind_global",
}
#: File beside a slim encoder: where its tensors come from, and under which licence.
SOURCE_FILE = "source.json"

_EPFL = (
    "Sample Code License 1.1 of EPFL and Apple: non-commercial use only, redistribution with the notice kept"
)
_META = "CC-BY-NC-SA 4.0 (README: CC-BY-NC 4.0): research, non-commercial use only"
_THERMALGEN = (
    "code MIT; weights: none stated beside it, read the model card (the training sets carry their own terms)"
)
_MASK2FORMER = "code MIT; weights: see the model card (most of the family: CC-BY-NC 4.0)"
#: Files of a network that is no more than its settings and weights.
MODEL_FILES = ("config.json", "model.safetensors")
_PICTURE_MODEL = ("config.json", "preprocessor_config.json", "model.safetensors")
_LANGUAGE_FILES = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json")


@dataclass(frozen=True)
class Source:
    """One published checkpoint.

    Attributes:
        repo: hub id.
        purpose: what the package uses it for.
        licence: of the weights, in one line.
        size_bytes: of all files that are fetched.
        known: how the size is known: ``listed`` (hub page, rounded), ``computed`` (from the official
            configuration) or ``estimated`` (from what is known of the model).
        files: names of the files that are read.
    """

    repo: str
    purpose: str
    licence: str
    size_bytes: int
    known: str = "listed"
    files: tuple[str, ...] = MODEL_FILES

    @property
    def url(self) -> str:
        """Page where the licence is read and accepted."""
        return f"https://huggingface.co/{self.repo}"

    @property
    def size(self) -> str:
        """The size in words, e.g. ``3.37 GB`` or ``99 MB (estimated)``."""
        size = size_in_words(self.size_bytes)
        return f"{size} (estimated)" if self.known == "estimated" else size


def size_in_words(size_bytes: int) -> str:
    """E.g. ``3.37 GB``, ``99 MB`` or ``84 kB``."""
    for unit, digits in ((1e9, 2), (1e6, 0)):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.{digits}f} {'GB' if digits else 'MB'}"
    return f"{size_bytes / 1e3:.0f} kB"


_SOURCES = (
    # 4M-21: four bytes times the elements of the official configuration
    # (tests/multismolvla/test_pretrained.py)
    Source("EPFL-VILAB/4M-21_B", "vision tower, size B", _EPFL, 3_370_521_600, "computed"),
    Source("EPFL-VILAB/4M-21_L", "vision tower, size L", _EPFL, 6_256_881_664, "computed"),
    Source("EPFL-VILAB/4M-21_XL", "vision tower, size XL", _EPFL, 18_159_689_728, "computed"),
    Source(TOKENIZER_SOURCES["depth"], "depth ids", _EPFL, 1_150_000_000),
    Source(TOKENIZER_SOURCES["seg"], "segmentation ids", _EPFL, 880_000_000),
    Source(TOKENIZER_SOURCES["imagebind"], "dense thermal ids", _EPFL, 732_000_000),
    Source(TOKENIZER_SOURCES["imagebind_global"], "global thermal ids", _EPFL, 464_000_000),
    Source(IMAGEBIND, "thermal routes (vision and thermal branch)", _META, 4_800_000_000),
    # ThermalGen: denoiser and both autoencoders in fp32
    Source("xjh19972/ThermalGen-XL-2", "thermal from RGB", _THERMALGEN, 4_409_908_592, "computed"),
    Source("xjh19972/ThermalGen-L-2", "thermal from RGB", _THERMALGEN, 3_205_910_384, "computed"),
    Source("xjh19972/ThermalGen-B-2", "thermal from RGB", _THERMALGEN, 1_388_917_616, "computed"),
    Source("lerobot/smolvla_base", "language model and expert", "Apache-2.0", 907_000_000, "estimated"),
    Source(
        repo=LANGUAGE_MODEL,
        purpose="configuration and processor of the language model "
        "(its weights come from the base checkpoint)",
        licence="Apache-2.0",
        size_bytes=5_000_000,
        known="estimated",
        files=_LANGUAGE_FILES,
    ),
    *(
        Source(
            repo=f"depth-anything/Depth-Anything-V2-{variant}{size}-hf",
            purpose="depth from RGB",
            licence=licence,
            size_bytes=size_bytes,
            known="estimated",
            files=_PICTURE_MODEL,
        )
        for variant in ("", "Metric-Indoor-", "Metric-Outdoor-")
        for size, licence, size_bytes in (
            ("Small", "Apache-2.0", 99_200_000),
            ("Base", "CC-BY-NC 4.0", 390_000_000),
            ("Large", "CC-BY-NC 4.0", 1_341_000_000),
        )
    ),
    Source(
        repo="facebook/mask2former-swin-base-coco-panoptic",
        purpose="segmentation from RGB",
        licence=_MASK2FORMER,
        size_bytes=430_000_000,
        known="estimated",
        files=_PICTURE_MODEL,
    ),
)
#: Hub id -> what is known of it.
SOURCES: dict[str, Source] = {source.repo: source for source in _SOURCES}


def is_hub_id(where: str) -> bool:
    """Whether a name has the form of a hub id ``owner/name`` and is no folder or file here."""
    local = where.startswith((".", "/", "~", "{")) or Path(where).exists()
    return where in SOURCES or (where.count("/") == 1 and not local)


def size_of(where: str) -> str:
    """Size of a checkpoint in words: hub id, or a local folder."""
    if where in SOURCES:
        return SOURCES[where].size
    found = bytes_of(where)
    return size_in_words(found) if found else "of a size unknown to this package"


def bytes_of(where: str | Path) -> int:
    """Size of a checkpoint's weights, hub id or local folder; 0 = unknown."""
    if where in SOURCES:
        return SOURCES[str(where)].size_bytes
    return sum(file.stat().st_size for file in Path(where).glob("*.safetensors"))


def licence_of(where: str) -> str:
    """Licence of a checkpoint in one line; for an unknown one, where to read it.

    Args:
        where: hub id, or a local folder; one made by ``multismolvla-export`` tells its licence itself.
    """
    if where in SOURCES:
        return SOURCES[where].licence
    if is_hub_id(where):
        return f"unknown to this package, read https://huggingface.co/{where}"
    source = Path(where) / SOURCE_FILE
    if source.is_file():
        return str(json.loads(source.read_text(encoding="utf-8")).get("licence"))
    return "unknown to this package: that of whatever lies in this folder"


def needed_to_act(policy: Mapping[str, Any]) -> dict[str, str]:
    """As `needed_by`, of a finished policy: what the base checkpoint gave is in its own weights."""
    return needed_by({**policy, "base_checkpoint": None})


def needed_by(policy: Mapping[str, Any]) -> dict[str, str]:
    """Where a policy's networks come from, as its configuration says.

    Args:
        policy: fields of the policy's configuration (``config.json``, or a preset's ``policy.*``); what is
            absent has the default of the policy.

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
    places: Mapping[str, str] = policy.get("estimator_sources") or {}
    for modality, recipe in (policy.get("estimators") or {}).items():
        add(places.get(modality, recipe["model"]), f"{modality} from RGB")
    if policy.get("tokenizers") != "official":
        return found
    domains: Mapping[str, str] = policy.get("domains") or {}
    sources = TOKENIZER_SOURCES | (policy.get("tokenizer_sources") or {})
    if "thermal" in domains:
        add(policy.get("imagebind") or IMAGEBIND, "thermal routes")
    for domain in [part for joined in domains.values() for part in joined.split("+")]:
        if domain in _TOKENIZER_OF_DOMAIN:
            name = _TOKENIZER_OF_DOMAIN[domain]
            add(sources[name], f"{name} ids")
    return found
