"""Further augmentation by KerasCV's layers, off unless augment.extra names some: colours change, places do not.

KerasCV draws from a stateful generator, whose numbers depend on what was drawn before. The draws here are our own, from
(seed, step), and handed to the layers' own arithmetic.
"""

from collections.abc import Callable

import tensorflow as tf

from kseg.errors import ConfigError, unknown
from kseg.input_pipeline import augmentations

# Streams of random numbers beside kseg.input_pipeline.augmentations' own, which end below 32.
BLUR, SHARPNESS = 32, 33
# A layer without a seed, or with 0, takes TensorFlow's global generator, which train.deterministic forbids to make.
UNUSED_SEED = 1
Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def build(names: tuple[str, ...]) -> Change:
    """Return a function from a float32 image 0..255 (H, W, 3) and an int32 seed pair to the image changed.

    The layers follow each other in the order of their names. Raises ConfigError for unknown names and where KerasCV is
    not installed.
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
    """Blur by a Gaussian of 5x5 pixels whose deviation is uniform in 0..1 pixel (RandomGaussianBlur)."""
    layer = _layers().RandomGaussianBlur(kernel_size=5, factor=(0.0, 1.0), seed=UNUSED_SEED, dtype="float32")

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        # The kernel divides by the deviation.
        kernel = layer.get_kernel(augmentations.uniform(seed, BLUR, 1e-3, 1.0), 5)
        return layer.augment_image(image, transformation=(kernel[:, None, None, None], kernel[None, :, None, None]))

    return apply


def sharpness() -> Change:
    """Blend with a share, uniform in 0..0.5, of the picture smoothed over 3x3 pixels (RandomSharpness)."""
    layer = _layers().RandomSharpness(factor=(0.0, 0.5), value_range=(0, 255), seed=UNUSED_SEED, dtype="float32")

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return layer.augment_images(image[None], augmentations.uniform(seed, SHARPNESS, 0.0, 0.5, (1, 1, 1, 1)))[0]

    return apply


def _layers():
    try:
        import keras_cv
    except ImportError as error:
        raise ConfigError(f"augment.extra needs KerasCV, which the extra [dev] installs: {error}") from None
    return keras_cv.layers


LAYERS = {"gaussian_blur": gaussian_blur, "sharpness": sharpness}
