"""Augment training examples with pure functions of tensors and a seed, following MMSegmentation's pipeline.

Images are RGB (H, W, 3) with whole numbers 0..255, of any number type before resizing and float32 afterwards. Labels
are uint8 (H, W), 255 ignored. A seed is an int32 pair; the same seed gives the same draws on any machine.
"""

from collections.abc import Callable

import tensorflow as tf

from kseg.config.sections import IGNORED, Augment
from kseg.images.resizing import fit_size

# Each decision has its own stream of random numbers, so that a new decision does not change the others' draws.
SCALE, CROP, FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER = range(8)
# Above this ratio of source pixels to crop pixels, an image is resized from bytes, not from float32.
MAX_FLOAT_RATIO = 6


def augment(
    read: Callable[[tuple], tf.Tensor], label: tf.Tensor, table: tf.Tensor, seed: tf.Tensor, config: Augment
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale, crop, flip and distort an example.

    Only the part of the image under the crop is decoded and resized.

    Args:
        read: Returns the part (top, left, bottom, right) of the image, uint8 (h, w, 3).
        label: Raw label values, uint8 (H, W).
        table: Train id of each raw value, uint8 (256,).
        seed: int32 (2,).
        config: Ranges and probabilities.

    Returns:
        The image, float32 (h, w, 3), and the raw label, uint8 (h, w), at most as large as config.crop.
    """
    size = scaled_size(tf.shape(label), seed, config)
    window, values = crop(label, size, table, seed, config)
    image = resize_window(read, tf.shape(label), size, window)
    if config.flip:
        flipped = uniform(seed, FLIP) < config.flip
        image, values = tf.cond(
            flipped, lambda: (tf.reverse(image, [1]), tf.reverse(values, [1])), lambda: (image, values)
        )
    if config.photometric:
        # One static shape for all images, for which XLA compiles the color arithmetic.
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        image = tf.pad(image, [[0, config.crop[0] - height], [0, config.crop[1] - width], [0, 0]])
        image = distort(tf.ensure_shape(image, (*config.crop, 3)), seed)[:height, :width]
    return image, values


def stream(seed: tf.Tensor, purpose: int) -> tf.Tensor:
    """Return the seed, int32 (2,), of one purpose's random numbers."""
    return tf.random.experimental.stateless_fold_in(seed, purpose)


def uniform(seed: tf.Tensor, purpose: int, low: float = 0.0, high: float = 1.0, shape: tuple = ()) -> tf.Tensor:
    """Return float32 random numbers in [low, high)."""
    return tf.random.stateless_uniform(shape, stream(seed, purpose), low, high, alg="philox")


def scaled_size(shape: tf.Tensor, seed: tf.Tensor, config: Augment) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the (height, width) of a randomly scaled image.

    The image, of int32 shape (H, W), fits the config's box times a random factor.
    """
    factor = uniform(seed, SCALE, *config.scale_range)
    box = tf.constant(config.scale, tf.int32) if config.scale else shape[:2]
    box = tf.cast(tf.cast(box, tf.float32) * factor, tf.int32)
    return fit_size(shape[0], shape[1], box)


def nearest_positions(length: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Return int32 (target,): the source position floor(position / (target / length)) of each target position.

    Computed in float64 through the inverse of the factor, to round where OpenCV rounds.
    """
    inverse = 1 / (tf.cast(target, tf.float64) / tf.cast(length, tf.float64))
    positions = tf.cast(tf.floor(tf.cast(tf.range(target), tf.float64) * inverse), tf.int32)
    return tf.minimum(positions, length - 1)


def nearest_window(label: tf.Tensor, size: tuple, window: tuple) -> tf.Tensor:
    """Return a window of a label (H, W) resized with nearest neighbors.

    `window` is (top, left, height, width) in the label of `size`.
    """
    rows, columns = (
        nearest_positions(tf.shape(label)[axis], size[axis])[window[axis] : window[axis] + window[axis + 2]]
        for axis in (0, 1)
    )
    first = columns[0]
    part = tf.gather(label, rows)[:, first : columns[-1] + 1]
    # Gathering rows is several times faster than gathering single values, hence the transpose.
    return tf.transpose(tf.gather(tf.transpose(part), columns - first))


def crop(label: tf.Tensor, size: tuple, table: tf.Tensor, seed: tf.Tensor, config: Augment) -> tuple:
    """Return a random window that no class dominates.

    A class dominates if it fills cat_max_ratio or more of the labeled pixels.

    Up to `crop_tries` windows are tested; if all are rejected, the next one is taken untested. A side of the image that
    is shorter than the crop is kept completely.

    Args:
        label: Raw label values, uint8 (H, W).
        size: (height, width) to which the label is resized; only windows of it are computed.
        table: Train id of each raw value, uint8 (256,).
        seed: int32 (2,).
        config: The crop, cat_max_ratio and crop_tries.

    Returns:
        The window (top, left, height, width) and its raw label, uint8 (height, width).
    """
    height, width = (tf.minimum(size[axis], config.crop[axis]) for axis in (0, 1))
    tries = config.crop_tries if config.cat_max_ratio < 1 else 0
    draws = uniform(seed, CROP, shape=(tries + 1, 2))
    room = tf.cast(tf.stack([size[0] - height + 1, size[1] - width + 1]), tf.float32)
    # A float32 draw close to 1 may round up to the bound.
    corners = tf.minimum(tf.cast(draws * room, tf.int32), tf.cast(room, tf.int32) - 1)

    def window(attempt: tf.Tensor) -> tuple:
        return corners[attempt, 0], corners[attempt, 1], height, width

    def dominated(values: tf.Tensor) -> tf.Tensor:
        counts = tf.math.bincount(tf.cast(tf.reshape(values, [-1]), tf.int32), minlength=256, maxlength=256)
        counts = tf.math.unsorted_segment_sum(counts, tf.cast(table, tf.int32), 256)[:IGNORED]
        several = tf.math.count_nonzero(counts) > 1
        largest = tf.reduce_max(counts) / tf.maximum(tf.reduce_sum(counts), 1)
        return tf.logical_not(several & (largest < config.cat_max_ratio))

    attempt = tf.constant(0)
    values = nearest_window(label, size, window(attempt))
    if tries:
        attempt, values = tf.while_loop(
            lambda index, values: (index < tries) & dominated(values),
            lambda index, values: (index + 1, nearest_window(label, size, window(index + 1))),
            (attempt, values),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None])),
        )
    return window(attempt), values


