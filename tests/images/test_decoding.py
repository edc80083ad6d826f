"""Parts of pictures against the same parts of whole ones, and palettes against Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.images import decoding

RANDOM = np.random.default_rng(0)
PICTURE = np.asarray(Image.fromarray(RANDOM.integers(0, 256, (9, 13, 3)).astype(np.uint8)).resize((211, 150)))


def encoded(array, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=form, **options)
    return file.getvalue()


KINDS = {
    "jpeg 4:4:4": encoded(PICTURE, "JPEG", quality=95, subsampling=0),
    "jpeg 4:2:2": encoded(PICTURE, "JPEG", quality=80, subsampling=1),
    "jpeg 4:2:0": encoded(PICTURE, "JPEG", quality=80, subsampling=2),
    "jpeg progressive": encoded(PICTURE, "JPEG", quality=80, progressive=True),
    "jpeg grey": encoded(PICTURE[..., 0], "JPEG"),
    "png": encoded(PICTURE), "png grey": encoded(PICTURE[..., 0]),
    "bmp": encoded(PICTURE, "BMP"), "pixels": decoding.encode_pixels(PICTURE)}
WINDOWS = [(0, 0, 150, 211), (0, 0, 1, 1), (149, 210, 150, 211), (17, 33, 80, 100), (40, 0, 41, 211),
           (3, 190, 150, 200)]


@pytest.mark.parametrize("shorten", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_that_part_of_the_whole(kind, shorten):
    data = tf.constant(KINDS[kind])
    whole = decoding.decode_image(data).numpy()
    assert whole.shape == (150, 211, 3)
    size = tf.constant([150, 211])
    part = tf.function(lambda window: decoding.decode_window(data, size, tf.unstack(window), shorten))
    for top, left, bottom, right in WINDOWS:
        found = part(tf.constant([top, left, bottom, right])).numpy()
        assert found.dtype == np.uint8 and np.array_equal(found, whole[top:bottom, left:right])


@pytest.mark.parametrize("shorten", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(150, 210), (149, 211), (151, 211), (100, 100)])
def test_another_size_than_the_labels_fails(kind, shorten, size):
    with pytest.raises(tf.errors.InvalidArgumentError, match="image and label differ in size"):
        decoding.decode_window(tf.constant(KINDS[kind]), tf.constant(size), (0, 0, 100, 100), shorten)


@pytest.mark.parametrize("shorten", [True, False])
def test_damage_fails(shorten):
    data = bytearray(KINDS["png"])
    data[len(data) // 2] ^= 1
    for damaged in (bytes(data), KINDS["png"][:-60], KINDS["jpeg 4:2:0"][:300], b"P6\n", b""):
        with pytest.raises(tf.errors.OpError):
            decoding.decode_window(tf.constant(damaged), tf.constant([150, 211]), (0, 0, 150, 211), shorten)


def test_pixels_are_a_file_that_others_read():
    for array in (PICTURE, PICTURE[..., 1], PICTURE[:1, :1]):
        data = decoding.encode_pixels(array)
        assert np.array_equal(Image.open(io.BytesIO(data)), array)
        decode = decoding.decode_image if array.ndim == 3 else decoding.decode_label
        assert np.array_equal(decode(tf.constant(data)), array)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 8, 33])
@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"dpi": (72, 72), "gamma": 0.5}])
def test_indices_of_any_palette(bits, width, options):
    indices = RANDOM.integers(0, 2 ** bits, (5, width)).astype(np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(RANDOM.integers(0, 256, 3 * 2 ** bits).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", bits=bits, **options)
    assert file.getvalue()[decoding.DEPTH] == bits and file.getvalue()[decoding.KIND] == decoding.PALETTE
    assert np.array_equal(decoding.decode_label(tf.constant(file.getvalue())), indices)
