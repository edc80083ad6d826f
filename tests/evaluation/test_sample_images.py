"""The images that are drawn while a split is counted."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation.counter import Example
from kseg.evaluation.sample_images import SampleImages

PALETTE = ((10, 20, 30), (40, 50, 60))


def split_of(size):
    return SimpleNamespace(names=tuple(map(str, range(size))), dataset=SimpleNamespace(palette=PALETTE))


def example(index):
    return Example(
        tf.fill((2, 3, 3), tf.constant(index, tf.uint8)),
        tf.constant([[0, 1, 255]] * 2, tf.uint8),
        tf.constant([[1, 1, 0]] * 2, tf.uint8),
    )


def test_a_row_has_the_image_the_colors_of_its_label_and_of_its_prediction():
    samples = SampleImages(split_of(1), 4)
    samples.examine(0, example(7))
    [[image, label, prediction]] = samples.rows
    np.testing.assert_array_equal(image, np.full((2, 3, 3), 7))
    np.testing.assert_array_equal(label[0], [PALETTE[0], PALETTE[1], (0, 0, 0)])
    np.testing.assert_array_equal(prediction[1], [PALETTE[1], PALETTE[1], PALETTE[0]])


@pytest.mark.parametrize(
    ("size", "count", "interval", "expected"),
    [
        (16, 4, 1, [0, 5, 10, 15]),
        (3, 4, 1, [0, 1, 2]),
        (1, 1, 1, [0]),
        (16, 4, 2, [0, 4, 8, 14]),
        (3, 4, 2, [0, 2]),
        (2, 6, 8, [0]),
    ],
)
def test_images_are_spread_evenly(size, count, interval, expected):
    samples = SampleImages(split_of(size), count, interval)
    for index in range(size):
        samples.examine(index, example(index))
    assert [int(row[0][0, 0, 0]) for row in samples.rows] == expected
