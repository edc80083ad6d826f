"""The compiled training step: batches in, moved weights and the losses of the global batch out."""

from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from kseg.config import Config
from kseg.training import losses
from kseg.training.ema import Average


class Taken(NamedTuple):
    """What some steps gave, on the device until it is read.

    `losses` float32 (steps, names), in the order of `Steps.names`; `waited` float64, the seconds in which the steps had
    no batch, nan with train.deterministic; `notices` int32, the replicas whose host gave notice.
    """

    losses: tf.Tensor
    waited: tf.Tensor
    notices: tf.Tensor


class Steps:
    """Takes training steps on all replicas, one or several in a call of one compiled function.

    Sums are added over the replicas and divided by the global counts, so that the numbers do not depend on how many
    replicas share the batch or where its ignored pixels lie. `names` are those of the losses: "loss", its terms, and
    under mixed_float16 "skipped", 1.0 where the gradients were not all finite and the step left weights and momentum
    as they are.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, config: Config,
                 strategy: tf.distribute.Strategy, average: Average | None = None):
        """Take what was built under the strategy's scope; the batches must be divisible by train.accumulate."""
        self.model, self.optimizer, self.config, self.average = model, optimizer, config, average
        self.strategy, settings = strategy, config.train
        self.terms = tuple(model.output)
        self.float16 = settings.precision == "mixed_float16"
        self.names = ("loss", *self.terms, *(("skipped",) if self.float16 else ()))
        with strategy.scope():
            self.scale = LossScale(settings.loss_scale, settings.loss_scale_growth)
            # Each replica adds up its own; they are read where they were written.
            self.gradients = [tf.Variable(
                tf.zeros(variable.shape), trainable=False, synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM)
                for variable in model.trainable_variables] if settings.accumulate > 1 else []
        # A loop over batches cannot be compiled by XLA; what it does with one can. Inlined, parts of a step that need
        # no batch, such as its number, would run although the batch cannot be read.
        self.step = tf.function(self._step, jit_compile=settings.jit_compile,
                                experimental_attributes={"_noinline": True})
        self.loop = tf.function(self._loop)

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """State beside the model's and the optimizer's that a run continues with, by name."""
        return self.scale.variables

    def take(self, iterator: Iterator, count: int, notice: bool = False) -> Taken:
        """Take `count` steps on the distributed batches of an iterator; `notice` is this host's, given to all.

        Raises the tf.errors.OpError of a batch that cannot be read, after all steps before it: optimizer.iterations
        tells how many.
        """
        return Taken(*self.loop(iterator, tf.constant(count), tf.constant(int(notice))))

    def one(self, batch: dict) -> dict[str, tf.Tensor]:
        """Take one step on a distributed batch and return its losses by name, float32."""
        return dict(zip(self.names, tf.unstack(self.step(batch)), strict=True))

    def _loop(self, iterator: Iterator, count: tf.Tensor, notice: tf.Tensor) -> tuple:
        history = tf.TensorArray(tf.float32, size=count, element_shape=(len(self.names),))
        # Deterministic kernels forbid looking at the clock.
        timed = not self.config.train.deterministic
        waited = tf.constant(0.0 if timed else float("nan"), tf.float64)
        for number in tf.range(count):
            # A batch that cannot be read must not end a step that is under way.
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            with tf.control_dependencies([number]):
                started = tf.timestamp() if timed else tf.constant(0.0, tf.float64)
            with tf.control_dependencies([started]):
                batch = next(iterator)
            with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
                arrived = tf.timestamp() if timed else started
            # On a single core the step would otherwise come before the look at the clock.
            with tf.control_dependencies([arrived]):
                history = history.write(number, self.step(batch))
            waited += arrived - started
        notices = self.strategy.reduce("sum", self.strategy.run(tf.identity, args=(notice,)), axis=None)
        return history.stack(), waited, notices

    def _step(self, batch: dict) -> tf.Tensor:
        if self.config.train.accumulate == 1:
            return self.strategy.reduce("sum", self.strategy.run(self._whole, args=(batch,)), axis=None)
        counts = self.strategy.run(self._counts, args=(batch,))
        values = tf.zeros(len(self.terms) + 1)
        for part in tf.range(self.config.train.accumulate):
            # Two parts at once would take the memory of two.
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            shares = self.strategy.run(self._part, args=(batch, part, counts))
            values += self.strategy.reduce("sum", shares, axis=None)
        rest = self.strategy.reduce("sum", self.strategy.run(self._apply_added), axis=None)
        return tf.concat([values, rest], 0)

    def _whole(self, batch: dict) -> tf.Tensor:
        """Take the step on a replica's share; return its share of the losses."""
        values, gradients = self._differentiate(batch, None)
        return tf.concat([values, self._apply(gradients)], 0)

    def _counts(self, batch: dict) -> tf.Tensor:
        """Return what the sums of each term are divided by, (terms,)."""
        counts = losses.counts(batch["label"], self.terms, self.model.output["main"].shape[-1], self.config.loss)
        return over_replicas(tf.stack(counts))

    def _part(self, batch: dict, part: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Add the gradients of a part of a replica's share to those before; return its share of the losses."""
        def cut(values: tf.Tensor) -> tf.Tensor:
            parts = self.config.train.accumulate
            return tf.reshape(values, (parts, values.shape[0] // parts, *values.shape[1:]))[part]

        values, gradients = self._differentiate({name: cut(each) for name, each in batch.items()}, counts)
        for total, gradient in zip(self.gradients, gradients, strict=True):
            total.assign_add(gradient)
        return values

    def _apply_added(self) -> tf.Tensor:
        values = self._apply([total.read_value() for total in self.gradients])
        with tf.control_dependencies([values]):
            for total in self.gradients:
                total.assign(tf.zeros_like(total))
        return tf.identity(values)

    def _differentiate(self, batch: dict, counts: tf.Tensor | None) -> tuple[tf.Tensor, list]:
        """Return (loss and its terms, gradients) of some pictures, float32; without `counts` they are the batch's."""
        config, variables = self.config, self.model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self.model(batch["image"], training=True)
            terms = losses.terms(outputs, batch["label"], config.loss, config.model.align_corners)
            if counts is None:
                counts = over_replicas(tf.stack([terms[name][2] for name in self.terms]))
            parts = [terms[name][0] * losses.mean(terms[name][1], count)
                     for name, count in zip(self.terms, tf.unstack(counts), strict=True)]
            loss = tf.add_n(parts)
            scaled = loss * self.scale.value
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        if self.scale.scales:
            gradients = [gradient / self.scale.value for gradient in gradients]
        return tf.stack([loss, *parts]), gradients

    def _apply(self, gradients: list) -> tf.Tensor:
        """Move the weights by a replica's share of the gradients; return its share of "skipped", (1,), or (0,)."""
        rest = tf.zeros(0)
        if self.float16:
            gradients, skipped = all_or_none(gradients)
            self.scale.follow(skipped)
            # Each replica knows it, and the shares of all are added up.
            rest = tf.reshape(skipped / self.strategy.num_replicas_in_sync, (1,))
        self.optimizer.apply(gradients, self.model.trainable_variables)
        if self.average:
            self.average.update()
        return rest


class LossScale:
    """What the loss is multiplied by before it is differentiated, so that small gradients survive float16.

    With `growth` steps above 0 it is halved after a step with gradients that are not finite, and doubled after that
    many steps in a row with finite ones. Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
    """

    # Above it float32 losses themselves could overflow.
    LARGEST = 2.0**24

    def __init__(self, first: float, growth: int):
        self.growth, self.variables, self.value = growth, {}, tf.constant(first)
        # Dividing by 1 would be a pass over all gradients.
        self.scales = growth > 0 or first != 1
        if growth:
            self.value, self.good = (tf.Variable(
                value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
                for value in (tf.constant(first), tf.constant(0)))
            self.variables = {"loss_scale": self.value, "finite_steps": self.good}

    def follow(self, skipped: tf.Tensor) -> None:
        """Note whether a step was left out, 1.0, or taken, 0.0."""
        if not self.growth:
            return
        good = tf.where(skipped > 0, 0, self.good + 1)
        grown = tf.where(good >= self.growth, tf.minimum(2 * self.value, self.LARGEST), self.value)
        self.value.assign(tf.where(skipped > 0, tf.maximum(self.value / 2, 1.0), grown))
        self.good.assign(good % self.growth)


def over_replicas(values: tf.Tensor) -> tf.Tensor:
    """Return the sum of the replicas' values, on each of them."""
    context = tf.distribute.get_replica_context()
    return values if context.num_replicas_in_sync == 1 else context.all_reduce("sum", values)


def all_or_none(gradients: list) -> tuple:
    """Return (gradients, 0.0) where they are finite on all replicas, else (nothing but nan, 1.0), on each of them."""
    # The sum of all magnitudes is finite only if each gradient is, and then so are their sums over the replicas.
    size = over_replicas(tf.add_n([tf.reduce_sum(tf.abs(gradient)) for gradient in gradients]))
    finite = tf.math.is_finite(size)
    nan = tf.constant(float("nan"))
    return [tf.where(finite, gradient, nan) for gradient in gradients], 1 - tf.cast(finite, tf.float32)
