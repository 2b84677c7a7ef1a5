"""Image-like modalities to 4M token ids.

`ImageTokenizer` is the interface; `weight_free` holds the stand-ins of the mini preset, which need no trained
weights and are *not* 4M's tokenizers. The official VQ tokenizers come behind the same interface.
"""

from multismolvla.tokenizers.factory import make_tokenizers
from multismolvla.tokenizers.interface import ImageTokenizer, StreamTokenizer, Tokens
from multismolvla.tokenizers.recipe import TOKENIZER_FAMILIES, OfficialOptions
from multismolvla.tokenizers.weight_free import (
    DominantSegTokenizer,
    PatchDepthTokenizer,
    QuadrantSegTokenizer,
    ThermalGridTokenizer,
    WeightFreeTokenizer,
    seg_tokenizer,
    structured_token_embedding,
)

__all__ = [
    "TOKENIZER_FAMILIES",
    "DominantSegTokenizer",
    "ImageTokenizer",
    "OfficialOptions",
    "PatchDepthTokenizer",
    "QuadrantSegTokenizer",
    "StreamTokenizer",
    "ThermalGridTokenizer",
    "Tokens",
    "WeightFreeTokenizer",
    "make_tokenizers",
    "seg_tokenizer",
    "structured_token_embedding",
]
