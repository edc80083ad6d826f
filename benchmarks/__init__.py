"""Measure kseg and other systems; run as `python -m benchmarks.NAME`."""
