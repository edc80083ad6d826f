"""Counting a split: every image at its own size, on every replica of every host, in whole numbers.

The sums are int64, so that they have the same bits however many replicas and hosts share the images.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kseg.config.sections import IGNORED
from kseg.datasets.registry import Split
from kseg.errors import DataError, WeightsError
from kseg.evaluation import confusion
from kseg.inference.prediction import Protocol, predict_checked, require_size
from kseg.input_pipeline import batching
from kseg.system.progress import Progress

# Said in full of so many images whose scores are not finite.
NAMED = 5


class Counts(NamedTuple):
    """What was counted of a split.

    `bands` is int64 (bands, C, C), metrics.counts' confusion matrices summed over all images. For each image, in the
    split's order: its name, and per class the pixels that were right, that the label has and that were predicted,
    int64 (N, C) each.
    """

    bands: np.ndarray
    names: tuple[str, ...]
    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """The int64 (C, C) confusion matrix, rows truth and columns prediction."""
        return self.bands.sum(axis=0)


class Counter:
    """Counts splits with one model, whose weights may change between two of them."""

    def __init__(self, model: keras.Model, protocol: Protocol, classes: int, strategy: tf.distribute.Strategy):
        """Take a model that was built under the strategy's scope."""
        self.model, self.protocol, self.classes, self.strategy = model, protocol, classes, strategy
        with strategy.scope():
            # Each replica adds to its own; reading gives the sum over all.
            self.bands = tf.Variable(
                tf.zeros((len(confusion.BOUNDARY_WIDTHS) + 1, classes, classes), tf.int64), trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ, aggregation=tf.VariableAggregation.SUM)
        self.hosts = 1
        self.step: Callable | None = None

    def count(self, split: Split, progress: Progress | None = None) -> Counts:
        """Return the counts of a whole split, the same on every host.

        Raises DataError where an example cannot be read, and WeightsError naming the images where scores are not
        finite. Asserts that each image of the split was counted exactly once.
        """
        names = split.names
        # Per image: hits, truth and predictions of each class, labelled pixels, pixels without a class, times seen.
        table = np.zeros((len(names), 3 * self.classes + 3), np.int64)
        self._reset()
        seen = 0
        for shares in self._rounds(split):
            for index, row in shares:
                table[index] += row
            seen = min(seen + self.strategy.num_replicas_in_sync, len(names))
            if progress:
                progress.update(seen)
        table = self._over_hosts(table)
        labelled, bad, times = table[:, -3:].T
        require_finite_scores(names, bad)
        if not (times == 1).all():
            raise DataError(f"{int((times > 0).sum())} of the {len(names)} images of split {split.name!r} were counted")
        hits, truth, predicted = np.split(table[:, :-3], 3, axis=1)
        if not (truth.sum(axis=1) == labelled).all():
            index = int(np.argmax(truth.sum(axis=1) != labelled))
            raise DataError(f"{names[index]}: {labelled[index] - truth[index].sum()} pixels have a label or a "
                            f"prediction outside of the {self.classes} classes")
        counts = Counts(self.bands.numpy(), names, hits, truth, predicted)
        assert (counts.matrix.sum(axis=1) == truth.sum(axis=0)).all(), "the images do not add up to the split"
        return counts

    def _rounds(self, split: Split) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Yield (index, row) of the images that this host's replicas have counted, one round after another."""
        total, replicas = len(split.names), self.strategy.num_replicas_in_sync
        rounds = -(-total // replicas)
        mine = np.zeros(0, np.int64)

        def examples(context: tf.distribute.InputContext) -> tf.data.Dataset:
            nonlocal mine
            self.hosts = context.num_input_pipelines
            # The last round's missing images are -1, which eval_examples makes empty ones of: all replicas take part.
            indices = np.concatenate([np.arange(total), np.full(rounds * replicas - total, -1)])
            mine = np.split(indices.reshape(rounds, replicas), self.hosts, axis=1)[context.input_pipeline_id]
            return batching.eval_examples(split, mine.ravel())

        distributed = self.strategy.distribute_datasets_from_function(examples)
        self.step = self.step or self._make_step(distributed.element_spec)
        iterator = iter(distributed)
        for number in range(rounds):
            try:
                element = next(iterator)
            except tf.errors.OpError as error:
                indices = [int(index) for index in mine[number] if index >= 0]
                raise batching.reading_error(split, indices, error) from None
            for index, image in zip(mine[number], self.strategy.experimental_local_results(element["image"])):
                self._require_size(split.names[index], image.shape)
            rows = self.strategy.experimental_local_results(self.step(element))
            yield [(int(index), np.asarray(row)) for index, row in zip(mine[number], rows) if index >= 0]

    def _require_size(self, name: str, shape: tf.TensorShape) -> None:
        try:
            require_size(shape[0], shape[1], self.protocol.evaluate)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None

    def _make_step(self, element_spec) -> Callable:
        """Return the compiled function that counts an image on each replica and returns their rows of the table."""

        def count(example: dict) -> tf.Tensor:
            label = example["label"]
            size = tf.shape(label)
            ids, bad = predict_checked(self.model, example["image"][None], (size[0], size[1]), self.protocol)
            counts = confusion.banded_confusion(label[None], ids, self.classes)
            self.bands.assign_add(counts)
            matrix = tf.reduce_sum(counts, axis=0)
            labelled = tf.math.count_nonzero(tf.not_equal(label, IGNORED))
            return tf.concat([tf.linalg.diag_part(matrix), tf.reduce_sum(matrix, 1), tf.reduce_sum(matrix, 0),
                              labelled[None], tf.cast(bad, tf.int64), [1]], axis=0)

        return tf.function(lambda example: self.strategy.run(count, args=(example,)), input_signature=[element_spec])

    @tf.function
    def _reset(self) -> None:
        self.strategy.run(lambda: self.bands.assign(tf.zeros_like(self.bands)))

    def _over_hosts(self, table: np.ndarray) -> np.ndarray:
        """Return the sum of a table over all hosts."""
        if self.hosts == 1:
            return table
        # One replica of each host brings it.
        local = self.strategy.num_replicas_in_sync // self.hosts
        shares = iter([table, *[np.zeros_like(table)] * (local - 1)])
        values = self.strategy.experimental_distribute_values_from_function(lambda context: tf.constant(next(shares)))
        return self.strategy.reduce("sum", values, axis=None).numpy()


def require_finite_scores(names: tuple[str, ...], pixels: np.ndarray) -> None:
    """Raise WeightsError where images have pixels without finite scores, with their number and the first names."""
    bad = np.flatnonzero(pixels)
    if not len(bad):
        return
    lines = [f"  {names[index]}: {pixels[index]:,} pixels" for index in bad[:NAMED]]
    more = [f"  and {len(bad) - NAMED} more images"] if len(bad) > NAMED else []
    raise WeightsError("\n".join([
        f"the model's scores are nan or infinite in {len(bad)} of {len(names)} images, {pixels.sum():,} pixels; "
        "no class can be told there, and nothing was measured:", *lines, *more]))
