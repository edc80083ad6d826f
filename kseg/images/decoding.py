"""Decode encoded images and labels in a TensorFlow graph: common files with TensorFlow, all others with Pillow.

Every file gives the pixels that `kseg.images.picture_reader` defines. Where a function takes `in_python`, it hands the
files that TensorFlow decodes otherwise (see `kseg.images.decoder_choice`) to that reader, in a Python function. A graph
that runs in other processes cannot call it, and refuses these files.
"""

import zlib

import numpy as np
import tensorflow as tf

from kseg.images import decoder_choice, picture_reader, png

PNG_SIGNATURE = png.SIGNATURE
# PNG color types.
GRAY, PALETTE = 0, 3
# Length of a PNG's signature and IHDR chunk: 8 bytes, then length, type, 13 bytes of content and checksum.
PNG_HEADER = 33
# Byte positions of bit depth, color type and IHDR's checksum.
DEPTH, KIND, CHECKSUM = 24, 25, 29
# The header of a binary PPM (RGB) or PGM (ids), padded to a fixed length; the raw pixels follow it.
PIXELS_HEADER = "{magic}\n{width:>8} {height:>8}\n255\n"
PIXELS_START = 25
# Side of a JPEG's blocks with shared chroma (4:2:0). A window with this margin decodes to the same pixels as in the
# whole image.
JPEG_MARGIN = 16
# Start of the message of a graph in another process that meets a file which only Pillow decodes right.
ONLY_HERE = "can only be decoded in the process that trains"
# States of a PNG's rows: TensorFlow decodes the file, the upper rows are decoded, the whole image is decoded.
UNDECODED, UPPER, WHOLE = 0, 1, 2
# TensorFlow has no operation that converts numbers to byte strings, so this table holds every byte as a string.
BYTES = np.array([bytes([value]) for value in range(256)], object)


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """Decode a JPEG, PNG, BMP or binary PPM with TensorFlow alone, for graphs that are exported.

    Args:
        data: The encoded bytes, string of shape ().

    Returns:
        The RGB image, uint8 of shape (H, W, 3).
    """
    image = tf.cond(
        tf.io.is_jpeg(data),
        # Other readers use the accurate transform; the default one differs by a few gray levels.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: _decode_non_jpeg(data),
    )
    return tf.ensure_shape(image, (None, None, 3))


def read_image(data: tf.Tensor, value_range: tuple[float, ...], in_python: bool) -> tf.Tensor:
    """Decode an image of any kind, upright.

    Args:
        data: The encoded bytes, string of shape ().
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255; may be empty.
        in_python: Whether the graph runs in this process.

    Returns:
        The RGB image, uint8 of shape (H, W, 3).
    """
    care = decoder_choice.needs_care(data, in_python)
    if in_python:
        return tf.cond(care, lambda: _read_carefully(data, value_range), lambda: decode_image(data))
    with tf.control_dependencies([refuse_elsewhere(care)]):
        return decode_image(tf.identity(data))


def _read_carefully(data: tf.Tensor, value_range: tuple[float, ...]) -> tf.Tensor:
    pixels = tf.py_function(
        lambda encoded: picture_reader.read_picture(encoded.numpy(), "image", value_range).pixels, [data], tf.uint8
    )
    return tf.ensure_shape(pixels, (None, None, 3))


def refuse_elsewhere(care: tf.Tensor) -> tf.Operation:
    """Return an assertion, for a graph that runs in another process, that an image (bool scalar) needs no care."""
    return tf.debugging.Assert(~care, [ONLY_HERE])