def resize_window(read: Callable[[tuple], tf.Tensor], shape: tf.Tensor, size: tuple, window: tuple) -> tf.Tensor:
    """Return a window of an image resized bilinearly to `size`.

    Only the window is computed, from the part of the image under it. The result differs by at most one gray level from
    OpenCV's INTER_LINEAR of uint8, which uses fixed-point arithmetic.

    Args:
        read: Returns the part (top, left, bottom, right) of the image, of any number type.
        shape: int32 (height, width) of the image.
        size: (height, width) of the resized image.
        window: (top, left, height, width) in the resized image.

    Returns:
        float32 (height, width, 3) with whole numbers 0..255.
    """
    (top, below, first_row, last_row), (left, right, first_column, last_column) = (
        covered(shape[axis], size[axis], window[axis], window[axis + 2]) for axis in (0, 1)
    )
    part = read((top, left, below, right))
    # A border of repeated pixels clamps positions outside the image.
    part = tf.concat([part[:1], part, part[-1:]], axis=0)
    part = tf.concat([part[:, :1], part, part[:, -1:]], axis=1)
    box = tf.stack([first_row, first_column, last_row, last_column])

    def resized(pixels: tf.Tensor) -> tf.Tensor:
        return tf.round(tf.image.crop_and_resize(pixels[None], box[None], [0], tf.stack(window[2:]))[0])

    # Resizing is faster from float32, but a very large image would fill the memory.
    large = tf.size(part, tf.int64) // 3 > MAX_FLOAT_RATIO * tf.cast(window[2] * window[3], tf.int64)
    return tf.cond(large, lambda: resized(part), lambda: resized(tf.cast(part, tf.float32)))


def covered(length: tf.Tensor, target: tf.Tensor, start: tf.Tensor, extent: tf.Tensor) -> tuple:
    """Return the source range of a window along a resized side.

    The window has `extent` positions from `start` on; the side is resized from `length` to `target`.

    Returns:
        The first source position, the end of the range, and the first and the last of the `extent` positions as
        fractions of the range with one pixel added at both ends.
    """
    step = tf.cast(length, tf.float32) / tf.cast(target, tf.float32)
    first = (tf.cast(start, tf.float32) + 0.5) * step - 0.5
    last = first + tf.cast(extent - 1, tf.float32) * step
    low = tf.clip_by_value(tf.cast(tf.floor(first), tf.int32), 0, length - 1)
    high = tf.clip_by_value(tf.cast(tf.floor(last), tf.int32) + 1, low, length - 1)
    ends = tf.cast(high - low + 2, tf.float32)
    origin = tf.cast(low - 1, tf.float32)
    return low, high + 1, (first - origin) / ends, (last - origin) / ends


