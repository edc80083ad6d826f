"""Apply the KerasCV layers in augment.extra, which change colors but no positions; none by default.

KerasCV draws from a stateful generator, whose numbers depend on all previous draws. Here the draws are stateless
functions of the seed, and only the layers' arithmetic is used.
"""

from collections.abc import Callable

import tensorflow as tf

from kseg.errors import ConfigError, unknown
from kseg.input_pipeline import augmentations

# Streams of random numbers; those of kseg.input_pipeline.augmentations are below 32.
BLUR, SHARPNESS = 32, 33
# Without a seed, or with 0, a layer creates TensorFlow's global generator, which train.deterministic forbids.
UNUSED_SEED = 1
Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def build_extra_augmentations(names: tuple[str, ...]) -> Change:
    """Return a function that augments an image with KerasCV layers.

    It takes a float32 image 0..255 (H, W, 3) and an int32 seed pair.

    It applies the named layers in order. Raises ConfigError for an unknown name, or if KerasCV is not installed.
    """
    for name in names:
        if name not in LAYERS:
            raise ConfigError(unknown("layer in augment.extra", name, LAYERS))
    changes = [LAYERS[name]() for name in names]

    def change(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        for apply in changes:
            image = tf.round(tf.clip_by_value(apply(image, seed), 0, 255))
        return image

    return change


def gaussian_blur() -> Change:
    """Return a blur with a random Gaussian (RandomGaussianBlur).

    The kernel has 5x5 pixels and a standard deviation uniform in 0..1 pixel.
    """
    layer = _layers().RandomGaussianBlur(kernel_size=5, factor=(0.0, 1.0), seed=UNUSED_SEED, dtype="float32")

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        # The kernel divides by the deviation, which must not be 0.
        kernel = layer.get_kernel(augmentations.uniform(seed, BLUR, 1e-3, 1.0), 5)
        return layer.augment_image(image, transformation=(kernel[:, None, None, None], kernel[None, :, None, None]))

    return apply


def sharpness() -> Change:
    """Return a blend with the smoothed image (RandomSharpness).

    The image is smoothed over 3x3 pixels; its weight is uniform in 0..0.5.
    """
    layer = _layers().RandomSharpness(factor=(0.0, 0.5), value_range=(0, 255), seed=UNUSED_SEED, dtype="float32")

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return layer.augment_images(image[None], augmentations.uniform(seed, SHARPNESS, 0.0, 0.5, (1, 1, 1, 1)))[0]

    return apply


def _layers():
    try:
        import keras_cv
    except ImportError as error:
        raise ConfigError(f"augment.extra needs KerasCV, part of the extra [dev]: {error}") from None
    return keras_cv.layers


LAYERS = {"gaussian_blur": gaussian_blur, "sharpness": sharpness}
