"""The shortened PNG must decode to the upper rows that Pillow reads from the whole PNG."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kseg.images import png

RANDOM = np.random.default_rng(0)
# The image is smooth enough that an encoder chooses every filter, and needs more than one stored block.
ROWS, COLUMNS = np.mgrid[:150, :211]
IMAGE = np.stack([np.sin(ROWS / 9) * 90 + 120, COLUMNS % 256, (ROWS * COLUMNS // 50) % 256], -1) + RANDOM.normal(
    0, 3, (150, 211, 3)
)
IMAGE = np.clip(IMAGE, 0, 255).astype(np.uint8)


def encoded(array, **options):
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(file, format="PNG", **options)
    return file.getvalue()


def with_chunk_length(data, length):
    """Return a PNG whose IDAT chunks have at most `length` bytes."""
    start = data.index(b"IDAT") - 4
    size = struct.unpack_from(">I", data, start)[0]
    pixels, out = data[start + 8 : start + 8 + size], data[:start]
    for first in range(0, len(pixels), length):
        part = b"IDAT" + pixels[first : first + length]
        out += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    return out + data[start + 12 + size :]


def with_filters(array, filters):
    """Return a PNG of an RGB image whose rows cycle through filter types, encoded by the PNG specification."""
    height, width, _ = array.shape
    raw = np.zeros((height + 1, width + 1, 3), int)
    raw[1:, 1:] = array
    a, b, c, x = raw[1:, :-1], raw[:-1, 1:], raw[:-1, :-1], raw[1:, 1:]
    nearest = a + b - c
    distances = [np.abs(nearest - side) for side in (a, b, c)]
    paeth = np.where(
        (distances[0] <= distances[1]) & (distances[0] <= distances[2]), a, np.where(distances[1] <= distances[2], b, c)
    )
    predicted = [np.zeros_like(x), a, b, (a + b) // 2, paeth]
    row_filters = [filters[row % len(filters)] for row in range(height)]
    rows = b"".join(
        bytes([row_filter]) + ((x - predicted[row_filter])[row] % 256).astype(np.uint8).tobytes()
        for row, row_filter in enumerate(row_filters)
    )
    whole = encoded(array)
    part = b"IDAT" + zlib.compress(rows)
    return whole[:33] + struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) + png.END


@pytest.mark.parametrize("rows", [1, 2, 75, 104, 149, 150, 400])
@pytest.mark.parametrize(
    "data",
    [
        encoded(IMAGE),
        encoded(IMAGE, compress_level=0),
        encoded(IMAGE, optimize=True),
        with_chunk_length(encoded(IMAGE), 77),
        with_filters(IMAGE, (0, 1, 2, 3, 4)),
        with_filters(IMAGE, (4, 3)),
    ],
)
def test_shortened_png_has_upper_rows(data, rows):
    assert np.array_equal(Image.open(io.BytesIO(data)), IMAGE)
    shortened = png.first_rows(data, rows)
    assert shortened is not data
    with Image.open(io.BytesIO(shortened)) as image:
        image.verify()
    assert np.array_equal(Image.open(io.BytesIO(shortened)), IMAGE[:rows])


@pytest.mark.parametrize("width", [1, 21844 - 1, 21845, 21846])
def test_rows_of_stored_block_length(width):
    array = RANDOM.integers(0, 256, (3, width, 3)).astype(np.uint8)
    assert np.array_equal(Image.open(io.BytesIO(png.first_rows(encoded(array), 2))), array[:2])


@pytest.mark.parametrize(
    "array",
    [IMAGE[..., 0], np.dstack([IMAGE, IMAGE[..., :1]]), Image.fromarray(IMAGE).quantize(16), Image.new("I;16", (3, 2))],
)
def test_other_color_types_are_returned_unchanged(array):
    data = encoded(array)
    assert png.first_rows(data, 1) is data


def test_damaged_pngs_are_returned_unchanged():
    data = encoded(IMAGE)
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    for damaged in (b"", b"\x89PNG", data[:20], data[:40], data[: len(data) // 2], bytes(changed), b"JFIF" + data):
        assert png.first_rows(damaged, 150) is damaged
    # The header declares more rows than the pixel data has.
    short = data[:33] + encoded(IMAGE[:100])[33:]
    assert png.first_rows(short, 150) is short


def test_png_size():
    assert png.png_size(encoded(IMAGE)) == (150, 211) and png.png_size(b"\x89PNG") == (0, 0)
