"""Training augmentation as pure functions of tensors and a seed, after MMSegmentation's pipeline and its ranges.

Images are float32 RGB (H, W, 3) holding whole numbers 0..255, labels uint8 (H, W), 255 ignored. A seed is an int32
pair; the same seed gives the same draws on any machine and at any time.
"""

import tensorflow as tf

from kseg.config import IGNORED, Augment
from kseg.inference import fitted_size

# One stream of random numbers for each decision, so that adding a decision leaves the others' draws alone.
SCALE, CROP, FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER = range(8)


def augment(image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, config: Augment) -> tuple[tf.Tensor, tf.Tensor]:
    """Return image and label scaled, cropped (at most to config.crop), flipped and distorted."""
    size = scaled_size(tf.shape(image), seed, config)
    rows, columns = (nearest_positions(tf.shape(label)[axis], size[axis]) for axis in (0, 1))
    label = tf.gather(tf.gather(label, rows), columns, axis=1)
    top, left, height, width = crop_window(label, seed, config)
    label = label[top:top + height, left:left + width]
    image = resize_window(image, size, (top, left, height, width))
    if config.flip:
        flipped = uniform(seed, FLIP) < config.flip
        image = tf.where(flipped, tf.reverse(image, [1]), image)
        label = tf.where(flipped, tf.reverse(label, [1]), label)
    if config.photometric:
        image = distort(image, seed)
    return image, label


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


def crop_window(label: tf.Tensor, seed: tf.Tensor, config: Augment) -> tuple:
    """Return (top, left, height, width) of a random crop in which no class fills cat_max_ratio or more.

    Up to `crop_tries` boxes are looked at; the one after them is taken as it is. A picture smaller than the crop is
    kept whole on that side.
    """
    height = tf.minimum(tf.shape(label)[0], config.crop[0])
    width = tf.minimum(tf.shape(label)[1], config.crop[1])
    tries = config.crop_tries if config.cat_max_ratio < 1 else 0
    draws = uniform(seed, CROP, shape=(tries + 1, 2))
    room = tf.cast(tf.stack([tf.shape(label)[0] - height + 1, tf.shape(label)[1] - width + 1]), tf.float32)
    # A float32 draw close to 1 may round up to the bound itself.
    corners = tf.minimum(tf.cast(draws * room, tf.int32), tf.cast(room, tf.int32) - 1)

    def one_sided(attempt: tf.Tensor) -> tf.Tensor:
        top, left = corners[attempt, 0], corners[attempt, 1]
        window = tf.reshape(label[top:top + height, left:left + width], [-1])
        counts = tf.math.bincount(tf.cast(window, tf.int32), minlength=256)[:IGNORED]
        several = tf.math.count_nonzero(counts) > 1
        largest = tf.reduce_max(counts) / tf.maximum(tf.reduce_sum(counts), 1)
        return tf.logical_not(several & (largest < config.cat_max_ratio))

    attempt = tf.constant(0)
    if tries:
        [attempt] = tf.while_loop(
            lambda index: (index < tries) & one_sided(index), lambda index: [index + 1], [attempt])
    return corners[attempt, 0], corners[attempt, 1], height, width


def resize_window(image: tf.Tensor, size: tuple, window: tuple) -> tf.Tensor:
    """Return the window (top, left, height, width) of the picture resized bilinearly to `size`, in whole numbers.

    Only the window is computed, which is most of the work saved when the picture is larger than the crop.
    """
    top, left, height, width = (tf.cast(value, tf.float32) for value in window)
    # One repeated pixel around the picture clamps the positions that fall outside it.
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    corners = []
    for axis, start, extent in ((0, top, height), (1, left, width)):
        length = tf.cast(tf.shape(image)[axis], tf.float32)
        step = length / tf.cast(size[axis], tf.float32)
        first = (start + 0.5) * step - 0.5 + 1
        # crop_and_resize counts in units of the picture's last position.
        corners.append((first / (length + 1), (first + (extent - 1) * step) / (length + 1)))
    box = tf.stack([corners[0][0], corners[1][0], corners[0][1], corners[1][1]])
    resized = tf.image.crop_and_resize(padded[None], box[None], [0], tf.stack([window[2], window[3]]))[0]
    return tf.round(resized)


def distort(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Return the image with brightness, contrast, saturation and hue each changed with probability one half.

    Contrast comes either before saturation and hue or after them. Every step ends in whole numbers 0..255, cut off as
    a cast to uint8 cuts them.
    """
    def maybe(purpose, changed):
        def apply(picture):
            chosen = uniform(seed, purpose + 16) < 0.5
            return tf.cond(chosen, lambda: tf.floor(tf.clip_by_value(changed(picture), 0, 255)), lambda: picture)
        return apply

    contrast = maybe(CONTRAST, lambda picture: picture * uniform(seed, CONTRAST, 0.5, 1.5))
    contrast_first = uniform(seed, ORDER) < 0.5
    image = maybe(BRIGHTNESS, lambda picture: picture + uniform(seed, BRIGHTNESS, -32, 32))(image)
    image = tf.cond(contrast_first, lambda: contrast(image), lambda: image)
    image = maybe(SATURATION, lambda picture: saturate(picture, uniform(seed, SATURATION, 0.5, 1.5)))(image)
    # OpenCV's 8-bit hue has 180 units to the circle.
    shift = tf.floor(uniform(seed, HUE, -18, 18)) / 180
    image = maybe(HUE, lambda picture: shift_hue(picture, shift))(image)
    return tf.cond(contrast_first, lambda: image, lambda: contrast(image))


def saturate(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Return the image with its HSV saturation multiplied by a factor."""
    hue, saturation, value = tf.unstack(tf.image.rgb_to_hsv(image / 255), axis=-1)
    saturation = tf.minimum(saturation * factor, 1)
    return tf.round(tf.image.hsv_to_rgb(tf.stack([hue, saturation, value], -1)) * 255)


def shift_hue(image: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Return the image with its HSV hue moved by a share of the circle."""
    hue, saturation, value = tf.unstack(tf.image.rgb_to_hsv(image / 255), axis=-1)
    hue = tf.math.floormod(hue + shift, 1)
    return tf.round(tf.image.hsv_to_rgb(tf.stack([hue, saturation, value], -1)) * 255)
