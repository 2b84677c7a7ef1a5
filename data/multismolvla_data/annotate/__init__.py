"""``multismolvla-annotate``: the modalities that a data set lacks, estimated from RGB."""
