"""The compiled step: calls of several steps, accumulated gradients, the loss scale, and unreadable batches."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import Loss, Train
from kseg.errors import ConfigError
from kseg.models.norms import BatchNormalization
from kseg.training import losses, trainer
from kseg.training.ema import ExponentialMovingAverage
from kseg.training.optimizers import build_optimizer
from kseg.training.step import LossScale, Steps
from tests.helpers.exhaustive import all_of

CLASSES = 3


def shallow(config, frozen=True):
    """Return a small model with all outputs and a batch norm, and its optimizer."""
    keras.utils.set_random_seed(5)
    images = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(6, 5, strides=4, padding="same", name="features")(images)
    norm = BatchNormalization(name="norm", trainable=not frozen)
    features = keras.layers.Activation("relu")(norm(features))
    outputs = {name: keras.layers.Conv2D(CLASSES, 1, name=name)(features) for name in ("main", "aux")}
    mean = keras.layers.GlobalAveragePooling2D(name="mean")(features)
    model = keras.Model(images, outputs | {"se": keras.layers.Dense(CLASSES, name="se")(mean)})
    norm.moving_mean.assign(np.linspace(-0.3, 0.3, 6))
    return model, build_optimizer(config.train, model)


def batches(count, size=8):
    """Return batches whose images have different fractions of ignored pixels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, (count, size, 16, 16)).astype(np.uint8)
    for index in range(size):
        labels[:, index, : 2 * index] = 255
    images = generator.normal(size=(count, size, 16, 16, 3)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})


