"""Measure predictions against ground truth, compare evaluations and report them."""
