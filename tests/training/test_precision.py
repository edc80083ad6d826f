"""Training in half precision: what is computed in it, what stays float32, and skipped steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import config as configs
from kseg.datasets import registry
from kseg.training import trainer
from kseg.training.optimizers import MomentumSGD
from kseg.training.step import LossScale, Steps
from tests.helpers.exhaustive import all_of
from tests.helpers.running import tiny
from tests.helpers.splits import train_batches


def small_run(shapes_directory, *more):
    """Return the config of a tiny run without weight decay, so that the first velocities are the gradients."""
    _, name, _, *overrides = tiny(
        shapes_directory, "train.weight_decay=0", "train.deterministic=false", "augment.photometric=false", *more
    )
    return configs.load(name, overrides)


def small_trainer(config):
    keras.utils.set_random_seed(3)
    model, optimizer, _ = trainer.build_training(config, len(registry.find_dataset(config.data).classes), print)
    return model, optimizer, Steps(model, optimizer, config, tf.distribute.get_strategy())


def results_and_model(config, steps):
    """Take steps on the first batches; return the losses of each step, and the model."""
    model, _, taken = small_trainer(config)
    batches = iter(train_batches(config))
    return [taken.one(next(batches)) for _ in range(steps)], model


@pytest.fixture(scope="module")
def float32_losses(shapes_directory):
    """The losses of four steps in float32."""
    results, _ = results_and_model(small_run(shapes_directory), 4)
    assert all("skipped" not in losses for losses in results)
    return [float(losses["loss"]) for losses in results]


@pytest.mark.parametrize("precision", all_of(["mixed_float16"], "mixed_bfloat16"))
def test_half_precision_has_nearly_the_losses_of_float32(precision, float32_losses, shapes_directory):
    config = small_run(shapes_directory, f"train.precision={precision}", "train.loss_scale=512")
    results, model = results_and_model(config, 4)
    losses = [float(result["loss"]) for result in results]
    np.testing.assert_allclose(losses, float32_losses, rtol=0.02)
    # Equal losses would mean that nothing was computed in half precision.
    assert losses != float32_losses
    assert model.get_layer("backbone.layer1.0.conv1").compute_dtype == precision.removeprefix("mixed_")
    names = {"loss", "main", "aux", "se"} | ({"skipped"} if precision == "mixed_float16" else set())
    assert all(
        {name: value.dtype for name, value in result.items()} == dict.fromkeys(names, tf.float32) for result in results
    )
    assert all(float(result.get("skipped", 0)) == 0 for result in results)
    # The seeds of dropout are int64.
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert {variable.dtype for variable in model.non_trainable_variables} == {"float32", "int64"}
    outputs = model(np.zeros((2, 64, 64, 3), np.float32), training=True)
    assert {name: logits.dtype for name, logits in outputs.items()} == dict.fromkeys(("main", "aux", "se"), tf.float32)
    # Building a model leaves Keras' global policy unchanged.
    assert keras.config.dtype_policy().name == "float32"


def test_loss_scale_preserves_small_gradients(shapes_directory):
    """Gradients below 6e-8 are zero in float16; a loss scale prevents that and does not change them."""
    gradients = {}
    for precision in ("float32", "mixed_float16"):
        config = small_run(
            shapes_directory,
            f"train.precision={precision}",
            "loss.main=1e-5",
            "model.initial_weights=uniform",
            "model.head=fcn",
            "model.auxiliary_channels=0",
        )
        model, optimizer, steps = small_trainer(config)
        # A scale that may grow is a variable, so one graph serves both scales.
        steps.scale = LossScale(1.0, growth=1000)
        batch = next(iter(train_batches(config)))
        variables = model.variables + optimizer.variables
        initial = [variable.numpy().copy() for variable in variables]
        for scale in (1, 2**18):
            for variable, value in zip(variables, initial, strict=True):
                variable.assign(value)
            steps.scale.value.assign(scale)
            steps.one(batch)
            assert float(steps.scale.value) == scale
            # Without decay the first velocities are the gradients.
            gradients[precision, scale] = np.concatenate(
                [
                    velocity.numpy().reshape(-1)
                    for variable, velocity in zip(model.trainable_variables, optimizer.velocities)
                    if variable.path.startswith("backbone.layer4") and "conv" in variable.path
                ]
            )
    exact = gradients["float32", 1]
    errors = {key: np.linalg.norm(gradient - exact) / np.linalg.norm(exact) for key, gradient in gradients.items()}
    assert errors["float32", 2**18] < 1e-5
    assert errors["mixed_float16", 1] > 0.5 and errors["mixed_float16", 2**18] < 0.2, errors


def test_step_with_infinite_gradients_is_skipped(shapes_directory):
    # The scaled loss is finite in float32, but its gradients overflow in float16.
    model, optimizer, steps = small_trainer(
        config := small_run(
            shapes_directory,
            "train.precision=mixed_float16",
            "train.loss_scale=1e30",
            "train.weight_decay=1",
            "model.head=fcn",
            "model.auxiliary_channels=0",
        )
    )
    for velocity in optimizer.velocities:
        velocity.assign(np.full(velocity.shape, 0.5, np.float32))
    variables = model.trainable_variables + optimizer.velocities
    before = [variable.numpy().copy() for variable in variables]
    values = steps.one(next(iter(train_batches(config))))
    assert float(values["skipped"]) == 1 and np.isfinite(float(values["loss"]))
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)
    # The schedule advances with the data.
    assert int(optimizer.iterations.numpy()) == 1


def test_float32_does_not_hide_nonfinite_gradients():
    weight = keras.Variable(1.0)
    MomentumSGD(0.1).apply([tf.constant(np.nan)], [weight])
    assert np.isnan(weight.numpy())