def decode_window(
    data: tf.Tensor, size: tf.Tensor, window: tuple, in_python: bool, value_range: tuple[float, ...] = ()
) -> tf.Tensor:
    """Decode one window of an upright image of any kind, with the same pixels as in the whole image.

    Args:
        data: The encoded bytes, string of shape ().
        size: Expected (height, width) of the whole image, int32 of shape (2,). An image of another size fails.
        window: (top, left, bottom, right) in pixels, int32 scalars.
        in_python: Whether the graph runs in this process. Then the rows of a PNG below the window are not decoded.
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255; may be empty.

    Returns:
        The RGB window, uint8 of shape (bottom - top, right - left, 3).
    """
    top, left, bottom, right = window

    def decode_jpeg_window() -> tf.Tensor:
        with tf.control_dependencies([_assert_same_size(tf.io.extract_jpeg_shape(data)[:2], size)]):
            crop_top, crop_left = tf.maximum(top - JPEG_MARGIN, 0), tf.maximum(left - JPEG_MARGIN, 0)
            crop_bottom = tf.minimum(bottom + JPEG_MARGIN, size[0])
            crop_right = tf.minimum(right + JPEG_MARGIN, size[1])
        crop = tf.image.decode_and_crop_jpeg(
            data,
            tf.stack([crop_top, crop_left, crop_bottom - crop_top, crop_right - crop_left]),
            channels=3,
            dct_method="INTEGER_ACCURATE",
        )
        return crop[top - crop_top : bottom - crop_top, left - crop_left : right - crop_left]

    def crop_whole(image: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([_assert_same_size(tf.shape(image)[:2], size)]):
            return image[top:bottom, left:right]

    def decode_plain() -> tf.Tensor:
        return tf.cond(tf.io.is_jpeg(data), decode_jpeg_window, lambda: crop_whole(_decode_non_jpeg(data)))

    def decode_png_window() -> tf.Tensor:
        # tf.numpy_function never frees the strings that it passes to Python; tf.py_function does.
        rows, state = tf.py_function(
            lambda *arguments: _png_rows(*arguments, value_range), [data, bottom, size], [tf.uint8, tf.int32]
        )
        rows, state = tf.ensure_shape(rows, (None, None, 3)), tf.ensure_shape(state, ())
        return tf.case(
            [
                (tf.equal(state, UPPER), lambda: rows[top:bottom, left:right]),
                (tf.equal(state, WHOLE), lambda: crop_whole(rows)),
            ],
            default=lambda: crop_whole(_decode_non_jpeg(data)),
        )

    def decode_other_window() -> tf.Tensor:
        return tf.cond(
            decoder_choice.needs_care(data, in_python),
            lambda: crop_whole(_read_carefully(data, value_range)),
            decode_plain,
        )

    if in_python:
        image = tf.cond(decoder_choice.is_png(data), decode_png_window, decode_other_window)
    else:
        with tf.control_dependencies([refuse_elsewhere(decoder_choice.needs_care(data, in_python))]):
            image = decode_plain()
    return tf.ensure_shape(image, (None, None, 3))


def _png_rows(
    data: tf.Tensor, rows: tf.Tensor, size: tf.Tensor, value_range: tuple[float, ...]
) -> tuple[tf.Tensor | np.ndarray, int]:
    """Decode the first `rows` rows of a PNG, or all of it if only `picture_reader` decodes it right.

    Returns (uint8 (rows, W, 3), UPPER), (uint8 (H, W, 3), WHOLE), or (no pixels, UNDECODED) if the PNG has another
    size than `size` or cannot be shortened.
    """
    encoded = data.numpy()
    if png.needs_care(encoded, picture_reader.MAX_PIXELS):
        return picture_reader.read_picture(encoded, "image", value_range).pixels, WHOLE
    shortened = png.first_rows(encoded, int(rows)) if png.png_size(encoded) == tuple(size.numpy()) else encoded
    if shortened is encoded:
        return tf.zeros((0, 0, 3), tf.uint8), UNDECODED
    # An object array is converted at once, whereas TensorFlow inspects a bytes object byte by byte.
    return tf.io.decode_png(tf.constant(np.array(shortened, object)), channels=3), UPPER


def _assert_same_size(actual: tf.Tensor, size: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(tf.reduce_all(tf.equal(actual, size)), ["image and label differ in size:", actual, size])


def _decode_non_jpeg(data: tf.Tensor) -> tf.Tensor:
    return tf.cond(
        tf.equal(tf.strings.substr(data, 0, 3), "P6\n"),
        lambda: _decode_pixels(data, 3),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )


def decode_label(data: tf.Tensor, in_python: bool) -> tf.Tensor:
    """Decode an upright label to the values in its file: gray values or palette indices, never palette colors.

    Args:
        data: An 8-bit grayscale PNG, a palette PNG or a binary PGM, string of shape ().
        in_python: Whether the graph runs in this process.

    Returns:
        The values, uint8 of shape (H, W).
    """
    label = tf.cond(
        tf.equal(tf.strings.substr(data, 0, 3), "P5\n"),
        lambda: tf.squeeze(_decode_pixels(data, 1), -1),
        lambda: _decode_png_label(data, in_python),
    )
    return tf.ensure_shape(label, (None, None))


def _decode_png_label(data: tf.Tensor, in_python: bool) -> tf.Tensor:
    """Decode the uint8 (H, W) values of a gray PNG or indices of a palette PNG, upright."""
    # The padding makes a file that is too short fail the assertion below instead of the shape check.
    start = tf.strings.join([tf.strings.substr(data, 0, PNG_HEADER), "\0" * PNG_HEADER])
    header = tf.io.decode_raw(tf.strings.substr(start, 0, PNG_HEADER), tf.uint8)
    header = tf.ensure_shape(header, (PNG_HEADER,))
    # decode_png also reads JPEGs, whose values are no class ids.
    is_png = tf.reduce_all(tf.equal(header[:8], tf.constant(list(PNG_SIGNATURE), tf.uint8)))
    is_gray = tf.equal(header[KIND], GRAY) & tf.equal(header[DEPTH], 8)
    is_palette = tf.equal(header[KIND], PALETTE)
    pixels = decoder_choice.big_endian(header[16:20]) * decoder_choice.big_endian(header[20:24])

    def decode() -> tf.Tensor:
        # decode_png converts palette indices to the luminance of their colors.
        return tf.cond(
            is_palette,
            lambda: _decode_palette_indices(data, header),
            lambda: tf.squeeze(tf.io.decode_png(data, channels=1), -1),
        )

    def decode_carefully() -> tf.Tensor:
        indices = tf.py_function(
            lambda encoded: picture_reader.read_indices(encoded.numpy(), "label"), [data], tf.uint8
        )
        return tf.ensure_shape(indices, (None, None))

    with tf.control_dependencies(
        [
            tf.debugging.Assert(is_png & (is_gray | is_palette), ["a label must be an 8-bit gray or a palette PNG"]),
            tf.debugging.Assert(pixels <= picture_reader.MAX_PIXELS, ["more pixels than", picture_reader.MAX_PIXELS]),
        ]
    ):
        turned = decoder_choice.may_be_turned(data)
    if in_python:
        return tf.cond(turned, decode_carefully, decode)
    with tf.control_dependencies([refuse_elsewhere(turned)]):
        return decode()


def _decode_palette_indices(data: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """Decode the uint8 (H, W) indices of a palette PNG, by declaring it a gray PNG without a palette."""
    # CRC-32 is linear: the difference that a changed byte makes does not depend on the other bytes.
    change = np.zeros(PNG_HEADER, np.uint8)
    change[KIND] = PALETTE ^ GRAY
    checksum_change = zlib.crc32(bytes(CHECKSUM - 12)) ^ zlib.crc32(bytes(change[12:CHECKSUM]))
    change[CHECKSUM:] = list(checksum_change.to_bytes(4, "big"))
    gray_header = tf.strings.reduce_join(
        tf.gather(tf.constant(BYTES), tf.cast(tf.bitwise.bitwise_xor(header, change), tf.int32))
    )

    length = tf.strings.length(data)

    def precedes_pixels(start: tf.Tensor) -> tf.Tensor:
        chunk_type = tf.strings.substr(data, tf.minimum(start + 4, length), 4)
        return (start + 8 <= length) & tf.not_equal(chunk_type, "IDAT")

    def next_chunk(start: tf.Tensor) -> list[tf.Tensor]:
        size = tf.cast(tf.io.decode_raw(tf.strings.substr(data, start, 4), tf.uint8), tf.int32)
        # Chunks before the pixels are short. Ignoring the size's upper byte keeps a damaged size from overflowing.
        return [start + 12 + tf.reduce_sum(size * tf.constant([0, 1 << 16, 1 << 8, 1]))]

    [pixels] = tf.while_loop(precedes_pixels, next_chunk, [tf.constant(PNG_HEADER)])
    pixels = tf.minimum(pixels, length)
    # Readers differ in which of two headers they believe. The search also covers what only looks like a header.
    start = tf.minimum(PNG_HEADER, length)
    second = tf.strings.regex_full_match(
        tf.strings.substr(data, start, pixels - start), r"(?s)\C*\x00\x00\x00\x0dIHDR\C*"
    )
    with tf.control_dependencies([tf.debugging.Assert(~second, ["two headers (IHDR chunks)"])]):
        pixels = tf.identity(pixels)
    # A slice would copy the values, a squeeze does not.
    values = tf.squeeze(
        tf.io.decode_png(tf.strings.join([gray_header, tf.strings.substr(data, pixels, -1)]), channels=1), -1
    )
    # decode_png scales gray values of fewer than 8 bits to 0..255.
    largest = tf.bitwise.left_shift(tf.constant(1, tf.uint8), tf.minimum(header[DEPTH], 7))
    largest = tf.where(tf.equal(header[DEPTH], 8), tf.constant(255, tf.uint8), largest - 1)
    return values // (tf.constant(255, tf.uint8) // largest)


def _decode_pixels(data: tf.Tensor, channels: int) -> tf.Tensor:
    """Decode the uint8 (H, W, channels) pixels that `encode_pixels` wrote."""
    width, height = (
        tf.strings.to_number(tf.strings.strip(tf.strings.substr(data, start, 8)), tf.int32) for start in (3, 12)
    )
    values = tf.io.decode_raw(data, tf.uint8)[PIXELS_START:]
    return tf.reshape(values, (height, width, channels))


def encode_pixels(pixels: np.ndarray) -> bytes:
    """Encode pixels without compression, as a binary PPM or PGM.

    Args:
        pixels: An RGB image of shape (H, W, 3), or class ids of shape (H, W); uint8.
    """
    header = PIXELS_HEADER.format(
        magic="P6" if pixels.ndim == 3 else "P5", width=pixels.shape[1], height=pixels.shape[0]
    )
    return header.encode() + np.ascontiguousarray(pixels).tobytes()
