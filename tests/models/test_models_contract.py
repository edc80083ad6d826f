"""Properties of all heads: shapes, names, saving, gradients, sizes and precision."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import models
from kseg.config.sections import Apcnet, Deeplab, Encnet, Loss, Pspnet
from kseg.errors import ConfigError
from kseg.models.layers import AdaptiveAveragePooling
from kseg.training import losses
from tests.helpers.exhaustive import ALL, all_of
from tests.helpers.small_models import randomize_statistics, tiny

CLASSES = 5
# (output stride, align_corners). Two combinations suffice because dilation and resizing are independent.
SETTINGS = ((8, False), (16, True))
# Together they have the layers of all heads.
SAVED_HEADS = ("encnet", "apcnet", "deeplabv3plus")


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(
    scope="module",
    ids=lambda param: f"{param[0]}-os{param[1]}{'-corners' if param[2] else ''}",
    params=all_of(
        [(head, *SETTINGS[0]) for head in models.HEADS] + [("encnet", *SETTINGS[1])],
        *[((head, *SETTINGS[1]),) for head in models.HEADS if head != "encnet"],
    ),
)
def case(request):
    """Return (config, model with open sizes and random statistics)."""
    head, stride, align_corners = request.param
    keras.utils.set_random_seed(0)
    config = tiny(head=head, output_stride=stride, align_corners=align_corners)
    model = models.build(config, CLASSES)
    randomize_statistics(model)
    return config, model


@pytest.fixture(scope="module")
def built(case):
    """Return another model with the configuration of `case`, and its initial weights."""
    config, _ = case
    keras.utils.set_random_seed(3)
    model = models.build(config, CLASSES)
    return model, model.get_weights()


@pytest.fixture
def fresh(built):
    """Return the other model with its initial weights, whatever other tests have done to it."""
    model, initial = built
    model.set_weights(initial)
    return model


def ceil(length, stride):
    return -(-length // stride)


@pytest.mark.parametrize("batch, height, width", [(1, 33, 47), (2, 64, 64), (3, 40, 97), (1, 8, 8), (2, 1, 1)])
def test_outputs(case, batch, height, width):
    config, model = case
    outputs = model(random_images(batch, height, width), training=False)
    assert outputs.keys() == {"main", "aux"} | ({"se"} if config.head == "encnet" else set())
    strides = {"aux": config.output_stride, "main": 4 if config.head == "deeplabv3plus" else config.output_stride}
    for name, stride in strides.items():
        assert outputs[name].shape == (batch, ceil(height, stride), ceil(width, stride), CLASSES)
    assert "se" not in outputs or outputs["se"].shape == (batch, CLASSES)
    for output in outputs.values():
        assert output.dtype == tf.float32 and np.isfinite(output).all()


def test_is_a_functional_model(case):
    _, model = case
    # Only the config of a functional model contains the graph of its layers.
    assert isinstance(model, keras.Model) and model.get_config()["layers"]
    assert model.input.shape == (None, None, None, 3)
    assert model.output["main"].shape == model.output["aux"].shape == (None, None, None, CLASSES)


def test_fixed_and_open_sizes_agree(case):
    config, model = case
    fixed = models.build(config, CLASSES, size=(33, 47))
    fixed.set_weights(model.get_weights())
    images = random_images(2, 33, 47)
    expected = model(images, training=False)
    assert_close(fixed(images, training=False), expected)
    assert {name: tuple(output.shape[1:]) for name, output in expected.items()} == {
        name: output.shape[1:] for name, output in fixed.output.items()
    }
    compiled = tf.function(
        lambda batch: model(batch, training=False),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)],
        autograph=False,
    )
    assert_close(compiled(images), expected)


def test_samples_are_independent(case):
    _, model = case
    images = random_images(3, 40, 40)
    together, alone = model(images, training=False), model(images[1:2], training=False)
    assert_close({name: output[1:2] for name, output in together.items()}, alone)


def test_names_are_unique_and_readable(fresh):
    # Another model with the same layers has been built before, in the same process.
    names = [operation.name for operation in fresh.operations]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"images|(backbone|decode_head|auxiliary_head)(\.[a-z0-9_]+)+", name), name
        # Automatic names such as conv2d_7 depend on the layers built before.
        assert not re.search(r"[a-z]_\d+$", name), name
    paths = [variable.path for variable in fresh.variables]
    assert len(set(paths)) == len(paths)


def test_weights_survive_a_file(case, fresh, tmp_path):
    _, model = case
    model.save_weights(tmp_path / "a.weights.h5")
    images = random_images(2, 40, 40)
    expected = model(images, training=False)
    assert np.abs(fresh(images)["main"] - expected["main"]).max() > 1e-3
    fresh.load_weights(tmp_path / "a.weights.h5")
    assert_close(fresh(images, training=False), expected)


def test_the_whole_model_survives_a_file(case, tmp_path):
    config, model = case
    if not ALL and config.head not in SAVED_HEADS:
        pytest.skip("has the layers of a head that is tested: `make test-all` runs it")
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    images = random_images(2, 33, 47)
    assert_close(again(images, training=False), model(images, training=False))


def gradients(model, config):
    # Batches need more than two images: a norm over two pooled values always gives 1 and -1.
    images = random_images(4, 64, 64)
    labels = np.random.default_rng(1).integers(0, CLASSES, (4, 64, 64)).astype(np.uint8)
    with tf.GradientTape() as tape:
        terms = losses.loss_terms(model(images, training=True), labels, Loss(), config.align_corners)
        loss = sum(weight * total / count for weight, total, count in terms.values())
    variables = model.trainable_variables
    return dict(
        zip((variable.path for variable in variables), tape.gradient(loss, [variable.value for variable in variables]))
    )


def test_gradients_reach_every_variable(case, fresh):
    config, _ = case
    for path, gradient in gradients(fresh, config).items():
        assert gradient is not None and np.isfinite(gradient).all(), path
    # Layers before a last gamma of zero have a zero gradient until it is randomized.
    randomize_statistics(fresh)
    for path, gradient in gradients(fresh, config).items():
        assert np.abs(gradient).max() > 0, path


def test_only_training_updates_the_moving_statistics(fresh):
    moving = [variable for variable in fresh.non_trainable_variables if "moving" in variable.path]
    initial = [variable.numpy() for variable in moving]
    fresh(random_images(2, 64, 64), training=False)
    assert all((variable.numpy() == value).all() for variable, value in zip(moving, initial))
    fresh(random_images(2, 64, 64), training=True)
    assert all((variable.numpy() != value).any() for variable, value in zip(moving, initial))


@pytest.fixture(scope="module", params=models.HEADS)
def exact(request):
    """Return (config, model in full precision with random statistics)."""
    keras.utils.set_random_seed(0)
    config = tiny(head=request.param, encnet=Encnet(lateral=True))
    model = models.build(config, CLASSES)
    randomize_statistics(model)
    return config, model


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(exact, precision):
    config, model = exact
    if not ALL and precision == "mixed_float16" and config.head != "encnet":
        pytest.skip("repeats a check for another case: `make test-all` runs it")
    policy = keras.config.dtype_policy()
    mixed = models.build(config, CLASSES, precision=precision)
    assert keras.config.dtype_policy() == policy
    mixed.set_weights(model.get_weights())
    images = random_images(2, 40, 47)
    expected, actual = model(images, training=False), mixed(images, training=False)
    assert mixed.get_layer("backbone.layer4.0.relu").compute_dtype == precision.removeprefix("mixed_")
    assert {variable.dtype for variable in mixed.variables if "seed" not in variable.path} == {"float32"}
    for name, output in actual.items():
        assert output.dtype == tf.float32
        # The bounds allow for bfloat16's 8 bits through some twenty layers. Equal values would mean full precision.
        difference = np.abs(output - expected[name]).max() / np.abs(expected[name]).max()
        assert 0 < difference < (0.1 if precision == "mixed_bfloat16" else 0.02), name
    for output in mixed(images, training=True).values():
        assert np.isfinite(output).all()


def test_inference_needs_neither_auxiliary_head_nor_presence_layer(case, tmp_path):
    config, model = case
    inference = models.main_only(model)
    names = {variable.path for variable in inference.variables}
    excluded = {variable.path for variable in model.variables} - names
    assert excluded and all(re.match(r"auxiliary_head\.|decode_head\.se_layer/", name) for name in excluded)
    assert not any(re.match(r"auxiliary_head\.|decode_head\.se_layer/", name) for name in names)
    images = random_images(2, 33, 47)
    expected = model(images, training=False)["main"]
    np.testing.assert_allclose(inference(images, training=False), expected, rtol=1e-4, atol=1e-5)
    # An export takes many times as long as all else here. One per head, with either setting, shows the same as two: a
    # setting only changes attributes of operations, which test_fixed_and_open_sizes_agree compiles for all cases.
    if SETTINGS.index((config.output_stride, config.align_corners)) != (config.head == "encnet"):
        return
    if not ALL and config.head != "encnet":
        return
    inference.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    # The export may omit the seed states of dropout, which inference does not read.
    assert len(loaded.variables) <= len(inference.variables)
    np.testing.assert_allclose(loaded.serve(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings, names",
    [
        ({"auxiliary_channels": 0}, {"main", "se"}),
        ({"encnet": Encnet(se=False)}, {"main", "aux"}),
        ({"encnet": Encnet(lateral=True)}, {"main", "aux", "se"}),
        ({"head": "fcn", "auxiliary_channels": 0}, {"main"}),
        ({"head": "deeplabv3plus", "deeplab": Deeplab(shortcut_channels=0)}, {"main", "aux"}),
        ({"head": "deeplabv3", "deeplab": Deeplab(dilations=(1, 3))}, {"main", "aux"}),
        ({"head": "apcnet", "apcnet": Apcnet(pool_scales=(7,), fusion=False)}, {"main", "aux"}),
        ({"head": "pspnet", "pspnet": Pspnet(pool_scales=(1, 4))}, {"main", "aux"}),
    ],
)
def test_optional_outputs(settings, names):
    outputs = models.build(tiny(**settings), CLASSES)(random_images(1, 33, 33))
    assert outputs.keys() == names and outputs["main"].shape == (1, 5, 5, CLASSES)


@pytest.mark.parametrize("head", ["apcnet", "pspnet"])
def test_every_pool_scale_has_a_branch(head):
    scales = (1, 2, 5)
    model = models.build(tiny(head=head, apcnet=Apcnet(pool_scales=scales), pspnet=Pspnet(pool_scales=scales)), CLASSES)
    assert [
        layer.bins for layer in model.layers if isinstance(layer, AdaptiveAveragePooling) and "global" not in layer.name
    ] == list(scales)
    assert any("fusion_conv" in layer.name for layer in model.layers) == (head == "apcnet")


@pytest.mark.parametrize(
    "field, value, choices",
    [
        ("backbone", "resnet51", ["model.backbone", "'resnet51'", "Did you mean resnet50", "resnet101"]),
        ("head", "fcnn", ["model.head", "'fcnn'", "Did you mean fcn", "encnet"]),
    ],
)
def test_unknown_names_list_the_choices(field, value, choices):
    with pytest.raises(ConfigError) as caught:
        models.build(tiny(**{field: value}), CLASSES)
    for choice in choices:
        assert choice in str(caught.value)
