"""Keep an exponential moving average (EMA) of a model's weights."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


class ExponentialMovingAverage:
    """Average all floating-point variables of a model, running statistics included.

    The average starts at the values that the model has when the object is made, without a warm-up, and follows
    average += (1 - decay) * (value - average). The states of random generators are not averaged. The object must be
    made under the scope of the strategy. `variables` holds the averages, float32, by the path of the model's variable.

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; with a fixed decay as in
    Tarvainen and Valpola 2017, arXiv:1703.01780.
    """

    def __init__(self, model: keras.Model, decay: float):
        self.decay = decay
        averaged = [variable for variable in model.variables if variable.value.dtype.is_floating]
        self.sources = {variable.path: variable.value for variable in averaged}
        # Every replica has a copy, and the copies are equal because the weights are.
        self.variables = {
            path: tf.Variable(
                lambda value=value: tf.cast(value.read_value(), tf.float32),
                dtype=tf.float32,
                trainable=False,
                name=f"average/{path}",
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for path, value in self.sources.items()
        }

    def update(self) -> None:
        """Move the averages toward the weights.

        Call it in a replica context, inside the graph, after each step.
        """
        tf.distribute.get_replica_context().merge_call(self._update_replicas)

    def _update_replicas(self, strategy: tf.distribute.Strategy) -> None:
        # With group=False no values are sent between replicas.
        for path, average in self.variables.items():
            strategy.extended.update(average, self._update_variable, args=(self.sources[path],), group=False)

    def _update_variable(self, average: tf.Variable, value: tf.Tensor) -> None:
        average.assign_add((1 - self.decay) * (tf.cast(value, tf.float32) - average))

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Exchange the weights and the averages, bit by bit, and exchange them back on exit."""
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
