"""Run the compiled training step: batches in, updated weights and the losses of the global batch out."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from kseg.config import Config
from kseg.input_pipeline.normalization import normalize_batch
from kseg.training import graph_passes, losses
from kseg.training.ema import ExponentialMovingAverage


class StepResults(NamedTuple):
    """Hold the results of one call; they stay on the device until they are read.

    losses: float32 (steps, names), in the order of `Steps.names`.
    waited: float64 scalar, the seconds that the steps waited for a batch; nan with train.deterministic.
    stop_requests: int32 scalar, the number of replicas whose host requested a stop.
    """

    losses: tf.Tensor
    waited: tf.Tensor
    stop_requests: tf.Tensor


class Steps:
    """Take training steps on all replicas, one or several in a call of one compiled function.

    Sums are added up over the replicas and divided by the global counts, so that the results depend neither on the
    number of replicas that share the batch nor on where its ignored pixels are.

    `names` are the names of the losses: "loss", one for each output of the model, and with mixed_float16 "skipped",
    which is 1.0 if some gradients were not finite and the step left weights and momentum unchanged.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        config: Config,
        strategy: tf.distribute.Strategy,
        ema: ExponentialMovingAverage | None = None,
    ):
        """Take what was built under the scope of the strategy.

        The batch of each replica must be divisible by train.accumulate.
        """
        self.model, self.optimizer, self.config, self.ema = model, optimizer, config, ema
        self.strategy, settings = strategy, config.train
        self.terms = tuple(model.output)
        self.float16 = settings.precision == "mixed_float16"
        self.names = ("loss", *self.terms, *(("skipped",) if self.float16 else ()))
        with strategy.scope():
            self.scale = LossScale(settings.loss_scale, settings.loss_scale_growth)
            # Each replica accumulates its own gradients and is the only one to read them.
            self.gradients = (
                [
                    tf.Variable(
                        tf.zeros(variable.shape),
                        trainable=False,
                        synchronization=tf.VariableSynchronization.ON_READ,
                        aggregation=tf.VariableAggregation.SUM,
                    )
                    for variable in model.trainable_variables
                ]
                if settings.accumulate > 1
                else []
            )
        # XLA cannot compile the loop over batches, only the work on one batch. Without _noinline, operations that need
        # no batch, such as counting the step, would run even if the batch cannot be read.
        # AutoGraph would take a fifth of the tracing to convert code that does not need it.
        self.step = tf.function(
            self._step, jit_compile=settings.jit_compile, autograph=False, experimental_attributes={"_noinline": True}
        )
        self.loop = tf.function(self._loop, autograph=False)
        self.prepared = graph_passes.skip_passes if graph_passes.unneeded(strategy) else contextlib.nullcontext

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The state, beside the model's and the optimizer's, that a resumed run needs, by name."""
        return self.scale.variables

    def take(self, iterator: Iterator, count: int, stop_requested: bool = False) -> StepResults:
        """Take `count` steps on the distributed batches of an iterator.

        Args:
            iterator: yields batches distributed over the replicas: {"image": uint8 (N, H, W, 3), "inside": int32
                (N, 4), "label": (N, H, W)} of `batching.train_batches`, or with float32 images that are normalized
                already and need no "inside".
            count: the number of steps.
            stop_requested: whether this host requests a stop; the results tell it to all hosts.

        Raises:
            tf.errors.OpError: A batch could not be read. All steps before it have been taken; optimizer.iterations is
                their number.
        """
        with self.prepared():
            return StepResults(*self.loop(iterator, tf.constant(count), tf.constant(int(stop_requested))))

    def one(self, batch: dict) -> dict[str, tf.Tensor]:
        """Take one step on a distributed batch and return its losses by name, float32 scalars."""
        with self.prepared():
            return dict(zip(self.names, tf.unstack(self.step(batch)), strict=True))

    def _loop(self, iterator: Iterator, count: tf.Tensor, stop_requested: tf.Tensor) -> tuple:
        # Deterministic op mode forbids tf.timestamp.
        timed = not self.config.train.deterministic

        def take_one(index: tf.Tensor, history: tf.TensorArray, waited: tf.Tensor) -> tuple:
            with tf.control_dependencies([index]):
                started = tf.timestamp() if timed else tf.constant(0.0, tf.float64)
            with tf.control_dependencies([started]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                arrived = tf.timestamp() if timed else started
            # On a single core the step would otherwise run before the clock is read.
            with tf.control_dependencies([arrived]):
                history = history.write(index, self.step(batch))
            return index + 1, history, waited + (arrived - started)

        history = tf.TensorArray(tf.float32, size=count, element_shape=(len(self.names),))
        waited = tf.constant(0.0 if timed else float("nan"), tf.float64)
        # With parallel iterations, a batch that cannot be read would abort the step before it.
        _, history, waited = tf.while_loop(
            lambda index, *_: index < count, take_one, (0, history, waited), parallel_iterations=1
        )
        stop_requests = self.strategy.reduce("sum", self.strategy.run(tf.identity, args=(stop_requested,)), axis=None)
        return history.stack(), waited, stop_requests

    # The profiler's traces name the compiled module after this function; see kseg.profiling.traces.STEP_MODULE.
    def _step(self, batch: dict) -> tf.Tensor:
        if self.config.train.accumulate == 1:
            return self.strategy.reduce("sum", self.strategy.run(self._replica_step, args=(batch,)), axis=None)
        counts = self.strategy.run(self._global_counts, args=(batch,))

        def accumulate(part: tf.Tensor, values: tf.Tensor) -> tuple:
            replica_values = self.strategy.run(self._accumulate_part, args=(batch, part, counts))
            return part + 1, values + self.strategy.reduce("sum", replica_values, axis=None)

        # Two parts in parallel would need the memory of both.
        _, values = tf.while_loop(
            lambda part, _: part < self.config.train.accumulate,
            accumulate,
            (0, tf.zeros(len(self.terms) + 1)),
            parallel_iterations=1,
        )
        skipped = self.strategy.reduce("sum", self.strategy.run(self._apply_accumulated), axis=None)
        return tf.concat([values, skipped], 0)

    def _replica_step(self, batch: dict) -> tf.Tensor:
        """Take the step on the batch of one replica and return its summand of each loss, (names,)."""
        values, gradients = self._differentiate(batch, None)
        return tf.concat([values, self._apply(gradients)], 0)

    def _global_counts(self, batch: dict) -> tf.Tensor:
        """Return the divisor of each term over the global batch, (terms,)."""
        counts = losses.denominators(batch["label"], self.terms, self.model.output["main"].shape[-1], self.config.loss)
        return sum_over_replicas(tf.stack(counts))

    def _accumulate_part(self, batch: dict, part: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Accumulate the gradients of one part of a replica's batch and return its losses, (1 + terms,)."""

        def select_part(values: tf.Tensor) -> tf.Tensor:
            parts = self.config.train.accumulate
            return tf.reshape(values, (parts, values.shape[0] // parts, *values.shape[1:]))[part]

        values, gradients = self._differentiate({name: select_part(tensor) for name, tensor in batch.items()}, counts)
        for total, gradient in zip(self.gradients, gradients, strict=True):
            total.assign_add(gradient)
        return values

    def _apply_accumulated(self) -> tf.Tensor:
        skipped = self._apply([total.read_value() for total in self.gradients])
        with tf.control_dependencies([skipped]):
            for total in self.gradients:
                total.assign(tf.zeros_like(total))
        return tf.identity(skipped)

    def _differentiate(self, batch: dict, counts: tf.Tensor | None) -> tuple[tf.Tensor, list]:
        """Return (loss and its terms, gradients) of some images, float32; without `counts` they are computed."""
        config, variables = self.config, self.model.trainable_variables
        images = batch["image"]
        if images.dtype == tf.uint8:
            images = normalize_batch(
                images, batch["inside"], config.data.mean, config.data.std, config.augment.pad_color
            )
        with tf.GradientTape() as tape:
            outputs = self.model(images, training=True)
            terms = losses.loss_terms(outputs, batch["label"], config.loss, config.model.align_corners)
            if counts is None:
                counts = sum_over_replicas(tf.stack([terms[name][2] for name in self.terms]))
            parts = [
                terms[name][0] * losses.mean_loss(terms[name][1], count)
                for name, count in zip(self.terms, tf.unstack(counts), strict=True)
            ]
            loss = tf.add_n(parts)
            scaled = loss * self.scale.value
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        if self.scale.active:
            gradients = [gradient / self.scale.value for gradient in gradients]
        return tf.stack([loss, *parts]), gradients

    def _apply(self, gradients: list) -> tf.Tensor:
        """Update the weights with a replica's gradients; return its summand of "skipped", (1,), or an empty tensor."""
        skipped = tf.zeros(0)
        if self.float16:
            gradients, any_nonfinite = finite_or_nan(gradients)
            self.scale.update(any_nonfinite)
            # All replicas have the same value, and their summands are added up.
            skipped = tf.reshape(any_nonfinite / self.strategy.num_replicas_in_sync, (1,))
        self.optimizer.apply(gradients, self.model.trainable_variables)
        if self.ema:
            self.ema.update()
        return skipped


class LossScale:
    """Scale the loss before it is differentiated, so that small gradients survive float16.

    With `growth` above 0 the scale is halved after a step with non-finite gradients and doubled after `growth`
    successive steps with finite ones.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
    """

    # Above this scale float32 losses themselves could overflow.
    LARGEST = 2.0**24

    def __init__(self, initial: float, growth: int):
        self.growth, self.variables, self.value = growth, {}, tf.constant(initial)
        # Dividing by 1 would be a useless pass over all gradients.
        self.active = growth > 0 or initial != 1
        if growth:
            self.value, self.finite_steps = (
                tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
                for value in (tf.constant(initial), tf.constant(0))
            )
            self.variables = {"loss_scale": self.value, "finite_steps": self.finite_steps}

    def update(self, skipped: tf.Tensor) -> None:
        """Adapt the scale to a step that was skipped (1.0) or taken (0.0)."""
        if not self.growth:
            return
        finite_steps = tf.where(skipped > 0, 0, self.finite_steps + 1)
        grown = tf.where(finite_steps >= self.growth, tf.minimum(2 * self.value, self.LARGEST), self.value)
        self.value.assign(tf.where(skipped > 0, tf.maximum(self.value / 2, 1.0), grown))
        self.finite_steps.assign(finite_steps % self.growth)


def sum_over_replicas(values: tf.Tensor) -> tf.Tensor:
    """Return, on each replica, the sum of the values of all replicas."""
    context = tf.distribute.get_replica_context()
    return values if context.num_replicas_in_sync == 1 else context.all_reduce("sum", values)


def finite_or_nan(gradients: list) -> tuple:
    """Replace all gradients by nan if one of them is not finite on any replica.

    Returns:
        (gradients, 0.0) if all are finite, otherwise (gradients of nan, 1.0); the same on each replica.
    """
    # The sum of all magnitudes is finite only if every gradient is, and then their sums over the replicas are as well.
    magnitude = sum_over_replicas(tf.add_n([tf.reduce_sum(tf.abs(gradient)) for gradient in gradients]))
    finite = tf.math.is_finite(magnitude)
    nan = tf.constant(float("nan"))
    return [tf.where(finite, gradient, nan) for gradient in gradients], 1 - tf.cast(finite, tf.float32)
