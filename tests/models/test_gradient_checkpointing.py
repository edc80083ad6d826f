"""Gradient checkpointing changes neither results nor weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import models
from kseg.models.folding import fold_batch_norms
from kseg.models.resnet import BACKBONES
from kseg.training import optimizers
from tests.helpers.exhaustive import all_of
from tests.helpers.small_models import tiny, values

CLASSES = 3
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def built(recompute, precision="float32", freeze=()):
    keras.utils.set_random_seed(1)
    model = models.build(tiny(head="fcn", auxiliary_channels=0), CLASSES, precision=precision, recompute=recompute)
    optimizers.freeze_layers(model, freeze)
    return model


def step(model):
    """Return the loss, gradients and outputs of a training step, and its number of convolutions."""

    @tf.function(autograph=False)
    def differentiate():
        with tf.GradientTape() as tape:
            outputs = model(IMAGES, training=True)
            loss = tf.add_n([tf.reduce_mean(tf.square(value)) for value in outputs.values()])
        return loss, tape.gradient(loss, [variable.value for variable in model.trainable_variables]), outputs

    operations = differentiate.get_concrete_function().graph.get_operations()
    loss, gradients, outputs = differentiate()
    return (
        float(loss),
        [gradient.numpy() for gradient in gradients],
        {name: value.numpy() for name, value in outputs.items()},
        sum(operation.type == "Conv2D" for operation in operations),
    )


@pytest.mark.parametrize(
    "precision, freeze",
    all_of([("float32", ("backbone.stem.*", "backbone.layer1.*", "backbone.layer2.0.bn1"))], ("mixed_bfloat16", ())),
)
def test_losses_gradients_and_statistics_are_unchanged(precision, freeze):
    plain, recomputed = built(False, precision, freeze), built(True, precision, freeze)
    loss, gradients, outputs, convolutions = step(plain)
    actual_loss, actual_gradients, actual_outputs, actual_convolutions = step(recomputed)
    # Each block recomputes two convolutions, and three of them a shortcut. Frozen blocks count as well, although no
    # gradient passes through them.
    assert actual_convolutions == convolutions + 2 * sum(BACKBONES["resnet18"][0]) + 3
    assert actual_loss == pytest.approx(loss, rel=1e-6)
    # Equal outputs imply equal dropout masks.
    assert all(np.array_equal(outputs[name], actual_outputs[name]) for name in outputs)
    for expected, actual in zip(gradients, actual_gradients, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    # A second update would change the moving statistics.
    for expected, actual in zip(plain.variables, recomputed.variables, strict=True):
        assert expected.path == actual.path
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-6)
    norm = recomputed.get_layer("backbone.layer4.0.bn1")
    assert norm.moving_mean.numpy().any()


def test_layers_weight_files_inference_and_folding_are_unchanged(tmp_path):
    plain, recomputed = built(False), built(True)
    random = np.random.default_rng(2)
    recomputed.set_weights(
        [random.uniform(0.5, 1, value.shape).astype(value.dtype) / value.size**0.5 for value in values(recomputed)]
    )
    assert [layer.name for layer in plain.layers] == [layer.name for layer in recomputed.layers]
    recomputed.save_weights(tmp_path / "recomputed.weights.h5")
    plain.load_weights(tmp_path / "recomputed.weights.h5")
    assert all(np.array_equal(*pair) for pair in zip(values(plain), values(recomputed), strict=True))
    expected = plain(IMAGES)["main"].numpy()
    assert np.array_equal(recomputed(IMAGES)["main"].numpy(), expected)
    np.testing.assert_allclose(
        fold_batch_norms(models.main_only(recomputed))(IMAGES).numpy(), expected, rtol=1e-4, atol=1e-5
    )
    first = plain.get_layer("backbone.stem.0")
    first.set_weights([2 * value for value in first.get_weights()])
    recomputed.set_weights([np.zeros_like(value) for value in values(recomputed)])
    plain.save_weights(tmp_path / "plain.weights.h5")
    recomputed.load_weights(tmp_path / "plain.weights.h5")
    assert all(np.array_equal(*pair) for pair in zip(values(plain), values(recomputed), strict=True))