def trained(config, calls, frozen=True, strategy=None):
    """Take calls[i] steps in call i; return (losses of all steps, one row each, and the final weights)."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model, optimizer = shallow(config, frozen)
    steps = Steps(model, optimizer, config, strategy)
    iterator = iter(strategy.experimental_distribute_dataset(batches(sum(calls))))
    rows = np.concatenate([steps.take(iterator, count).losses.numpy() for count in calls])
    assert int(optimizer.iterations) == sum(calls) and rows.shape == (sum(calls), len(steps.names))
    return rows, model.get_weights()


def settings(**train):
    return Config(
        loss=train.pop("loss", Loss(average="valid")),
        train=Train(global_batch=8, steps=40, learning_rate=0.05, weight_decay=1e-3, **train),
    )


def test_several_steps_in_a_call_equal_single_steps():
    rows, weights = trained(settings(), [1] * 6, frozen=False)
    rows_of_calls, others = trained(settings(), [4, 2], frozen=False)
    np.testing.assert_array_equal(rows, rows_of_calls)
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_array_equal(one, other)
    # The loss decreases, so the weights have changed.
    assert rows[-1, 0] < rows[0, 0]


@pytest.mark.parametrize("parts", [1, 4])
def test_one_device_strategy_takes_the_same_steps(parts):
    """Use a CPU in place of the GPU; the strategy prefetches batches to it in the same way."""
    config = settings(accumulate=parts)
    rows, weights = trained(config, [3, 2], frozen=False)
    other_rows, other_weights = trained(config, [3, 2], False, tf.distribute.OneDeviceStrategy("CPU:0"))
    np.testing.assert_array_equal(rows, other_rows)
    for one, other in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(one, other)


VALID, ALL, WEIGHTED = (
    Loss(average="valid"),
    Loss(average="all", class_weights=(0.2, 1.0, 3.0)),
    Loss(average="valid", class_weights=(0.2, 1.0, 3.0)),
)


@pytest.mark.parametrize(
    "parts, loss", all_of([(8, VALID), (2, ALL), (2, WEIGHTED)], (2, VALID), (8, ALL), (8, WEIGHTED))
)
def test_accumulated_gradients_give_the_weights_of_the_whole_batch(parts, loss):
    rows, weights = trained(settings(loss=loss), [3, 2])
    in_parts, others = trained(settings(loss=loss, accumulate=parts), [3, 2])
    np.testing.assert_allclose(in_parts, rows, rtol=1e-5)
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def test_accumulated_loss_is_no_mean_of_means():
    """The means of parts with different numbers of ignored pixels have another mean than the whole batch."""
    config = settings(accumulate=2)
    model, optimizer = shallow(config)
    batch = next(iter(batches(1)))
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 4), slice(4, 8))]
    means = [losses.loss_terms(model(half["image"]), half["label"], config.loss)["main"] for half in halves]
    mean_of_means = sum(float(total / count) for _, total, count in means) / 2
    whole = float(sum(total for _, total, _ in means) / sum(count for _, _, count in means))
    accumulated = float(Steps(model, optimizer, config, tf.distribute.get_strategy()).one(batch)["main"])
    assert accumulated == pytest.approx(whole, rel=1e-5) and abs(accumulated - mean_of_means) > 1e-4


def test_denominators_equal_the_counts_of_the_loss_terms():
    labels = next(iter(batches(1)))["label"]
    outputs = {"main": tf.zeros((8, 4, 4, CLASSES)), "aux": tf.zeros((8, 4, 4, CLASSES)), "se": tf.zeros((8, CLASSES))}
    for average in ("all", "valid", "kept"):
        for weights in ((), (0.2, 1.0, 3.0)):
            loss = Loss(average=average, class_weights=weights)
            expected = [float(count) for _, _, count in losses.loss_terms(outputs, labels, loss).values()]
            assert [float(count) for count in losses.denominators(labels, outputs, CLASSES, loss)] == pytest.approx(
                expected
            )


def test_unreadable_batch_keeps_the_steps_before_it():
    config = settings()
    model, optimizer = shallow(config, frozen=False)
    steps = Steps(model, optimizer, config, tf.distribute.get_strategy())

    def fail_at_third(index, batch):
        with tf.control_dependencies([tf.debugging.Assert(index < 3, ["unreadable"])]):
            return {name: tf.identity(value) for name, value in batch.items()}

    with pytest.raises(tf.errors.InvalidArgumentError, match="unreadable"):
        steps.take(iter(batches(6).enumerate().map(fail_at_third)), 6)
    assert int(optimizer.iterations) == 3
    weights = model.get_weights()
    model, optimizer = shallow(config, frozen=False)
    Steps(model, optimizer, config, tf.distribute.get_strategy()).take(iter(batches(6)), 3)
    for one, other in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ema_is_updated_after_each_step_of_a_call():
    config = settings()
    model, optimizer = shallow(config, frozen=False)
    ema = ExponentialMovingAverage(model, 0.9)
    expected = {path: variable.numpy() for path, variable in ema.variables.items()}
    steps = Steps(model, optimizer, config, tf.distribute.get_strategy(), ema)
    for index in range(3):
        steps.take(iter(batches(3).skip(index)), 1)
        for path in expected:
            expected[path] = 0.9 * expected[path] + 0.1 * ema.sources[path].numpy()
    model, optimizer = shallow(config, frozen=False)
    ema = ExponentialMovingAverage(model, 0.9)
    Steps(model, optimizer, config, tf.distribute.get_strategy(), ema).take(iter(batches(3)), 3)
    for path, variable in ema.variables.items():
        np.testing.assert_allclose(variable.numpy(), expected[path], rtol=1e-5, atol=1e-6)


def test_stop_request_of_this_host_is_counted():
    config = settings()
    steps = Steps(*shallow(config), config, tf.distribute.get_strategy())
    iterator = iter(batches(2))
    assert [int(steps.take(iterator, 1, requested).stop_requests) for requested in (False, True)] == [0, 1]


def test_loss_scale_halves_and_grows():
    scale = LossScale(8.0, 3)
    values = []
    for skipped in (0, 0, 1, 0, 0, 0, 0, 0, 0, 1):
        scale.update(tf.constant(float(skipped)))
        values.append(float(scale.value))
    assert values == [8, 8, 4, 4, 4, 8, 8, 8, 16, 8]
    assert float(LossScale(8.0, 0).value) == 8 and LossScale(8.0, 0).variables == {}


def test_overflowing_loss_scale_falls_until_steps_are_taken():
    """The initial scale is far above the largest float16, 65504."""
    config = settings(precision="mixed_float16", loss_scale=2.0**24, loss_scale_growth=1000)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, optimizer = shallow(config)
    finally:
        keras.config.set_dtype_policy("float32")
    steps = Steps(model, optimizer, config, tf.distribute.get_strategy())
    skipped = steps.take(iter(batches(24)), 24).losses.numpy()[:, steps.names.index("skipped")]
    assert skipped[0] == 1 and skipped[-1] == 0
    assert float(steps.variables["loss_scale"]) == 2.0**24 / 2 ** skipped.sum()


def test_xla_is_refused_for_several_replicas():
    two = SimpleNamespace(num_replicas_in_sync=2)
    with pytest.raises(ConfigError, match="jit_compile.* 2 "):
        trainer.require_one_replica_for_xla(Train(jit_compile=True), two)
    trainer.require_one_replica_for_xla(Train(jit_compile=False), two)
    trainer.require_one_replica_for_xla(Train(jit_compile=True), SimpleNamespace(num_replicas_in_sync=1))
