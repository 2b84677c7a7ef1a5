"""A tiny SmolVLM folder: configuration, byte-level tokenizer and processor, no weights.

Stands in for ``HuggingFaceTB/SmolVLM2-500M-Video-Instruct`` in the presets that start from nothing and in
tests. It is built, not committed: 264 vocabulary entries (256 bytes and 8 special tokens) and, if wanted,
words of the instructions; loadable by transformers as the official one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    """Sizes of the tiny language model (``text_``) and SigLIP (``vision_``); widths are hidden sizes."""

    text_width: int = 96
    text_layers: int = 4
    text_heads: int = 4
    text_kv_heads: int = 2
    text_mlp: int = 256
    vision_width: int = 64
    vision_layers: int = 3
    vision_heads: int = 4
    image_size: int = 64  # pixels
    patch_size: int = 8
    scale_factor: int = 2  # pixel-shuffle of SmolVLM's connector; tokens per view = (image / patch / scale)^2


def build_tiny_vlm(folder: Path, sizes: TinyVLMConfig | None = None, texts: Sequence[str] = ()) -> Path:
    """Write a tiny SmolVLM folder; returns it, to be passed as ``--policy.vlm_model_name``.

    Args:
        folder: where to.
        sizes: of the networks.
        texts: each of their words becomes one token; all else is read byte by byte. A small language model
            tells ten objects apart by one token each, not by the order of fifty bytes.
    """
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    sizes = sizes or TinyVLMConfig()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_tokenizer(texts)
    SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": sizes.text_width,
            "intermediate_size": sizes.text_mlp,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_heads,
            "num_key_value_heads": sizes.text_kv_heads,
            "head_dim": sizes.text_width // sizes.text_heads,
            "vocab_size": len(tokenizer),
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


def _byte_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, with the merges that make one token of every word of ``texts``."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    symbols = [*_SPECIAL_TOKENS, *sorted(ByteLevel.alphabet())]
    merges = _merges(texts)
    symbols += [left + right for left, right in merges]
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL_TOKENS])
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=bool(texts)), ByteDecoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
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


def _merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that build every word from left to right; words that begin alike share theirs.

    With its space each word begins with the same symbol, and only there: no merge can begin inside a word.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    split = ByteLevel(add_prefix_space=True)
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    pairs = {(word[:end], word[end]): None for word in words for end in range(1, len(word))}
    return sorted(pairs, key=lambda pair: len(pair[0]))
