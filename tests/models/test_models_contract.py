"""What every model promises, whatever its head: shapes, names, saving, gradients, sizes and first weights."""

import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from shared_files import SHARED, needs_fixtures

from kseg import losses, models
from kseg.config import Encnet, Loss, Model
from kseg.errors import ConfigError

CLASSES = 5


def tiny(**settings):
    return Model(**{"backbone": "resnet18", "width": 4, "channels": 8, "auxiliary_channels": 4} | settings)


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def randomise(model):
    """Give zero gammas, and all else that starts alike, values that show."""
    generator = np.random.default_rng(5)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))


def close(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module", params=[(head, stride) for head in models.HEADS for stride in (8, 16)],
                ids=lambda param: f"{param[0]}-os{param[1]}")
def case(request):
    """(config, model with open sizes and random statistics)"""
    head, stride = request.param
    keras.utils.set_random_seed(0)
    config = tiny(head=head, output_stride=stride)
    model = models.build(config, CLASSES)
    randomise(model)
    return config, model


def ceil(length, stride):
    return -(-length // stride)


@pytest.mark.parametrize("batch, height, width", [(1, 33, 47), (2, 64, 64), (3, 40, 97), (1, 8, 8), (2, 1, 1)])
def test_outputs(case, batch, height, width):
    config, model = case
    outputs = model(pictures(batch, height, width), training=False)
    stride = config.output_stride
    assert outputs.keys() == {"main", "aux"} | ({"se"} if config.head == "encnet" else set())
    size = (batch, ceil(height, stride), ceil(width, stride), CLASSES)
    assert outputs["main"].shape == outputs["aux"].shape == size
    assert "se" not in outputs or outputs["se"].shape == (batch, CLASSES)
    for output in outputs.values():
        assert output.dtype == tf.float32 and np.isfinite(output).all()


def test_is_a_functional_model(case):
    _, model = case
    # Only a functional model has its layers' graph in its config.
    assert isinstance(model, keras.Model) and model.get_config()["layers"]
    assert model.input.shape == (None, None, None, 3)
    assert model.output["main"].shape == model.output["aux"].shape == (None, None, None, CLASSES)


def test_fixed_and_open_sizes_agree(case):
    config, model = case
    fixed = models.build(config, CLASSES, size=(33, 47))
    fixed.set_weights(model.get_weights())
    images = pictures(2, 33, 47)
    expected = model(images, training=False)
    close(fixed(images, training=False), expected)
    assert {name: tuple(output.shape[1:]) for name, output in expected.items()} == {
        name: output.shape[1:] for name, output in fixed.output.items()}
    compiled = tf.function(lambda batch: model(batch, training=False),
                           input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
    close(compiled(images), expected)


def test_samples_do_not_see_each_other(case):
    _, model = case
    images = pictures(3, 40, 40)
    together, alone = model(images, training=False), model(images[1:2], training=False)
    close({name: output[1:2] for name, output in together.items()}, alone)


def test_names_are_unique_and_readable(case):
    config, _ = case
    for _ in range(2):
        model = models.build(config, CLASSES)
    names = [operation.name for operation in model.operations]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"images|(backbone|decode_head|auxiliary_head)(\.[a-z0-9_]+)+", name), name
        # Keras' own numbering, conv2d_7, depends on what was built before.
        assert not re.search(r"[a-z]_\d+$", name), name
    paths = [variable.path for variable in model.variables]
    assert len(set(paths)) == len(paths)


def test_weights_survive_a_file(case, tmp_path):
    config, model = case
    model.save_weights(tmp_path / "a.weights.h5")
    keras.utils.set_random_seed(1)
    other = models.build(config, CLASSES)
    images = pictures(2, 40, 40)
    assert np.abs(other(images)["main"] - model(images)["main"]).max() > 1e-3
    other.load_weights(tmp_path / "a.weights.h5")
    close(other(images, training=False), model(images, training=False))


def test_the_whole_model_survives_a_file(case, tmp_path):
    _, model = case
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    images = pictures(2, 33, 47)
    close(again(images, training=False), model(images, training=False))


def gradients(model, config):
    images = pictures(2, 64, 64)
    labels = np.random.default_rng(1).integers(0, CLASSES, (2, 64, 64)).astype(np.uint8)
    with tf.GradientTape() as tape:
        terms = losses.terms(model(images, training=True), labels, Loss())
        loss = sum(weight * total / count for weight, total, count in terms.values())
    variables = model.trainable_variables
    return dict(zip((variable.path for variable in variables),
                    tape.gradient(loss, [variable.value for variable in variables])))


def test_gradients_reach_every_variable(case):
    config, _ = case
    keras.utils.set_random_seed(3)
    model = models.build(config, CLASSES)
    for path, gradient in gradients(model, config).items():
        assert gradient is not None and np.isfinite(gradient).all(), path
    # With the last gamma of each block at zero, what stands before it has rightly no gradient yet.
    randomise(model)
    for path, gradient in gradients(model, config).items():
        assert np.abs(gradient).max() > 0, path


def test_a_training_step_moves_the_statistics_and_inference_does_not(case):
    config, _ = case
    model = models.build(config, CLASSES)
    moving = [variable for variable in model.non_trainable_variables if "moving" in variable.path]
    before = [variable.numpy() for variable in moving]
    model(pictures(2, 64, 64), training=False)
    assert all((variable.numpy() == value).all() for variable, value in zip(moving, before))
    model(pictures(2, 64, 64), training=True)
    assert all((variable.numpy() != value).any() for variable, value in zip(moving, before))


@pytest.mark.parametrize("settings, names", [
    ({"auxiliary_channels": 0}, {"main", "se"}), ({"encnet": Encnet(se=False)}, {"main", "aux"}),
    ({"encnet": Encnet(lateral=True)}, {"main", "aux", "se"}), ({"head": "fcn", "auxiliary_channels": 0}, {"main"})])
def test_optional_outputs(settings, names):
    outputs = models.build(tiny(**settings), CLASSES)(pictures(1, 33, 33))
    assert outputs.keys() == names and outputs["main"].shape == (1, 5, 5, CLASSES)


@needs_fixtures
@pytest.mark.parametrize("backbone, title, channels, auxiliary", [
    ("resnet18", "R-18-D8", 128, 64), ("resnet50", "R-50-D8", 512, 256)])
@pytest.mark.parametrize("head", ["encnet", "fcn"])
def test_parameter_counts_of_the_originals(head, backbone, title, channels, auxiliary):
    expected = json.loads((SHARED / "reference" / "param_counts.json").read_text())[f"mmseg {head} {title}"]
    model = models.build(Model(backbone=backbone, head=head, channels=channels, auxiliary_channels=auxiliary), 19)
    for part in ("backbone", "decode_head", "auxiliary_head"):
        count = sum(np.prod(variable.shape) for variable in model.trainable_variables if variable.path.startswith(part))
        assert count == expected[part], part
    assert sum(np.prod(variable.shape) for variable in model.trainable_variables) == expected["total"]


@pytest.mark.parametrize("field, value, choices", [
    ("backbone", "resnet51", ["model.backbone", "'resnet51'", "Did you mean resnet50", "resnet101"]),
    ("head", "fcnn", ["model.head", "'fcnn'", "Did you mean fcn", "encnet"])])
def test_unknown_names_offer_choices(field, value, choices):
    with pytest.raises(ConfigError) as caught:
        models.build(tiny(**{field: value}), CLASSES)
    for choice in choices:
        assert choice in str(caught.value)


@pytest.mark.parametrize("stride, contract, expected", [
    (8, True, {3: [1, 2, 2, 2, 2, 2], 4: [2, 4, 4]}), (8, False, {3: [2] * 6, 4: [4] * 3}),
    (16, True, {3: [1] * 6, 4: [1, 2, 2]}), (16, False, {3: [1] * 6, 4: [2] * 3})])
def test_dilations(stride, contract, expected):
    model = models.build(tiny(backbone="resnet50", output_stride=stride, contract_dilation=contract), CLASSES)
    found = {stage: [model.get_layer(f"backbone.layer{stage}.{block}.conv2").dilation_rate
                     for block in range(len(blocks))] for stage, blocks in expected.items()}
    assert found == {stage: [(rate, rate) for rate in rates] for stage, rates in expected.items()}
    others = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)
              and not re.search(r"layer[34]\.\d+\.conv2$", layer.name)]
    assert {layer.dilation_rate for layer in others} == {(1, 1)}


