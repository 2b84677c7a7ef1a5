"""The encoder half of 4M-21: embeddings, transformer, official checkpoints; no decoder, no tokenizers."""

from multismolvla.fourm.config import FourMConfig
from multismolvla.fourm.encoder import FourMEncoder
from multismolvla.fourm.modality import MINI_DOMAINS, MINI_INFO, MODALITY_INFO, FourMModality, small_domains

__all__ = [
    "MINI_DOMAINS",
    "MINI_INFO",
    "MODALITY_INFO",
    "FourMConfig",
    "FourMEncoder",
    "FourMModality",
    "small_domains",
]
