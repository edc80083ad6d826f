"""Windows must equal the same part of the whole image, and palette indices those that Pillow reads."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.images import decoding

RANDOM = np.random.default_rng(0)
IMAGE = np.asarray(Image.fromarray(RANDOM.integers(0, 256, (9, 13, 3)).astype(np.uint8)).resize((211, 150)))


def encoded(array, file_format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=file_format, **options)
    return file.getvalue()


ENCODINGS = {
    "jpeg 4:4:4": encoded(IMAGE, "JPEG", quality=95, subsampling=0),
    "jpeg 4:2:2": encoded(IMAGE, "JPEG", quality=80, subsampling=1),
    "jpeg 4:2:0": encoded(IMAGE, "JPEG", quality=80, subsampling=2),
    "jpeg progressive": encoded(IMAGE, "JPEG", quality=80, progressive=True),
    "jpeg gray": encoded(IMAGE[..., 0], "JPEG"),
    "png": encoded(IMAGE),
    "png gray": encoded(IMAGE[..., 0]),
    "bmp": encoded(IMAGE, "BMP"),
    "pixels": decoding.encode_pixels(IMAGE),
}
WINDOWS = [
    (0, 0, 150, 211),
    (0, 0, 1, 1),
    (149, 210, 150, 211),
    (17, 33, 80, 100),
    (40, 0, 41, 211),
    (3, 190, 150, 200),
]


@pytest.mark.parametrize("skip_rows", [True, False])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_window_equals_part_of_whole_image(encoding, skip_rows):
    data = tf.constant(ENCODINGS[encoding])
    whole = decoding.decode_image(data).numpy()
    assert whole.shape == (150, 211, 3)
    size = tf.constant([150, 211])
    decode = tf.function(lambda window: decoding.decode_window(data, size, tf.unstack(window), skip_rows))
    for top, left, bottom, right in WINDOWS:
        window = decode(tf.constant([top, left, bottom, right])).numpy()
        assert window.dtype == np.uint8 and np.array_equal(window, whole[top:bottom, left:right])


@pytest.mark.parametrize("skip_rows", [True, False])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [(150, 210), (149, 211), (151, 211), (100, 100)])
def test_image_of_other_size_than_label_fails(encoding, skip_rows, size):
    with pytest.raises(tf.errors.InvalidArgumentError, match="differ in size"):
        decoding.decode_window(tf.constant(ENCODINGS[encoding]), tf.constant(size), (0, 0, 100, 100), skip_rows)


@pytest.mark.parametrize("skip_rows", [True, False])
def test_damaged_image_fails(skip_rows):
    data = bytearray(ENCODINGS["png"])
    data[len(data) // 2] ^= 1
    for damaged in (bytes(data), ENCODINGS["png"][:-60], ENCODINGS["jpeg 4:2:0"][:300], b"P6\n", b""):
        with pytest.raises(tf.errors.OpError):
            decoding.decode_window(tf.constant(damaged), tf.constant([150, 211]), (0, 0, 150, 211), skip_rows)


def test_encoded_pixels_are_readable_by_pillow():
    for array in (IMAGE, IMAGE[..., 1], IMAGE[:1, :1]):
        data = decoding.encode_pixels(array)
        assert np.array_equal(Image.open(io.BytesIO(data)), array)
        decode = decoding.decode_image if array.ndim == 3 else lambda data: decoding.decode_label(data, in_python=True)
        assert np.array_equal(decode(tf.constant(data)), array)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 8, 33])
@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"dpi": (72, 72), "gamma": 0.5}])
def test_palette_indices_are_decoded(bits, width, options):
    indices = RANDOM.integers(0, 2**bits, (5, width)).astype(np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(RANDOM.integers(0, 256, 3 * 2**bits).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG", bits=bits, **options)
    assert file.getvalue()[decoding.DEPTH] == bits and file.getvalue()[decoding.KIND] == decoding.PALETTE
    assert np.array_equal(decoding.decode_label(tf.constant(file.getvalue()), in_python=True), indices)
