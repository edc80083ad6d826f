"""A trained model as a function from a picture to its class ids, and to the probabilities of its classes.

    import kseg
    segment = kseg.load("runs/camvid")
    ids = segment("street.jpg")
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from kseg.config import Config
from kseg.errors import DataError
from kseg.images import drawing, image_files
from kseg.inference import trained_model
from kseg.inference.prediction import (Protocol, predict_scores, predictor, probabilities, protocol_of, require_finite,
                                       require_size)

if TYPE_CHECKING:
    from kseg.datasets.registry import Dataset


def scorer(model: keras.Model, protocol: Protocol) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a function from a uint8 RGB picture (H, W, 3) to its uint8 class ids (H, W) and class probabilities.

    Those are float32 (H, W, C): the softmax of the scores whose largest is the class, or with test-time augmentation
    that averages probabilities, their mean. All are in memory at once, 4 * H * W * C bytes several times over. Raises
    DataError for a picture that is too large to be looked at as a whole, or whose scores are not finite.
    """
    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8)])
    def score(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = tf.shape(images)
        scores = predict_scores(model, images, (size[1], size[2]), protocol)
        ids = tf.cast(tf.argmax(scores, axis=-1, output_type=tf.int32), tf.uint8)
        unsure = tf.reduce_sum(tf.cast(tf.reduce_any(~tf.math.is_finite(scores), axis=-1), tf.int64))
        return ids[0], probabilities(scores, protocol.evaluate)[0], unsure

    def score_picture(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        require_size(*image.shape[:2], protocol.evaluate)
        ids, shares, unsure = (part.numpy() for part in score(image[None]))
        require_finite(int(unsure), ids.size)
        return ids, shares

    return score_picture


def as_picture(value: np.ndarray | Image.Image | Path | str) -> np.ndarray:
    """Return a picture as uint8 RGB (H, W, 3): an array as it is, a PIL image converted, a path read.

    Raises DataError for a file that cannot be read, and for arrays of another type or shape: numbers of 0..1 would
    look like black pictures. That an array is BGR, as OpenCV's are, cannot be seen; turn it: image[..., ::-1].
    """
    if isinstance(value, (str, Path)):
        return image_files.read_image(value)
    if isinstance(value, Image.Image):
        return image_files.as_rgb(value, "the PIL image")
    if not isinstance(value, np.ndarray):
        raise DataError(f"an image must be a path, a PIL image or a NumPy array, got {type(value).__name__}")
    if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3 and value.size:
        return value
    hint = ""
    if value.dtype != np.uint8:
        hint = "; numbers of 0..1 must be multiplied by 255 and rounded" if value.dtype.kind == "f" else ""
    elif value.ndim == 2 or value.shape[2:] == (1,):
        hint = "; a grey picture must be repeated three times along a last axis"
    elif value.shape[2:] == (4,):
        hint = "; leave the fourth channel away: image[..., :3]"
    elif value.ndim == 4:
        hint = "; one picture at a time"
    raise DataError(f"an image must be uint8 RGB (height, width, 3), got {value.dtype} {value.shape}{hint}")


class Segmenter:
    """A trained model, called with a picture of any size: a path, a PIL image, or uint8 RGB (H, W, 3).

    `classes` are the names of its ids, `palette` their RGB colours, `config` the run's. Calls raise DataError for
    pictures that `as_picture` refuses.
    """

    def __init__(self, model: keras.Model, config: Config, dataset: "Dataset"):
        self.classes, self.palette, self.config = dataset.classes, dataset.palette, config
        protocol = protocol_of(config)
        self._ids, self._scores = predictor(model, protocol), scorer(model, protocol)

    def __call__(self, image: np.ndarray | Image.Image | Path | str) -> np.ndarray:
        """Return the picture's class ids, uint8 (H, W)."""
        return self._ids(as_picture(image))

    def scores(self, image: np.ndarray | Image.Image | Path | str) -> np.ndarray:
        """Return the probability of each class, float32 (H, W, C)."""
        return self._scores(as_picture(image))[1]

    def overlay(self, image: np.ndarray | Image.Image | Path | str, opacity: float = 0.5) -> np.ndarray:
        """Return the picture mixed with its classes' colours, uint8 (H, W, 3); `opacity` is the colours' share."""
        picture = as_picture(image)
        return drawing.overlay(picture, self._ids(picture), self.palette, opacity)


def load_segmenter(directory: Path | str, weights: Path | str | None = None, tta: bool = False) -> Segmenter:
    """Return the model of a working directory of kseg.train, as `trained_model.load_trained` describes it."""
    workdir, weights = Path(directory).expanduser(), Path(weights).expanduser() if weights is not None else None
    return Segmenter(*trained_model.load_trained(workdir, weights, tta))
