"""Copies of models for inference: what their convolutions are, and that all of them say the same."""

import keras
import numpy as np
import pytest

from kseg import models
from kseg.config import Model
from kseg.models import folding, layers, norms
from kseg.models.layers import Convolution
from kseg.models.macs import multiply_adds, of_forward


@pytest.fixture(scope="module")
def main():
    """A network with convolutions wide enough to be computed otherwise on a CPU, and statistics that matter."""
    keras.utils.set_random_seed(1)
    settings = Model(backbone="resnet18", head="fcn", channels=128, auxiliary_channels=0)
    model = models.main_only(models.build(settings, 4))
    generator = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, norms.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def operations(model, images):
    import tensorflow as tf

    traced = tf.function(lambda values: model(values, training=False)).get_concrete_function(images)
    return [operation.type for operation in traced.graph.get_operations()], traced


def test_a_folded_model_is_the_same_on_every_device_unless_it_is_for_a_cpu(main):
    images = np.random.default_rng(3).normal(size=(1, 64, 96, 3)).astype(np.float32)
    expected = main(images, training=False).numpy()
    plain, tiled = folding.fold(main), folding.fold(main, for_cpu=True)
    for copy in (plain, tiled):
        np.testing.assert_allclose(copy(images, training=False).numpy(), expected, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(layer, Convolution) for layer in plain.layers)
    kinds, _ = operations(plain, images)
    others, _ = operations(tiled, images)
    wide = kinds.count("Conv2D") - others.count("Conv2D")
    # The 3x3 convolutions at stride 1 of stages 2 to 4 and of the head are matrix products, sixteen at least.
    assert "MatMul" not in kinds and wide >= 10 and others.count("MatMul") >= 16 * wide


def test_multiply_adds_are_those_of_the_definition(main, monkeypatch):
    shape = (1, 64, 96, 3)
    found = of_forward(main, shape)
    monkeypatch.setattr(layers, "on_cpu", lambda: False)
    _, traced = operations(main, np.zeros(shape, np.float32))
    assert found == multiply_adds(traced)
    monkeypatch.undo()
    _, fewer = operations(main, np.zeros(shape, np.float32))
    assert multiply_adds(fewer) < found
