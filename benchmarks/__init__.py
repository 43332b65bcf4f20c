"""Ratios within one run: `python -m benchmarks.NAME`."""
