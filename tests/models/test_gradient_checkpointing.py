"""Blocks that compute their insides twice: the numbers of those that keep them, and the same weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import models
from kseg.models.folding import fold
from kseg.training import optimizers
from tests.helpers.small_models import tiny, values

CLASSES = 3
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def built(recompute, precision="float32", freeze=()):
    keras.utils.set_random_seed(1)
    model = models.build(tiny(head="fcn", auxiliary_channels=0), CLASSES, precision=precision, recompute=recompute)
    optimizers.freeze(model, freeze)
    return model


def step(model):
    """Return the loss and gradients of a training step, its outputs, and how often it computes a convolution."""
    @tf.function
    def differentiate():
        with tf.GradientTape() as tape:
            outputs = model(IMAGES, training=True)
            loss = tf.add_n([tf.reduce_mean(tf.square(value)) for value in outputs.values()])
        return loss, tape.gradient(loss, [variable.value for variable in model.trainable_variables]), outputs

    operations = differentiate.get_concrete_function().graph.get_operations()
    loss, gradients, outputs = differentiate()
    return (float(loss), [gradient.numpy() for gradient in gradients],
            {name: value.numpy() for name, value in outputs.items()},
            sum(operation.type == "Conv2D" for operation in operations))


@pytest.mark.parametrize("precision, freeze", [
    ("mixed_bfloat16", ()), ("float32", ("backbone.stem.*", "backbone.layer1.*", "backbone.layer2.0.bn1"))])
def test_same_losses_gradients_and_statistics(precision, freeze):
    kept, recomputed = built(False, precision, freeze), built(True, precision, freeze)
    loss, gradients, outputs, convolutions = step(kept)
    found_loss, found_gradients, found_outputs, found_convolutions = step(recomputed)
    # Else nothing was computed again: two in each of eight blocks, and three on shortcuts. No gradient passes through
    # the two frozen blocks.
    assert found_convolutions == convolutions + 19
    assert found_loss == pytest.approx(loss, rel=1e-6)
    # Dropout among them.
    assert all(np.array_equal(outputs[name], found_outputs[name]) for name in outputs)
    for expected, found in zip(gradients, found_gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    # Moved once.
    for expected, found in zip(kept.variables, recomputed.variables, strict=True):
        assert expected.path == found.path
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-6)
    norm = recomputed.get_layer("backbone.layer4.0.bn1")
    assert norm.moving_mean.numpy().any()


def test_layers_files_inference_and_folding_are_those_of_the_functional_model(tmp_path):
    kept, recomputed = built(False), built(True)
    random = np.random.default_rng(2)
    recomputed.set_weights([random.uniform(0.5, 1, value.shape).astype(value.dtype) / value.size**0.5
                            for value in values(recomputed)])
    assert [layer.name for layer in kept.layers] == [layer.name for layer in recomputed.layers]
    recomputed.save_weights(tmp_path / "recomputed.weights.h5")
    kept.load_weights(tmp_path / "recomputed.weights.h5")
    assert all(np.array_equal(*pair) for pair in zip(values(kept), values(recomputed), strict=True))
    expected = kept(IMAGES)["main"].numpy()
    assert np.array_equal(recomputed(IMAGES)["main"].numpy(), expected)
    np.testing.assert_allclose(fold(models.main_only(recomputed))(IMAGES).numpy(), expected, rtol=1e-4, atol=1e-5)
    first = kept.get_layer("backbone.stem.0")
    first.set_weights([2 * value for value in first.get_weights()])
    recomputed.set_weights([np.zeros_like(value) for value in values(recomputed)])
    kept.save_weights(tmp_path / "kept.weights.h5")
    recomputed.load_weights(tmp_path / "kept.weights.h5")
    assert all(np.array_equal(*pair) for pair in zip(values(kept), values(recomputed), strict=True))
