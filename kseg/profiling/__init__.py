"""Measure where time and memory go in a training step, the input pipeline and a model."""
