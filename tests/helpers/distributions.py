"""Samples of what a seed decides, their distance, and mistakes planted in the draws."""

import numpy as np
import tensorflow as tf

from kseg.input_pipeline import augmentations

COUNT = 3000


def samples(function, count=COUNT):
    """What a function of a seed returns for many seeds, as arrays."""
    seeds = tf.data.Dataset.range(count).map(lambda index: tf.stack([11, tf.cast(index, tf.int32)]))
    batches = seeds.map(function, num_parallel_calls=2, deterministic=True).batch(count)
    (found,) = batches.as_numpy_iterator()
    return found


def distance(first, second, slack=0):
    """Kolmogorov and Smirnov's: the largest difference of two samples' cumulative distributions.

    Values that differ by no more than `slack` count as equal, as in Levy's distance.
    """
    first, second = np.sort(np.ravel(first)), np.sort(np.ravel(second))

    def beyond(low, high):
        return (np.searchsorted(low, low, "right") / len(low)
                - np.searchsorted(high, low + slack, "right") / len(high)).max()

    return max(beyond(first, second), beyond(second, first))


def plant(monkeypatch, purpose, change):
    """Change what one purpose draws: change(draw, low, high)."""
    honest = augmentations.uniform

    def drawn(seed, asked, low=0.0, high=1.0, shape=()):
        if asked != purpose:
            return honest(seed, asked, low, high, shape)
        return change(lambda low, high: honest(seed, asked, low, high, shape), low, high)

    monkeypatch.setattr(augmentations, "uniform", drawn)


def ranged(low, high):
    return lambda draw, *_: draw(low, high)


def constant(value):
    return lambda draw, *_: tf.constant(value, tf.float32)
