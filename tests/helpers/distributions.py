"""Sample functions of a seed, compare samples, and plant mistakes in the draws."""

import numpy as np
import tensorflow as tf

from kseg.input_pipeline import augmentations

COUNT = 3000


def samples(function, count=COUNT):
    """Return the results of a function for many seeds, as arrays."""
    seeds = tf.data.Dataset.range(count).map(lambda index: tf.stack([11, tf.cast(index, tf.int32)]))
    # AutoGraph's conversion would take longer than all samples.
    function = tf.autograph.experimental.do_not_convert(function)
    batches = seeds.map(function, num_parallel_calls=2, deterministic=True).batch(count)
    (found,) = batches.as_numpy_iterator()
    return found


def distance(first, second, slack=0):
    """Return the Kolmogorov-Smirnov distance of two samples.

    Values that differ by at most `slack` count as equal, as in the Levy distance.
    """
    first, second = np.sort(np.ravel(first)), np.sort(np.ravel(second))

    def beyond(low, high):
        return (
            np.searchsorted(low, low, "right") / len(low) - np.searchsorted(high, low + slack, "right") / len(high)
        ).max()

    return max(beyond(first, second), beyond(second, first))


def plant(monkeypatch, purpose, change):
    """Replace the draws of one purpose by change(draw, low, high)."""
    original = augmentations.uniform

    def drawn(seed, drawn_purpose, low=0.0, high=1.0, shape=()):
        if drawn_purpose != purpose:
            return original(seed, drawn_purpose, low, high, shape)
        return change(lambda low, high: original(seed, drawn_purpose, low, high, shape), low, high)

    monkeypatch.setattr(augmentations, "uniform", drawn)


def ranged(low, high):
    return lambda draw, *_: draw(low, high)


def constant(value):
    return lambda draw, *_: tf.constant(value, tf.float32)
