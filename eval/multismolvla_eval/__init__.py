"""Evaluation of MultiSmolVLA: conditions, paired runs, statistics, report."""
