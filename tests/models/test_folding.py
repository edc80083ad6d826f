"""Folded copies of a model compute the same function, portably or with the fast layers for CPUs."""

import keras
import numpy as np
import pytest

from kseg import models
from kseg.config.sections import Model
from kseg.models import folding, layers, norms
from kseg.models.layers import Convolution
from kseg.models.macs import count_layer_macs, count_macs

SHAPE = (1, 64, 96, 3)


@pytest.fixture(scope="module")
def main():
    """Build a network whose convolutions are wide enough for the fast CPU form, with random statistics."""
    keras.utils.set_random_seed(1)
    settings = Model(backbone="resnet18", head="fcn", channels=128, auxiliary_channels=0)
    model = models.main_only(models.build(settings, 4))
    generator = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, norms.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def traced_operations(model, images):
    """Return the types of the operations of a traced model, and the traced function."""
    import tensorflow as tf

    traced = tf.function(lambda values: model(values, training=False), autograph=False).get_concrete_function(images)
    return [operation.type for operation in traced.graph.get_operations()], traced


@pytest.fixture(scope="module")
def tiled(main):
    """Return a copy with the fast layers and the types of its operations."""
    copy = folding.fold_batch_norms(main, classes={})
    return copy, traced_operations(copy, np.zeros(SHAPE, np.float32))[0]


def test_only_a_copy_for_cpus_keeps_the_fast_layers(main, tiled):
    images = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    expected = main(images, training=False).numpy()
    plain, (tiled_copy, tiled_types) = folding.fold_batch_norms(main), tiled
    for copy in (plain, tiled_copy):
        np.testing.assert_allclose(copy(images, training=False).numpy(), expected, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(layer, Convolution) for layer in plain.layers)
    plain_types, _ = traced_operations(plain, images)
    replaced = plain_types.count("Conv2D") - tiled_types.count("Conv2D")
    # Each of the 3x3 convolutions at stride 1 in stages 2 to 4 and in the head becomes a call of a function.
    assert "PartitionedCall" not in plain_types and replaced >= 10
    assert tiled_types.count("PartitionedCall") == replaced


def test_macs_follow_the_definition_of_the_layers(main, monkeypatch):
    macs = count_macs(main, SHAPE)
    monkeypatch.setattr(layers, "on_cpu", lambda: False)
    _, traced = traced_operations(main, np.zeros(SHAPE, np.float32))
    assert macs == count_layer_macs(traced)
