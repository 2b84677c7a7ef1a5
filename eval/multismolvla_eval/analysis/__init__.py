"""From rows to figures: table, statistics, summary, comparison of two runs."""
