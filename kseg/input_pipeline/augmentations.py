"""Training augmentation as pure functions of tensors and a seed, after MMSegmentation's pipeline and its ranges.

Images are RGB (H, W, 3) holding whole numbers 0..255, of any number type before they are resized and float32 from
there on; labels are uint8 (H, W), 255 ignored. A seed is an int32 pair; the same seed gives the same draws on any
machine and at any time.
"""

from collections.abc import Callable

import tensorflow as tf

from kseg.config import IGNORED, Augment
from kseg.images.resizing import fitted_size

# One stream of random numbers for each decision, so that adding a decision leaves the others' draws alone.
SCALE, CROP, FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER = range(8)
# Pixels of a picture for each of the crop, from which on they stay bytes.
SHRUNK = 6


def augment(read: Callable[[tuple], tf.Tensor], label: tf.Tensor, table: tf.Tensor, seed: tf.Tensor,
            config: Augment) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the float32 image and the label scaled, cropped (at most to config.crop), flipped and distorted.

    `read` gives the part (top, left, bottom, right) of the picture whose label is `label`, so that nothing is decoded
    or resized but what the crop shows. Labels are raw ids before and after; `table`, uint8 (256,), says which classes
    they stand for.
    """
    size = scaled_size(tf.shape(label), seed, config)
    window, values = crop(label, size, table, seed, config)
    image = resize_window(read, tf.shape(label), size, window)
    if config.flip:
        flipped = uniform(seed, FLIP) < config.flip
        image, values = tf.cond(flipped, lambda: (tf.reverse(image, [1]), tf.reverse(values, [1])),
                                lambda: (image, values))
    if config.photometric:
        # One shape for all pictures, for which the colours' arithmetic is compiled.
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        image = tf.pad(image, [[0, config.crop[0] - height], [0, config.crop[1] - width], [0, 0]])
        image = distort(tf.ensure_shape(image, (*config.crop, 3)), seed)[:height, :width]
    return image, values


def stream(seed: tf.Tensor, purpose: int) -> tf.Tensor:
    """Return the seed of one purpose's random numbers."""
    return tf.random.experimental.stateless_fold_in(seed, purpose)


def uniform(seed: tf.Tensor, purpose: int, low: float = 0.0, high: float = 1.0, shape: tuple = ()) -> tf.Tensor:
    """Return float32 numbers from [low, high)."""
    return tf.random.stateless_uniform(shape, stream(seed, purpose), low, high, alg="philox")


def scaled_size(shape: tf.Tensor, seed: tf.Tensor, config: Augment) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the (height, width) of a picture fitted into the config's box times a random factor, ratio kept."""
    factor = uniform(seed, SCALE, *config.scale_range)
    box = tf.constant(config.scale, tf.int32) if config.scale else shape[:2]
    box = tf.cast(tf.cast(box, tf.float32) * factor, tf.int32)
    return fitted_size(shape[0], shape[1], box)


