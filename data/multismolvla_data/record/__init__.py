"""``multismolvla-record``: scripted demonstrations with all modalities."""
