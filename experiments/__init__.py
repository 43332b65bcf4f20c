"""Experiments: one file a claim of a paper, and the parts that they share."""
