"""Segment single images with a trained model; `kseg.load` returns its Segmenter."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from kseg.config import Config
from kseg.errors import DataError
from kseg.images import drawing, image_files, picture_reader
from kseg.inference import trained_model
from kseg.inference.prediction import (
    Protocol,
    predict_scores,
    predictor,
    probabilities,
    protocol_of,
    require_finite,
    require_size,
)

if TYPE_CHECKING:
    from kseg.datasets.registry import Dataset


def probability_predictor(
    model: keras.Model, protocol: Protocol
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a function that predicts class ids and class probabilities of one image of any size.

    All probabilities are in memory at once, several times 4 * H * W * C bytes.

    Args:
        model: Maps normalized images to {"main": logits}.
        protocol: The prediction protocol.

    Returns:
        A function from an RGB image, uint8 of shape (H, W, 3), to its class ids, uint8 of shape (H, W), and class
        probabilities, float32 of shape (H, W, C). These are the softmax of the scores, or the mean probabilities of a
        test-time augmentation that averages probabilities. The function raises DataError if the image is too large for
        the network, or if scores are not finite.
    """

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8)], autograph=False)
    def predict(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = tf.shape(images)
        scores = predict_scores(model, images, (size[1], size[2]), protocol)
        ids = tf.cast(tf.argmax(scores, axis=-1, output_type=tf.int32), tf.uint8)
        non_finite = tf.reduce_sum(tf.cast(tf.reduce_any(~tf.math.is_finite(scores), axis=-1), tf.int64))
        return ids[0], probabilities(scores, protocol.evaluate)[0], non_finite

    def predict_image(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        require_size(*image.shape[:2], protocol.evaluate)
        ids, class_probabilities, non_finite = (part.numpy() for part in predict(image[None]))
        require_finite(int(non_finite), ids.size)
        return ids, class_probabilities

    return predict_image


def as_rgb_array(image: np.ndarray | Image.Image | Path | str, value_range: Sequence[float] = ()) -> np.ndarray:
    """Return an image as an RGB array, uint8 of shape (H, W, 3).

    A float array in 0..1 is rejected, because it would look like a black image. BGR arrays, which OpenCV returns,
    cannot be recognized; convert them with image[..., ::-1].

    Args:
        image: An RGB array, a PIL image or the path of an image file.
        value_range: (low, high): the values of images with more than 8 bits that become 0 and 255; may be empty.

    Raises:
        DataError: the file cannot be read, or the array has another type or shape.
    """
    if isinstance(image, (str, Path)):
        return image_files.read_image(image, value_range)
    if isinstance(image, Image.Image):
        return picture_reader.as_rgb(image, "the PIL image", value_range)
    if not isinstance(image, np.ndarray):
        raise DataError(f"an image must be a path, a PIL image or a NumPy array, got {type(image).__name__}")
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    hint = ""
    if image.dtype != np.uint8:
        hint = "; multiply values in 0..1 by 255 and round them" if image.dtype.kind == "f" else ""
    elif image.ndim == 2 or image.shape[2:] == (1,):
        hint = "; repeat a gray image three times along the last axis"
    elif image.shape[2:] == (4,):
        hint = "; drop the fourth channel: image[..., :3]"
    elif image.ndim == 4:
        hint = "; pass one image at a time"
    raise DataError(f"an image must be uint8 RGB (height, width, 3), got {image.dtype} {image.shape}{hint}")


class Segmenter:
    """Predict the class ids of an image of any size when called.

    Images are RGB arrays (uint8 of shape (H, W, 3)), PIL images or paths. Calls and methods raise DataError if an image
    cannot be read, has another type or shape, or is too large for the network, and if scores are not finite.

    Args:
        model: The trained model.
        config: Its config.
        dataset: The record of the dataset that it was trained on.

    Attributes:
        classes: Names of the classes by id.
        palette: RGB colors 0..255 of the classes.
        config: The config of the training run.

    Example:
        >>> from kseg.inference.segmenter import load_segmenter
        >>> segment = load_segmenter(workdir)
        >>> ids = segment(image)
        >>> probabilities = segment.scores(image)
        >>> ids.shape == probabilities.shape[:2], probabilities.shape[2] == len(segment.classes)
        (True, True)
        >>> segment.overlay(image, opacity=0.3).dtype
        dtype('uint8')
    """

    def __init__(self, model: keras.Model, config: Config, dataset: "Dataset"):
        self.classes, self.palette, self.config = dataset.classes, dataset.palette, config
        protocol = protocol_of(config)
        self._predict_ids = predictor(model, protocol)
        self._predict_probabilities = probability_predictor(model, protocol)

    def __call__(self, image: np.ndarray | Image.Image | Path | str) -> np.ndarray:
        """Return the class ids, uint8 of shape (H, W)."""
        return self._predict_ids(as_rgb_array(image, self.config.data.value_range))

    def scores(self, image: np.ndarray | Image.Image | Path | str) -> np.ndarray:
        """Return the class probabilities, float32 of shape (H, W, C)."""
        return self._predict_probabilities(as_rgb_array(image, self.config.data.value_range))[1]

    def overlay(self, image: np.ndarray | Image.Image | Path | str, opacity: float = 0.5) -> np.ndarray:
        """Return the image blended with the colors of its classes.

        Args:
            image: The image.
            opacity: Weight of the class color, 0..1.

        Returns:
            The blended image, uint8 of shape (H, W, 3).
        """
        pixels = as_rgb_array(image, self.config.data.value_range)
        return drawing.overlay(pixels, self._predict_ids(pixels), self.palette, opacity)


def load_segmenter(directory: Path | str, weights: Path | str | None = None, tta: bool = False) -> Segmenter:
    """Load the model of a working directory of kseg.train.

    Args:
        directory: The working directory.
        weights: A file of weights to load instead of the best validated ones.
        tta: Whether to enable test-time augmentation.

    Raises:
        WorkdirError: the working directory cannot be read, or contains no validated weights yet.
        WeightsError: the weights cannot be read, or do not fit the model.
    """
    workdir, weights = Path(directory).expanduser(), Path(weights).expanduser() if weights is not None else None
    return Segmenter(*trained_model.load_trained(workdir, weights, tta))
