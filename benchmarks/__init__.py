"""Measure kseg beside named peers; run as `python -m benchmarks.NAME`."""