def test_first_weights_of_convolutions():
    keras.utils.set_random_seed(0)
    model = models.build(Model(backbone="resnet18", channels=128, auxiliary_channels=64), CLASSES)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) > 20
    for layer in convolutions:
        kernel = layer.kernel.numpy()
        classifier = layer.name.endswith("conv_seg")
        deviation = 0.01 if classifier else np.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3]))
        # Five standard errors.
        assert kernel.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * kernel.size)), layer.name
        assert abs(kernel.mean()) < 5 * deviation / np.sqrt(kernel.size), layer.name
        # A normal distribution reaches beyond where a truncated one ends.
        assert kernel.size < 10_000 or np.abs(kernel).max() > 3 * deviation
        assert layer.use_bias == classifier and (not classifier or not layer.bias.numpy().any())


@pytest.mark.parametrize("backbone, last", [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_first_weights_of_the_rest(backbone, last):
    keras.utils.set_random_seed(0)
    model = models.build(tiny(backbone=backbone, encnet=Encnet(codewords=16)), CLASSES)
    values = {variable.path: variable.numpy() for variable in model.variables}
    gammas = {path: value for path, value in values.items() if path.endswith("gamma")}
    zero = {path for path, value in gammas.items() if not value.any()}
    assert zero == {path for path in gammas if re.fullmatch(rf"backbone\.layer\d\.\d+\.{last}/gamma", path)} != set()
    assert all((value == 1).all() for path, value in gammas.items() if path not in zero)
    assert not any(value.any() for path, value in values.items() if path.endswith("beta"))
    uniform = {"encoding.0/codewords": (-1, 1, (16 * 8) ** -0.5), "encoding.0/scale": (-1, 0, 1),
               "fc.0/kernel": (-1, 1, 8**-0.5), "fc.0/bias": (-1, 1, 8**-0.5), "se_layer/kernel": (-1, 1, 8**-0.5)}
    for ending, (low, high, limit) in uniform.items():
        [value] = [value for path, value in values.items() if path.endswith(ending)]
        assert low * limit <= value.min() and value.max() <= high * limit
        # It uses most of the range.
        assert value.max() - value.min() > 0.6 * (high - low) * limit, ending


def test_another_backend():
    pytest.importorskip("jax", reason="JAX is not installed")
    code = ("import numpy; from kseg import models; from kseg.config import Model;"
            "model = models.build(Model(backbone='resnet18', width=4, channels=8, auxiliary_channels=4), 5);"
            "outputs = model(numpy.ones((1, 33, 47, 3), 'float32'));"
            "print({name: tuple(output.shape) for name, output in sorted(outputs.items())})")
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | {"KERAS_BACKEND": "jax"},
                            capture_output=True, text=True, check=True)
    assert "{'aux': (1, 5, 6, 5), 'main': (1, 5, 6, 5), 'se': (1, 5)}" in result.stdout
