"""Count the pixels of a split: every image at its original size, on all replicas of all hosts.

All sums are int64, so the result has the same bits for any number of replicas and hosts.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kseg.config.sections import IGNORED
from kseg.datasets.registry import Split
from kseg.errors import DataError, WeightsError
from kseg.evaluation import confusion
from kseg.evaluation.metrics import BOUNDARY_WIDTHS
from kseg.inference.prediction import Protocol, predict_checked, require_size
from kseg.input_pipeline import batching
from kseg.system.progress import Progress

# Number of images that an error about non-finite scores lists.
LISTED_IMAGES = 5


class Counts(NamedTuple):
    """The pixel counts of a split.

    `bands` is int64 (bands, C, C): the matrices of `confusion.banded_confusion`, summed over all images. `names` are
    the images in the order of the split. `hits`, `truth` and `predicted` are int64 (N, C): for each image and class the
    labeled pixels that are predicted correctly, that the labels assign to the class, and that are predicted as the
    class.
    """

    bands: np.ndarray
    names: tuple[str, ...]
    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """The confusion matrix of all pixels, int64 (C, C); rows are labels, columns are predictions."""
        return self.bands.sum(axis=0)


class Example(NamedTuple):
    """An image with its label and its prediction.

    `image` is uint8 (H, W, 3), `label` and `prediction` are class ids, uint8 (H, W). They may be on a GPU.
    """

    image: tf.Tensor
    label: tf.Tensor
    prediction: tf.Tensor


class Counter:
    """Counts splits with one model, whose weights may change between two splits.

    Args:
        model: A model built under the scope of `strategy`.
        protocol: How the model predicts an image.
        classes: Number of classes C.
        strategy: The replicas that count.
        deterministic: Whether TensorFlow's operations were made deterministic. It then refuses to count on a GPU, so
            the maps are counted on the CPU.
    """

    def __init__(
        self,
        model: keras.Model,
        protocol: Protocol,
        classes: int,
        strategy: tf.distribute.Strategy,
        deterministic: bool = False,
    ):
        self.model, self.protocol, self.classes, self.strategy = model, protocol, classes, strategy
        self.deterministic = deterministic
        with strategy.scope():
            # Each replica adds to its own copy; reading the variable sums the copies.
            self.bands = tf.Variable(
                tf.zeros((len(BOUNDARY_WIDTHS) + 1, classes, classes), tf.int64),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
        self.hosts = 1
        self.step: Callable | None = None

    def count(
        self, split: Split, progress: Progress | None = None, examine: Callable[[int, Example], None] | None = None
    ) -> Counts:
        """Count a whole split.

        Args:
            split: The split; on several hosts the same one on each host.
            progress: Updated with the number of counted images.
            examine: Called with the index in the split and the example of each image that this host counts.

        Returns:
            The counts, the same on every host.

        Raises:
            DataError: An image or label cannot be read, is too large, or has pixels outside the classes.
            WeightsError: The model's scores are not finite; the message lists the images.
        """
        names = split.names
        # The columns are hits, labels and predictions of each class, labeled pixels, pixels without finite scores, and
        # how often the image was counted.
        table = np.zeros((len(names), 3 * self.classes + 3), np.int64)
        self._reset()
        seen = 0
        for rows in self._rounds(split):
            for index, row, example in rows:
                table[index] += row.numpy()
                if examine:
                    examine(index, example)
            seen = min(seen + self.strategy.num_replicas_in_sync, len(names))
            if progress:
                progress.update(seen)
        table = self._sum_over_hosts(table)
        labeled, nonfinite, times = table[:, -3:].T
        require_finite_scores(names, nonfinite)
        if not (times == 1).all():
            raise DataError(
                f"only {int((times == 1).sum())} of the {len(names)} images of split {split.name!r} were "
                "counted exactly once"
            )
        hits, truth, predicted = np.split(table[:, :-3], 3, axis=1)
        if not (truth.sum(axis=1) == labeled).all():
            index = int(np.argmax(truth.sum(axis=1) != labeled))
            raise DataError(
                f"{names[index]}: {labeled[index] - truth[index].sum()} pixels have a label or a "
                f"prediction outside the {self.classes} classes"
            )
        counts = Counts(self.bands.numpy(), names, hits, truth, predicted)
        assert (counts.matrix.sum(axis=1) == truth.sum(axis=0)).all(), "the images do not add up to the split"
        return counts

    def _rounds(self, split: Split) -> Iterator[list[tuple[int, tf.Tensor, Example]]]:
        """Count one image on each replica at a time; yield (index, table row, example) of the images of this host."""
        total, replicas = len(split.names), self.strategy.num_replicas_in_sync
        rounds = -(-total // replicas)
        local_indices = np.zeros(0, np.int64)

        def examples(context: tf.distribute.InputContext) -> tf.data.Dataset:
            nonlocal local_indices
            self.hosts = context.num_input_pipelines
            # All replicas take part in the last round: eval_examples turns index -1 into an image without labels.
            indices = np.concatenate([np.arange(total), np.full(rounds * replicas - total, -1)])
            local_indices = np.split(indices.reshape(rounds, replicas), self.hosts, axis=1)[context.input_pipeline_id]
            return batching.eval_examples(split, local_indices.ravel())

        distributed = self.strategy.distribute_datasets_from_function(examples)
        self.step = self.step or self._make_step(distributed.element_spec)
        iterator = iter(distributed)
        for number in range(rounds):
            try:
                element = next(iterator)
            except tf.errors.OpError as error:
                indices = [int(index) for index in local_indices[number] if index >= 0]
                raise batching.reading_error(split, indices, error) from None
            images, labels = (self.strategy.experimental_local_results(element[key]) for key in ("image", "label"))
            for index, image in zip(local_indices[number], images):
                self._require_size(split.names[index], image.shape)
            rows, ids = map(self.strategy.experimental_local_results, self.step(element))
            yield [
                (int(index), row, Example(*example))
                for index, row, *example in zip(local_indices[number], rows, images, labels, ids)
                if index >= 0
            ]

    def _require_size(self, name: str, shape: tf.TensorShape) -> None:
        try:
            require_size(shape[0], shape[1], self.protocol.evaluate)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None

    def _make_step(self, element_spec: dict) -> Callable:
        """Compile the function that counts an image on each replica.

        It returns the row of the table and the class ids, uint8 (H, W), of each replica's image.
        """

        def count(example: dict) -> tuple[tf.Tensor, tf.Tensor]:
            label = example["label"]
            size = tf.shape(label)
            ids, nonfinite = predict_checked(self.model, example["image"][None], (size[0], size[1]), self.protocol)
            with tf.device("CPU:0") if self.deterministic else contextlib.nullcontext():
                bands = confusion.banded_confusion(label[None], ids, self.classes)
            self.bands.assign_add(bands)
            matrix = tf.reduce_sum(bands, axis=0)
            labeled = tf.math.count_nonzero(tf.not_equal(label, IGNORED))
            # tf.linalg.diag_part has no GPU kernel for int64.
            hits = tf.reshape(matrix, [-1])[:: self.classes + 1]
            row = tf.concat(
                [
                    hits,
                    tf.reduce_sum(matrix, 1),
                    tf.reduce_sum(matrix, 0),
                    labeled[None],
                    tf.cast(nonfinite, tf.int64),
                    [1],
                ],
                axis=0,
            )
            # A slice of a map would go through the memory of the host.
            return row, tf.squeeze(tf.cast(ids, tf.uint8), 0)

        # Nothing in it needs AutoGraph, whose conversion takes seconds.
        return tf.function(
            lambda example: self.strategy.run(count, args=(example,)), input_signature=[element_spec], autograph=False
        )

    @tf.function(autograph=False)
    def _reset(self) -> None:
        self.strategy.run(lambda: self.bands.assign(tf.zeros_like(self.bands)))

    def _sum_over_hosts(self, table: np.ndarray) -> np.ndarray:
        if self.hosts == 1:
            return table
        # The reduction runs over replicas: one replica of each host holds its table, the others hold zeros.
        local = self.strategy.num_replicas_in_sync // self.hosts
        tables = iter([table, *[np.zeros_like(table)] * (local - 1)])
        values = self.strategy.experimental_distribute_values_from_function(lambda context: tf.constant(next(tables)))
        return self.strategy.reduce("sum", values, axis=None).numpy()


def require_finite_scores(names: tuple[str, ...], pixels: np.ndarray) -> None:
    """Raise WeightsError if images have pixels without finite scores.

    Args:
        names: Names of the N images.
        pixels: int64 (N,), number of such pixels in each image.
    """
    affected = np.flatnonzero(pixels)
    if not len(affected):
        return
    lines = [f"  {names[index]}: {pixels[index]:,} pixels" for index in affected[:LISTED_IMAGES]]
    more = [f"  and {len(affected) - LISTED_IMAGES} more images"] if len(affected) > LISTED_IMAGES else []
    raise WeightsError(
        "\n".join(
            [
                f"evaluation aborted: the model's scores are nan or infinite in {len(affected)} of {len(names)} "
                f"images, {pixels.sum():,} pixels:",
                *lines,
                *more,
            ]
        )
    )
