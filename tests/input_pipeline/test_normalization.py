"""The network's input for batches of bytes, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from kseg.input_pipeline.normalization import normalize_batch

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)


@pytest.mark.parametrize("color", ["mean", "black"])
def test_images_are_normalized_inside_their_place_and_padding_has_its_color(color):
    images = np.random.default_rng(1).integers(0, 256, (2, 5, 7, 3), np.uint8)
    places = [(0, 0, 3, 7), (1, 2, 5, 6)]
    expected = np.empty(images.shape)
    for image, row, (top, left, bottom, right) in zip(images, expected, places, strict=True):
        padding = np.ones((5, 7), bool)
        padding[top:bottom, left:right] = False
        image[padding] = 0
        row[:] = (image.astype(float) - MEAN) / STD
        if color == "mean":
            row[padding] = 0
    inputs = normalize_batch(tf.constant(images), tf.constant(places, tf.int32), MEAN, STD, color)
    assert inputs.dtype == tf.float32
    np.testing.assert_allclose(inputs, expected, rtol=1e-6, atol=1e-6)
