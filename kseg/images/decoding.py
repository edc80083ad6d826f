"""From encoded bytes to pixels in a graph, of as much of a picture as is wanted: JPEG, PNG, BMP, and plain pixels.

TensorFlow's operations, and only where it is asked for a Python function, so that the same graph runs in other
processes too.
"""

import zlib

import numpy as np
import tensorflow as tf

from kseg.images import png

PNG_SIGNATURE = png.SIGNATURE
GREY, PALETTE = 0, 3
# Of a PNG's bytes those up to its first chunk's end: signature, then length, type, 13 bytes and checksum of IHDR.
PNG_HEADER = 33
DEPTH, KIND, CHECKSUM = 24, 25, 29
# Pixels as they are, behind a PPM's (RGB) or PGM's (ids) header of this many bytes; other programs read it too.
PIXELS_HEADER = "{magic}\n{width:>8} {height:>8}\n255\n"
PIXELS_START = 25
# The sides of a JPEG's blocks that share colours; a window with as much around it decodes to the same numbers.
JPEG_MARGIN = 16
# Every byte as a string, for there is no operation that makes a string of numbers.
BYTES = np.array([bytes([value]) for value in range(256)], object)


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """Return the uint8 RGB picture (H, W, 3) of an encoded JPEG, PNG or BMP, or of plain pixels."""
    image = tf.cond(
        tf.io.is_jpeg(data),
        # The accurate transform is what other readers use; the default one differs by a few grey levels.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: _decode_other(data))
    return tf.ensure_shape(image, (None, None, 3))


def decode_window(data: tf.Tensor, size: tf.Tensor, window: tuple, shorten: bool) -> tf.Tensor:
    """Return the part (top, left, bottom, right) of a picture as `decode_image` gives it, without all of the rest.

    `size`, int32 (height, width), is what the whole picture is known to measure; another one fails. `shorten`: a PNG's
    rows below the part are left out, by a Python function, which no other process can run.
    """
    top, left, bottom, right = window

    def jpeg() -> tf.Tensor:
        with tf.control_dependencies([_same_size(tf.io.extract_jpeg_shape(data)[:2], size)]):
            above, before = tf.maximum(top - JPEG_MARGIN, 0), tf.maximum(left - JPEG_MARGIN, 0)
            below = tf.minimum(bottom + JPEG_MARGIN, size[0])
            after = tf.minimum(right + JPEG_MARGIN, size[1])
        part = tf.image.decode_and_crop_jpeg(data, tf.stack([above, before, below - above, after - before]), channels=3,
                                             dct_method="INTEGER_ACCURATE")
        return part[top - above:bottom - above, left - before:right - before]

    def other() -> tf.Tensor:
        image = _decode_other(data)
        with tf.control_dependencies([_same_size(tf.shape(image)[:2], size)]):
            return image[top:bottom, left:right]

    def upper() -> tf.Tensor:
        # Not numpy_function: it never frees the strings that it gives.
        rows, is_shorter = tf.py_function(_upper_rows, [data, bottom, size], [tf.uint8, tf.bool])
        return tf.cond(is_shorter, lambda: tf.ensure_shape(rows, (None, None, 3))[top:bottom, left:right], other)

    branches = [(tf.io.is_jpeg(data), jpeg)]
    if shorten:
        branches.append((tf.equal(tf.strings.substr(data, 0, 8), png.SIGNATURE), upper))
    return tf.ensure_shape(tf.case(branches, default=other), (None, None, 3))


def _upper_rows(data: tf.Tensor, rows: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, bool]:
    """Return the upper rows of a PNG of that size, and True; of any other one nothing, and False."""
    encoded = data.numpy()
    shorter = png.first_rows(encoded, int(rows)) if png.sides(encoded) == tuple(size.numpy()) else encoded
    if shorter is encoded:
        return tf.zeros((0, 0, 3), tf.uint8), False
    # Of mere bytes TensorFlow would look at each.
    return tf.io.decode_png(tf.constant(np.array(shorter, object)), channels=3), True


def _same_size(found: tf.Tensor, size: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(tf.reduce_all(tf.equal(found, size)), ["image and label differ in size:", found, size])


def _decode_other(data: tf.Tensor) -> tf.Tensor:
    """Return the picture of bytes that are no JPEG."""
    return tf.cond(tf.equal(tf.strings.substr(data, 0, 3), "P6\n"), lambda: _pixels(data, 3),
                   lambda: tf.io.decode_image(data, channels=3, expand_animations=False))


def decode_label(data: tf.Tensor) -> tf.Tensor:
    """Return the raw uint8 ids (H, W) of a label: an 8-bit grey PNG, palette indices (never colours), or plain ids."""
    label = tf.cond(tf.equal(tf.strings.substr(data, 0, 3), "P5\n"), lambda: _pixels(data, 1)[..., 0],
                    lambda: _decode_ids(data))
    return tf.ensure_shape(label, (None, None))


def _decode_ids(data: tf.Tensor) -> tf.Tensor:
    """Return the values (H, W) of a grey PNG, or the indices of one with a palette."""
    # Filled up, so that too short a file is told below and not by its length.
    start = tf.strings.join([tf.strings.substr(data, 0, PNG_HEADER), "\0" * PNG_HEADER])
    header = tf.io.decode_raw(tf.strings.substr(start, 0, PNG_HEADER), tf.uint8)
    header = tf.ensure_shape(header, (PNG_HEADER,))
    # The decoder would read a JPEG too, whose values are no ids.
    png = tf.reduce_all(tf.equal(header[:8], tf.constant(list(PNG_SIGNATURE), tf.uint8)))
    grey = tf.equal(header[KIND], GREY) & tf.equal(header[DEPTH], 8)
    palette = tf.equal(header[KIND], PALETTE)
    with tf.control_dependencies([tf.debugging.Assert(
            png & (grey | palette), ["a label must be an 8-bit grey or a palette PNG"])]):
        # The decoder would turn indices into the luminance of their colours.
        return tf.cond(palette, lambda: _indices(data, header),
                       lambda: tf.io.decode_png(data, channels=1)[..., 0])


def _indices(data: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """Return the indices (H, W) of a palette PNG: those of the grey PNG that is left when its palette is dropped."""
    # A checksum is linear: what a changed byte does to it does not depend on the other bytes.
    change = np.zeros(PNG_HEADER, np.uint8)
    change[KIND] = PALETTE ^ GREY
    blank = zlib.crc32(bytes(CHECKSUM - 12)) ^ zlib.crc32(bytes(change[12:CHECKSUM]))
    change[CHECKSUM:] = list(blank.to_bytes(4, "big"))
    grey = tf.strings.reduce_join(tf.gather(tf.constant(BYTES), tf.cast(tf.bitwise.bitwise_xor(header, change),
                                                                        tf.int32)))

    length = tf.strings.length(data)

    def is_other(start: tf.Tensor) -> tf.Tensor:
        kind = tf.strings.substr(data, tf.minimum(start + 4, length), 4)
        return (start + 8 <= length) & tf.not_equal(kind, "IDAT")

    def following(start: tf.Tensor) -> list[tf.Tensor]:
        size = tf.cast(tf.io.decode_raw(tf.strings.substr(data, start, 4), tf.uint8), tf.int32)
        # What stands before the pixels is short: of a damaged size the upper byte is left out, so that none overflows.
        return [start + 12 + tf.reduce_sum(size * tf.constant([0, 1 << 16, 1 << 8, 1]))]

    [pixels] = tf.while_loop(is_other, following, [tf.constant(PNG_HEADER)])
    pixels = tf.minimum(pixels, length)
    values = tf.io.decode_png(tf.strings.join([grey, tf.strings.substr(data, pixels, -1)]), channels=1)[..., 0]
    # The decoder spreads the greys of fewer than 8 bits over 0..255.
    largest = tf.bitwise.left_shift(tf.constant(1, tf.uint8), tf.minimum(header[DEPTH], 7))
    largest = tf.where(tf.equal(header[DEPTH], 8), tf.constant(255, tf.uint8), largest - 1)
    return values // (tf.constant(255, tf.uint8) // largest)


def _pixels(data: tf.Tensor, channels: int) -> tf.Tensor:
    """Return the pixels (H, W, channels) that `encode_pixels` wrote."""
    width, height = (tf.strings.to_number(tf.strings.strip(tf.strings.substr(data, start, 8)), tf.int32)
                     for start in (3, 12))
    values = tf.io.decode_raw(data, tf.uint8)[PIXELS_START:]
    return tf.reshape(values, (height, width, channels))


def encode_pixels(pixels: np.ndarray) -> bytes:
    """Return the uint8 RGB picture (H, W, 3) or ids (H, W) as a PPM or PGM file, which decodes at once."""
    header = PIXELS_HEADER.format(magic="P6" if pixels.ndim == 3 else "P5", width=pixels.shape[1],
                                  height=pixels.shape[0])
    return header.encode() + np.ascontiguousarray(pixels).tobytes()
