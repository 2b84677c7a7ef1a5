"""The encoder half of 4M-21: embeddings, transformer, official checkpoints. No decoder, no sampler, no tokenizers."""

from multismolvla.fourm.config import FourMConfig
from multismolvla.fourm.encoder import EncodedRows, FourMEncoder
from multismolvla.fourm.modality import MINI_DOMAINS, MODALITY_INFO, FourMModality

__all__ = ["MINI_DOMAINS", "MODALITY_INFO", "EncodedRows", "FourMConfig", "FourMEncoder", "FourMModality"]
