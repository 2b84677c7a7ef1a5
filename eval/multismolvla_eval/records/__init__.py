"""Results on disk: rows, manifest, and the append-only store."""