def nearest_positions(length: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Return for each of `target` positions the source position floor(position / (target / length)).

    Written as OpenCV computes it, in float64 through the inverse of the factor, to round where it rounds.
    """
    inverse = 1 / (tf.cast(target, tf.float64) / tf.cast(length, tf.float64))
    positions = tf.cast(tf.floor(tf.cast(tf.range(target), tf.float64) * inverse), tf.int32)
    return tf.minimum(positions, length - 1)


def nearest_window(label: tf.Tensor, size: tuple, window: tuple) -> tf.Tensor:
    """Return the window (top, left, height, width) of a label (H, W) that is resized to `size` by nearest positions."""
    rows, columns = (nearest_positions(tf.shape(label)[axis], size[axis])[window[axis]:window[axis] + window[axis + 2]]
                     for axis in (0, 1))
    first = columns[0]
    part = tf.gather(label, rows)[:, first:columns[-1] + 1]
    # Whole rows are copied several times faster than single numbers.
    return tf.transpose(tf.gather(tf.transpose(part), columns - first))


def crop(label: tf.Tensor, size: tuple, table: tf.Tensor, seed: tf.Tensor, config: Augment) -> tuple:
    """Return a random window (top, left, height, width) in which no class fills cat_max_ratio or more, and its label.

    The window lies in the raw label (H, W) as resized to `size`, of which only windows are made. Up to `crop_tries`
    boxes are looked at; the one after them is taken as it is. A picture smaller than the crop is kept whole on that
    side.
    """
    height, width = (tf.minimum(size[axis], config.crop[axis]) for axis in (0, 1))
    tries = config.crop_tries if config.cat_max_ratio < 1 else 0
    draws = uniform(seed, CROP, shape=(tries + 1, 2))
    room = tf.cast(tf.stack([size[0] - height + 1, size[1] - width + 1]), tf.float32)
    # A float32 draw close to 1 may round up to the bound itself.
    corners = tf.minimum(tf.cast(draws * room, tf.int32), tf.cast(room, tf.int32) - 1)

    def window(attempt: tf.Tensor) -> tuple:
        return corners[attempt, 0], corners[attempt, 1], height, width

    def one_sided(values: tf.Tensor) -> tf.Tensor:
        counts = tf.math.bincount(tf.cast(tf.reshape(values, [-1]), tf.int32), minlength=256, maxlength=256)
        counts = tf.math.unsorted_segment_sum(counts, tf.cast(table, tf.int32), 256)[:IGNORED]
        several = tf.math.count_nonzero(counts) > 1
        largest = tf.reduce_max(counts) / tf.maximum(tf.reduce_sum(counts), 1)
        return tf.logical_not(several & (largest < config.cat_max_ratio))

    attempt = tf.constant(0)
    values = nearest_window(label, size, window(attempt))
    if tries:
        attempt, values = tf.while_loop(
            lambda index, values: (index < tries) & one_sided(values),
            lambda index, values: (index + 1, nearest_window(label, size, window(index + 1))),
            (attempt, values), shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None])))
    return window(attempt), values


def resize_window(read: Callable[[tuple], tf.Tensor], shape: tf.Tensor, size: tuple, window: tuple) -> tf.Tensor:
    """Return the window (top, left, height, width) of a picture resized bilinearly to `size`, in whole numbers.

    `read` gives the part (top, left, bottom, right) of the picture of `shape`, int32 (height, width), in any number
    type; the result is float32. Only the window is computed, from the part that lies under it, which is most of the
    work saved when the picture is larger than the crop. At most one grey level from OpenCV's INTER_LINEAR of uint8,
    which computes in fixed point.
    """
    (top, below, first_row, last_row), (left, right, first_column, last_column) = (
        covered(shape[axis], size[axis], window[axis], window[axis + 2]) for axis in (0, 1))
    part = read((top, left, below, right))
    # One repeated pixel around it clamps the positions that fall outside the picture.
    part = tf.concat([part[:1], part, part[-1:]], axis=0)
    part = tf.concat([part[:, :1], part, part[:, -1:]], axis=1)
    box = tf.stack([first_row, first_column, last_row, last_column])

    def resized(pixels: tf.Tensor) -> tf.Tensor:
        return tf.round(tf.image.crop_and_resize(pixels[None], box[None], [0], tf.stack(window[2:]))[0])

    # Faster from float32, but of a very large picture that would fill the memory.
    large = tf.size(part, tf.int64) // 3 > SHRUNK * tf.cast(window[2] * window[3], tf.int64)
    return tf.cond(large, lambda: resized(part), lambda: resized(tf.cast(part, tf.float32)))


def covered(length: tf.Tensor, target: tf.Tensor, start: tf.Tensor, extent: tf.Tensor) -> tuple:
    """Return where `extent` positions from `start` on, of a side resized from `length` to `target`, get their pixels.

    That is the first source position and the one after the last, and then where the first and the last of the
    positions fall in that part with one pixel added at both ends, in units of its last position.
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
    """Return the image (H, W, 3) with brightness, contrast, saturation and hue each changed with probability one half.

    Contrast comes either before saturation and hue or after them. Every step ends in whole numbers 0..255, cut off as
    a cast to uint8 cuts them.
    """
    def maybe(purpose, changed):
        def apply(picture):
            return tf.cond(uniform(seed, purpose + 16) < 0.5, lambda: changed(picture), lambda: picture)
        return apply

    contrast = maybe(CONTRAST, lambda picture: as_bytes(picture * uniform(seed, CONTRAST, 0.5, 1.5)))
    contrast_first = uniform(seed, ORDER) < 0.5
    image = maybe(BRIGHTNESS, lambda picture: as_bytes(picture + uniform(seed, BRIGHTNESS, -32, 32)))(image)
    image = tf.cond(contrast_first, lambda: contrast(image), lambda: image)
    image = maybe(SATURATION, lambda picture: saturate(picture, uniform(seed, SATURATION, 0.5, 1.5)))(image)
    shift = tf.floor(uniform(seed, HUE, -18, 18))
    image = maybe(HUE, lambda picture: shift_hue(picture, shift))(image)
    return tf.cond(contrast_first, lambda: image, lambda: contrast(image))


def as_bytes(image: tf.Tensor) -> tf.Tensor:
    """Return the image cut off to whole numbers 0..255."""
    return tf.floor(tf.clip_by_value(image, 0, 255))


# Compiled, some fifty passes over the picture become one, in a seventh of the time. A product may then be added to
# before it is rounded, which moves one value in ten thousand by one.
@tf.function(jit_compile=True, reduce_retracing=True)
def saturate(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Return the image with its HSV saturation multiplied by a factor, as OpenCV's 8-bit HSV computes it."""
    hue, saturation, value = hue_saturation_value(image)
    return red_green_blue(hue, tf.floor(tf.minimum(saturation * factor, 255)), value)


@tf.function(jit_compile=True, reduce_retracing=True)
def shift_hue(image: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Return the image with its HSV hue moved by at most 30 of the 180 units of OpenCV's 8-bit HSV."""
    hue, saturation, value = hue_saturation_value(image)
    return red_green_blue(hue + shift, saturation, value)


def hue_saturation_value(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the whole numbers of OpenCV's 8-bit HSV, float32 (H, W): hue -30..150, saturation and value 0..255.

    A hue below 0 stands for the one 180 above it. OpenCV divides by tables of 12-bit fractions; all of its whole
    numbers stay below 2^24, so float32 holds them exactly.
    """
    red, green, blue = tf.unstack(tf.transpose(image, [2, 0, 1]))
    value = tf.maximum(tf.maximum(red, green), blue)
    spread = value - tf.minimum(tf.minimum(red, green), blue)
    hue = tf.where(tf.equal(value, red), green - blue, tf.where(
        tf.equal(value, green), blue - red + 2 * spread, red - green + 4 * spread))
    # Where a divisor is 0, so is the dividend.
    hue = tf.floor(hue * tf.round((180 << 12) / 6 / tf.maximum(spread, 1)) * 2**-12 + 0.5)
    saturation = tf.floor(spread * tf.round((255 << 12) / tf.maximum(value, 1)) * 2**-12 + 0.5)
    return hue, saturation, value


def red_green_blue(hue: tf.Tensor, saturation: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Return the RGB image, whole numbers as float32 (H, W, 3), of hues -60..180 and what else OpenCV's 8-bit HSV has.

    In OpenCV's order of float32 operations: it drops the fraction of the results, and what should be a whole number
    falls to the next lower one where OpenCV lets it fall.
    """
    sector = tf.where(hue < 0, hue + 180, hue) * (6 / 180)
    saturation, value = saturation * (1 / 255), value * (1 / 255)
    losses = (2 - tf.abs(sector - 3), tf.abs(sector - 2) - 1, tf.abs(sector - 4) - 1)
    planes = [tf.floor(value * (1 - saturation * tf.clip_by_value(loss, 0, 1)) * 255) for loss in losses]
    return tf.transpose(tf.stack(planes), [1, 2, 0])
