"""A moving average of a model's weights, which takes their place in evaluation and export."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


class Average:
    """An exponential moving average of all floating variables of a model, running statistics included.

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; with a fixed decay as in
    Tarvainen and Valpola 2017, arXiv:1703.01780. It starts from the values that the model has when it is made, and
    there is no warm-up: average += (1 - decay) * (value - average). States of random generators are not averaged.

    Make it under the strategy's scope. `variables` are float32 variables by the paths of the model's own, for the
    checkpoint.
    """

    def __init__(self, model: keras.Model, decay: float):
        self.decay = decay
        averaged = [variable for variable in model.variables if variable.value.dtype.is_floating]
        self.sources = {variable.path: variable.value for variable in averaged}
        # Each replica keeps its own, and all are equal, since the weights are.
        self.variables = {
            path: tf.Variable(lambda value=value: tf.cast(value.read_value(), tf.float32), dtype=tf.float32,
                              trainable=False, name=f"average/{path}",
                              aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for path, value in self.sources.items()}

    def update(self) -> None:
        """Move the averages towards the weights; in a replica context, inside the graph, after each step."""
        tf.distribute.get_replica_context().merge_call(self._update)

    def _update(self, strategy: tf.distribute.Strategy) -> None:
        # No values go from one replica to another.
        for path, average in self.variables.items():
            strategy.extended.update(average, self._move, args=(self.sources[path],), group=False)

    def _move(self, average: tf.Variable, value: tf.Tensor) -> None:
        average.assign_add((1 - self.decay) * (tf.cast(value, tf.float32) - average))

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Exchange weights and averages, bit by bit, for evaluation and saving, and back at the end."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for path, average in self.variables.items():
            source = self.sources[path]
            value, averaged = source.read_value(), average.read_value()
            source.assign(tf.cast(averaged, source.dtype))
            average.assign(tf.cast(value, tf.float32))
