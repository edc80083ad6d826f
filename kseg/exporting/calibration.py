"""Measure the ranges and means of a network's tensors on images of a split."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kseg.datasets.registry import Split
from kseg.errors import DataError
from kseg.exporting.int8_plan import Plan
from kseg.exporting.precisions import Network
from kseg.inference import prediction
from kseg.inference.prediction import Protocol
from kseg.input_pipeline import batching
from kseg.system.progress import Progress


class Calibration(NamedTuple):
    """Name the images that an int8 export is made and judged with.

    The ranges are measured on `images` images, evenly spaced in `split`, and the loss of accuracy on all of
    `test_split`.
    """

    split: Split
    images: int
    test_split: Split


class ChannelStatistics(NamedTuple):
    """Hold the smallest value, the largest value and the mean of each channel of a tensor, all (C,)."""

    smallest: np.ndarray
    largest: np.ndarray
    mean: np.ndarray


class _Observer:
    """The sums of one tensor over all calls of the network."""

    def __init__(self, channels: int):
        self.smallest = tf.Variable(tf.fill((channels,), tf.float32.max), trainable=False)
        self.largest = tf.Variable(tf.fill((channels,), tf.float32.min), trainable=False)
        self.total = tf.Variable(tf.zeros((channels,), tf.float64), trainable=False)
        self.count = tf.Variable(tf.zeros((), tf.int64), trainable=False)

    def observe(self, tensor: tf.Tensor) -> None:
        self.smallest.assign(tf.minimum(self.smallest, tf.reduce_min(tensor, (0, 1, 2))))
        self.largest.assign(tf.maximum(self.largest, tf.reduce_max(tensor, (0, 1, 2))))
        # A map has too many values for a sum in float32, but not one of its rows.
        self.total.assign_add(tf.reduce_sum(tf.cast(tf.reduce_sum(tensor, 2), tf.float64), (0, 1)))
        self.count.assign_add(tf.size(tensor, tf.int64) // tensor.shape[-1])

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(self.smallest.numpy(), self.largest.numpy(), self.total.numpy() / self.count.numpy())


def spaced_indices(total: int, count: int) -> np.ndarray:
    """Return `count` indices evenly spaced in range(total), or all of them if there are fewer."""
    return np.arange(min(count, total)) * total // min(count, total)


def calibration_images(split: Split, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and image, uint8 (H, W, 3), of `count` examples evenly spaced in a split.

    Raises DataError for an image that cannot be read.
    """
    indices = spaced_indices(len(split.names), count)
    examples = iter(batching.eval_examples(split, indices))
    for index in indices:
        try:
            yield split.names[index], next(examples)["image"].numpy()
        except tf.errors.OpError as error:
            raise batching.reading_error(split, [int(index)], error) from None


def measure(
    model: keras.Model, plan: Plan, images: Iterable[tuple[str, np.ndarray]], protocol: Protocol, progress: Progress
) -> dict[str, ChannelStatistics]:
    """Measure the tensors that a plan needs, in float32, with the whole test protocol.

    Args:
        model: The functional model of the plan.
        plan: The plan.
        images: Names and images, uint8 (H, W, 3).
        protocol: The test protocol: normalization, scales, flip, windows.
        progress: Updated with the number of measured images.

    Returns:
        The statistics of the tensors in `plan.scaled`, and of the inputs of all convolutions on codes.

    Raises:
        DataError: An image is too large, or its scores are not finite.
    """
    names = {*plan.scaled, *(step.inputs[0] for step in plan.convolutions)}
    outputs = {name: model.get_layer(name).output for name in {*names, plan.target}}
    observers = {name: _Observer(outputs[name].shape[-1]) for name in names}
    probe = keras.Model(model.input, outputs)

    def call(inputs: tf.Tensor) -> tf.Tensor:
        values = probe(inputs, training=False)
        for name, observer in observers.items():
            observer.observe(values[name])
        return values[plan.target]

    predict = prediction.predictor(Network(call, [], outputs[plan.target].shape[-1]), protocol)
    for count, (name, image) in enumerate(images, 1):
        try:
            predict(image)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        progress.update(count)
    return {name: observer.statistics() for name, observer in observers.items()}
