"""A tiny SmolVLM folder: configuration, byte-level tokenizer and processor, no weights.

Stands in for ``HuggingFaceTB/SmolVLM2-500M-Video-Instruct`` in the mini preset and in tests, so that every path which
reads "the language model's folder" runs offline on a CPU. It is built, not committed: 264 vocabulary entries (256 bytes
and 8 special tokens), under 10 KB, loadable by transformers 5.x as the official folder is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<end_of_utterance>",
    "<video>",
)


@dataclass(frozen=True)
class TinyVLMConfig:
    """Sizes of the tiny language model and vision tower.

    Attributes:
        text_width: hidden size of the language model.
        text_layers: number of its layers (SmolVLA uses all of them here).
        text_heads: attention heads; head size = text_width / text_heads.
        text_kv_heads: key/value heads.
        text_mlp: hidden size of the language model's MLP.
        vision_width: hidden size of the SigLIP tower.
        vision_layers: its layers.
        vision_heads: its heads.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        scale_factor: pixel-shuffle factor of SmolVLM's connector; tokens per view = (image/patch/scale)^2.
    """

    text_width: int = 96
    text_layers: int = 4
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp: int = 256
    vision_width: int = 64
    vision_layers: int = 3
    vision_heads: int = 4
    image_size: int = 64
    patch_size: int = 8
    scale_factor: int = 2


def build_tiny_vlm(folder: Path, sizes: TinyVLMConfig | None = None) -> Path:
    """Write a tiny SmolVLM folder (no weights).

    Args:
        folder: created if absent; existing files of the same names are replaced.
        sizes: model sizes, default ``TinyVLMConfig()``.

    Returns:
        ``folder``, to be passed as ``--policy.vlm_model_name``.
    """
    from transformers import (
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    sizes = sizes or TinyVLMConfig()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_tokenizer(folder)
    vocab = len(tokenizer)
    head = sizes.text_width // sizes.text_heads
    SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": sizes.text_width,
            "intermediate_size": sizes.text_mlp,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_heads,
            "num_key_value_heads": sizes.text_kv_heads,
            "head_dim": head,
            "vocab_size": vocab,
            "max_position_embeddings": 1024,
            "initializer_range": 0.1,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": sizes.vision_width,
            "intermediate_size": 4 * sizes.vision_width,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_heads,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
        },
        scale_factor=sizes.scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    side = {"longest_edge": sizes.image_size}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=side, max_image_size=side),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size=side, max_image_size=side),
        image_seq_len=(sizes.image_size // sizes.patch_size // sizes.scale_factor) ** 2,
    ).save_pretrained(folder)
    return folder


def _byte_tokenizer(folder: Path):
    """A byte-level BPE tokenizer without merges, written to and read back from ``folder``."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(ByteLevel.alphabet())
    vocab = {tok: i for i, tok in enumerate((*_SPECIAL_TOKENS, *symbols))}
    definition: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, t in enumerate(_SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": []},
    }  # fmt: skip
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(definition, ensure_ascii=False))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
            "video_token": "<video>",
        },
    )
