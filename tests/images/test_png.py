"""The upper rows of PNGs against Pillow's reading of the whole."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kseg.images import png

RANDOM = np.random.default_rng(0)
# Smooth enough for every filter to be chosen somewhere, and large enough for more than one stored block.
ROWS, COLUMNS = np.mgrid[:150, :211]
PICTURE = np.stack([np.sin(ROWS / 9) * 90 + 120, COLUMNS % 256, (ROWS * COLUMNS // 50) % 256], -1) + RANDOM.normal(
    0, 3, (150, 211, 3))
PICTURE = np.clip(PICTURE, 0, 255).astype(np.uint8)


def encoded(array, **options):
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, format="PNG", **options)
    return file.getvalue()


def in_pieces(data, length):
    """Return a PNG whose pixels lie in chunks of a length."""
    start = data.index(b"IDAT") - 4
    size = struct.unpack_from(">I", data, start)[0]
    pixels, out = data[start + 8:start + 8 + size], data[:start]
    for first in range(0, len(pixels), length):
        part = b"IDAT" + pixels[first:first + length]
        out += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    return out + data[start + 12 + size:]


def with_filters(array, kinds):
    """Return a PNG of an RGB picture whose rows take turns in their kind of filter, from PNG's own definition."""
    height, width, _ = array.shape
    raw = np.zeros((height + 1, width + 1, 3), int)
    raw[1:, 1:] = array
    a, b, c, x = raw[1:, :-1], raw[:-1, 1:], raw[:-1, :-1], raw[1:, 1:]
    nearest = a + b - c
    distances = [np.abs(nearest - side) for side in (a, b, c)]
    paeth = np.where((distances[0] <= distances[1]) & (distances[0] <= distances[2]), a,
                     np.where(distances[1] <= distances[2], b, c))
    predicted = [np.zeros_like(x), a, b, (a + b) // 2, paeth]
    rows = b"".join(bytes([kinds[row % len(kinds)]]) + ((x - predicted[kinds[row % len(kinds)]])[row] % 256).astype(
        np.uint8).tobytes() for row in range(height))
    whole = encoded(array)
    part = b"IDAT" + zlib.compress(rows)
    return (whole[:33] + struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) + png.END)


@pytest.mark.parametrize("rows", [1, 2, 75, 104, 149, 150, 400])
@pytest.mark.parametrize("data", [
    encoded(PICTURE), encoded(PICTURE, compress_level=0), encoded(PICTURE, optimize=True),
    in_pieces(encoded(PICTURE), 77), with_filters(PICTURE, (0, 1, 2, 3, 4)), with_filters(PICTURE, (4, 3))])
def test_upper_rows(data, rows):
    assert np.array_equal(Image.open(io.BytesIO(data)), PICTURE)
    found = png.first_rows(data, rows)
    assert found is not data
    with Image.open(io.BytesIO(found)) as image:
        image.verify()
    assert np.array_equal(Image.open(io.BytesIO(found)), PICTURE[:rows])


@pytest.mark.parametrize("width", [1, 21844 - 1, 21845, 21846])
def test_rows_as_long_as_a_block(width):
    array = RANDOM.integers(0, 256, (3, width, 3)).astype(np.uint8)
    assert np.array_equal(Image.open(io.BytesIO(png.first_rows(encoded(array), 2))), array[:2])


@pytest.mark.parametrize("array", [
    PICTURE[..., 0], np.dstack([PICTURE, PICTURE[..., :1]]), Image.fromarray(PICTURE).quantize(16),
    Image.new("I;16", (3, 2))])
def test_other_kinds_are_left_alone(array):
    data = encoded(array)
    assert png.first_rows(data, 1) is data


def test_what_is_not_whole_is_left_alone():
    data = encoded(PICTURE)
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    for damaged in (b"", b"\x89PNG", data[:20], data[:40], data[:len(data) // 2], bytes(changed), b"JFIF" + data):
        assert png.first_rows(damaged, 150) is damaged
    # Pixels that end before the picture does.
    short = data[:33] + encoded(PICTURE[:100])[33:]
    assert png.first_rows(short, 150) is short


def test_sides():
    assert png.sides(encoded(PICTURE)) == (150, 211) and png.sides(b"\x89PNG") == (0, 0)
