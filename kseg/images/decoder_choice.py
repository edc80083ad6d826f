"""Decide in a graph, from an image's header, whether TensorFlow decodes it as `kseg.images.picture_reader` does."""

import tensorflow as tf

from kseg.images import picture_reader, png

# Parts of a file in which an orientation is searched, in bytes: it precedes the pixels or follows them.
SEARCHED_HEAD, SEARCHED_TAIL = 1 << 17, 1 << 16
# An orientation other than 1 in EXIF data, as a big-endian or little-endian entry, or in XMP. `\\C` matches any byte.
ORIENTED = (
    r"(?s)\C*(?:(?:eXIf|Exif\x00\x00)\C*(?:\x01\x12\x00\C\x00\x00\x00\x01(?:[\x02-\x08]|\x00[\x02-\x08])"
    r"|\x01\x12\x00\C\x00\x00\x00\x01\x00\x00\x00[\x02-\x08]"
    r"|\x12\x01\C\x00\x01\x00\x00\x00[\x02-\x08])"
    r"|tiff:Orientation(?:=\"|>)[02-9]|Raw profile type exif|XML:com\.adobe\.xmp\x00\x01)\C*"
)
# Header of the BMP files that all readers decode alike: 24 bits, not compressed. It begins after the file's sizes.
BMP_HEADER_START, BMP_HEADER_LENGTH = 14, 20
PIXELS_HEADER_LENGTH = 25


def may_be_turned(data: tf.Tensor) -> tf.Tensor:
    """Return whether an encoded JPEG or PNG (string scalar) may have an orientation other than upright, bool scalar."""
    length = tf.strings.length(data)
    tail = tf.maximum(tf.minimum(length, SEARCHED_HEAD), length - SEARCHED_TAIL)
    searched = tf.strings.join([tf.strings.substr(data, 0, SEARCHED_HEAD), tf.strings.substr(data, tail, -1)])
    return tf.strings.regex_full_match(searched, ORIENTED)


def needs_care(data: tf.Tensor, in_python: bool) -> tf.Tensor:
    """Return whether an encoded image (string scalar) must be decoded by `picture_reader`, bool scalar.

    Args:
        data: The encoded bytes.
        in_python: Follow all chunks of a PNG in a Python function, which other processes cannot call. Otherwise, only
            the ends of the file are searched for an orientation.
    """

    def png_needs_care() -> tf.Tensor:
        if in_python:
            # tf.numpy_function never frees the strings that it passes to Python; tf.py_function does.
            care = tf.py_function(
                lambda encoded: png.needs_care(encoded.numpy(), picture_reader.MAX_PIXELS), [data], tf.bool
            )
            return tf.ensure_shape(care, ())
        header = _first_bytes(data, png.FIRST_CHUNK)
        deep = tf.equal(header[png.KIND], 16)
        return (
            deep
            | (big_endian(header[16:20]) * big_endian(header[20:24]) > picture_reader.MAX_PIXELS)
            | may_be_turned(data)
        )

    # tf.case would compute all conditions for every image.
    return tf.cond(
        tf.io.is_jpeg(data),
        lambda: _jpeg_needs_care(data),
        lambda: tf.cond(
            is_png(data),
            png_needs_care,
            lambda: tf.cond(is_pixels(data), lambda: tf.constant(False), lambda: ~_is_plain_bmp(data)),
        ),
    )


def is_png(data: tf.Tensor) -> tf.Tensor:
    return tf.equal(tf.strings.substr(data, 0, len(png.SIGNATURE)), png.SIGNATURE)


def is_pixels(data: tf.Tensor) -> tf.Tensor:
    """Return whether this is the image of a prepared set of pixels."""
    header = tf.strings.substr(data, 0, PIXELS_HEADER_LENGTH)
    return tf.strings.regex_full_match(header, r"P6\n[ 0-9]{8} [ 0-9]{8}\n255\n")


def big_endian(values: tf.Tensor) -> tf.Tensor:
    """Return the int64 number in 4 bytes."""
    return tf.reduce_sum(tf.cast(values, tf.int64) * tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64))


def _first_bytes(data: tf.Tensor, count: int) -> tf.Tensor:
    """Return the first bytes as int32 (count,), with zeros after the end."""
    padded = tf.strings.join([tf.strings.substr(data, 0, count), "\0" * count])
    values = tf.io.decode_raw(tf.strings.substr(padded, 0, count), tf.uint8)
    return tf.cast(tf.ensure_shape(values, (count,)), tf.int32)


def _jpeg_needs_care(data: tf.Tensor) -> tf.Tensor:
    shape = tf.cast(tf.io.extract_jpeg_shape(data), tf.int64)
    # TensorFlow reads CMYK without Adobe's marker as inverted.
    unusual = (tf.not_equal(shape[2], 1) & tf.not_equal(shape[2], 3)) | (
        shape[0] * shape[1] > picture_reader.MAX_PIXELS
    )
    # The metadata of a JPEG precede its pixels.
    head = tf.strings.substr(data, 0, SEARCHED_HEAD)
    return unusual | tf.cond(
        _has_metadata(head), lambda: tf.strings.regex_full_match(head, ORIENTED), lambda: tf.constant(False)
    )


def _has_metadata(head: tf.Tensor) -> tf.Tensor:
    """Return whether a JPEG may have an APP1 segment, which holds EXIF or XMP data, in its head.

    The marker's two bytes never follow each other in compressed pixels, so the segments need not be followed.
    """
    values = tf.io.decode_raw(head, tf.uint8)
    return tf.reduce_any(tf.equal(values[:-1], 0xFF) & tf.equal(values[1:], 0xE1))


def _is_plain_bmp(data: tf.Tensor) -> tf.Tensor:
    header = _first_bytes(data, BMP_HEADER_START + BMP_HEADER_LENGTH)
    # The bytes of the header's length, of the planes, the bits and the compression.
    positions = [0, 1, *range(14, 18), *range(26, 34)]
    plain = [*b"BM", 40, 0, 0, 0, 1, 0, 24, 0, 0, 0, 0, 0]
    is_plain = tf.reduce_all(tf.equal(tf.gather(header, positions), plain))
    # A negative height is that of a file whose rows begin at the top.
    width, height = big_endian(header[21:17:-1]), big_endian(header[25:21:-1])
    return is_plain & (header[25] < 128) & (width * height <= picture_reader.MAX_PIXELS)