def distort(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Change brightness, contrast, saturation and hue of an image, each with probability one half.

    Contrast comes either before or after saturation and hue. Each step rounds its result like a cast to uint8.

    Args:
        image: float32 (H, W, 3) with whole numbers 0..255.
        seed: int32 (2,).

    Returns:
        float32 (H, W, 3) with whole numbers 0..255.
    """

    def maybe(purpose: int, change: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
        def apply(pixels: tf.Tensor) -> tf.Tensor:
            return tf.cond(uniform(seed, purpose + 16) < 0.5, lambda: change(pixels), lambda: pixels)

        return apply

    contrast = maybe(CONTRAST, lambda pixels: as_bytes(pixels * uniform(seed, CONTRAST, 0.5, 1.5)))
    contrast_first = uniform(seed, ORDER) < 0.5
    image = maybe(BRIGHTNESS, lambda pixels: as_bytes(pixels + uniform(seed, BRIGHTNESS, -32, 32)))(image)
    image = tf.cond(contrast_first, lambda: contrast(image), lambda: image)
    image = maybe(SATURATION, lambda pixels: saturate(pixels, uniform(seed, SATURATION, 0.5, 1.5)))(image)
    shift = tf.floor(uniform(seed, HUE, -18, 18))
    image = maybe(HUE, lambda pixels: shift_hue(pixels, shift))(image)
    return tf.cond(contrast_first, lambda: image, lambda: contrast(image))


def as_bytes(image: tf.Tensor) -> tf.Tensor:
    """Return the image clipped to 0..255 and rounded down."""
    return tf.floor(tf.clip_by_value(image, 0, 255))


# XLA fuses some fifty skips the image into one, in a seventh of the time. It may also fuse a multiplication and
# an addition without intermediate rounding, which changes one value in ten thousand by one.
@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def saturate(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Return the image with its saturation multiplied by a factor.

    The arithmetic is that of OpenCV's 8-bit HSV.
    """
    hue, saturation, value = hue_saturation_value(image)
    return red_green_blue(hue, tf.floor(tf.minimum(saturation * factor, 255)), value)


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def shift_hue(image: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Return the image with its hue shifted.

    The shift is at most 30 of the 180 units of OpenCV's 8-bit HSV.
    """
    hue, saturation, value = hue_saturation_value(image)
    return red_green_blue(hue + shift, saturation, value)


def hue_saturation_value(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Convert an RGB image to the whole numbers of OpenCV's 8-bit HSV.

    OpenCV divides with tables of 12-bit fractions. All its whole numbers are below 2^24, so float32 represents them
    exactly.

    Args:
        image: float32 (H, W, 3) with whole numbers 0..255.

    Returns:
        Hue -30..150, saturation and value 0..255, float32 (H, W) each. A hue below 0 is equivalent to the one 180
        above it.
    """
    red, green, blue = tf.unstack(tf.transpose(image, [2, 0, 1]))
    value = tf.maximum(tf.maximum(red, green), blue)
    spread = value - tf.minimum(tf.minimum(red, green), blue)
    hue = tf.where(
        tf.equal(value, red),
        green - blue,
        tf.where(tf.equal(value, green), blue - red + 2 * spread, red - green + 4 * spread),
    )
    # A zero divisor has a zero dividend, so any divisor gives 0.
    hue = tf.floor(hue * tf.round((180 << 12) / 6 / tf.maximum(spread, 1)) * 2**-12 + 0.5)
    saturation = tf.floor(spread * tf.round((255 << 12) / tf.maximum(value, 1)) * 2**-12 + 0.5)
    return hue, saturation, value


def red_green_blue(hue: tf.Tensor, saturation: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Convert OpenCV's 8-bit HSV to RGB.

    The float32 operations are in OpenCV's order. OpenCV drops fractions, so results that are whole numbers up to
    rounding errors must fall to the same side.

    Args:
        hue: float32 (H, W), -60..180.
        saturation, value: float32 (H, W), 0..255.

    Returns:
        float32 (H, W, 3) with whole numbers 0..255.
    """
    sector = tf.where(hue < 0, hue + 180, hue) * (6 / 180)
    saturation, value = saturation * (1 / 255), value * (1 / 255)
    reductions = (2 - tf.abs(sector - 3), tf.abs(sector - 2) - 1, tf.abs(sector - 4) - 1)
    planes = [tf.floor(value * (1 - saturation * tf.clip_by_value(reduction, 0, 1)) * 255) for reduction in reductions]
    return tf.transpose(tf.stack(planes), [1, 2, 0])
