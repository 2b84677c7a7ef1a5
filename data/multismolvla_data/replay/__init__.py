"""``multismolvla-replay``: LIBERO's published demonstrations, rendered anew with all modalities."""
