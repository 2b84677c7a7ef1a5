"""The published checkpoints that the package reads: where they are, how large, under which licence.

Data only, so that error messages, ``train.py --dry-run``, ``multismolvla-doctor`` and the README say the same. Nothing here
is shipped with the package, and nothing here imports PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

_EPFL = (
    "Sample Code License 1.1 of EPFL and Apple: non-commercial use only, redistribution with the notice kept"
)
_CC = "CC-BY-NC-SA 4.0 (README: CC-BY-NC 4.0): research, non-commercial use only"


@dataclass(frozen=True)
class Source:
    """One published checkpoint.

    Attributes:
        repo: hub id.
        purpose: what the package uses it for.
        licence: of the weights, in one line.
        size_bytes: of all files that are fetched.
        files: names of the files that are read.
        known: how the size is known: ``listed`` (hub page), ``computed`` (from the official configuration) or
            ``estimated``.
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


def _all() -> dict[str, Source]:
    tokenizer = "EPFL-VILAB/4M_tokenizers_"
    return {
        s.repo: s
        for s in (
            Source("EPFL-VILAB/4M-21_B", "vision tower, size B", _EPFL, 3_370_521_600),
            Source("EPFL-VILAB/4M-21_L", "vision tower, size L", _EPFL, 6_256_881_664),
            Source("EPFL-VILAB/4M-21_XL", "vision tower, size XL", _EPFL, 18_159_689_728),
            Source(f"{tokenizer}depth_8k_224-448", "depth ids", _EPFL, 1_150_000_000),
            Source(f"{tokenizer}semseg_4k_224-448", "segmentation ids", _EPFL, 879_670_000),
            Source(f"{tokenizer}ImageBind-H14_8k_224-448", "dense thermal ids", _EPFL, 732_200_000),
            Source(f"{tokenizer}ImageBind-H14-global_8k_16_224", "global thermal ids", _EPFL, 464_360_000),
            Source("nielsr/imagebind-huge", "thermal routes (vision and thermal branch)", _CC, 4_800_000_000),
            Source(
                "xjh19972/ThermalGen-XL-2",
                "thermal from RGB",
                "code MIT; weights: none stated beside it, read the model card (the training sets carry their own terms)",
                4_410_000_000,
                known="computed",
            ),
            Source(
                "xjh19972/ThermalGen-B-2",
                "thermal from RGB, small",
                "code MIT; weights: none stated beside it, read the model card (the training sets carry their own terms)",
                1_390_000_000,
                known="computed",
            ),
            Source(
                "lerobot/smolvla_base",
                "language model and action expert",
                "Apache-2.0",
                907_000_000,
                known="estimated",
            ),
            Source(
                "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
                "configuration and tokenizer of the language model",
                "Apache-2.0",
                2_030_000_000,
                known="estimated",
            ),
            Source(
                "depth-anything/Depth-Anything-V2-Small-hf",
                "depth from RGB",
                "Apache-2.0 (Base and Large: CC-BY-NC 4.0)",
                99_200_000,
                ("config.json", "preprocessor_config.json", "model.safetensors"),
                "estimated",
            ),
            Source(
                "facebook/mask2former-swin-base-coco-panoptic",
                "segmentation from RGB",
                "see the model card: Mask2Former code MIT, most weights CC-BY-NC 4.0",
                430_000_000,
                ("config.json", "preprocessor_config.json", "model.safetensors"),
                "estimated",
            ),
        )
    }


#: Hub id -> what is known of it.
SOURCES: dict[str, Source] = _all()


def licence_of(repo: str) -> str:
    """Licence of a published checkpoint in one line; for an unknown one, where to read it."""
    source = SOURCES.get(repo)
    return source.licence if source else f"unknown to this package, read https://huggingface.co/{repo}"
