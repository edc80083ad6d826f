"""Backbone variants, parameter counts and initial weights match the original systems."""

import json
import re

import keras
import numpy as np
import pytest
from keras.layers import DepthwiseConv2D

from kseg import models
from kseg.config.sections import Deeplab, Encnet, Fcn, Model
from kseg.errors import ConfigError
from tests.helpers.exhaustive import all_of
from tests.helpers.shared_files import SHARED, needs_fixtures
from tests.helpers.small_models import tiny, without_values

CLASSES = 5

# Backbone -> its name in the reference, channels of the head and of the auxiliary head.
SIZES = {"resnet18": ("R-18-D8", 128, 64), "resnet50": ("R-50-D8", 512, 256), "resnet101": ("R-101-D8", 512, 256)}

# SSSegmentation publishes no ResNet-18.
PUBLISHED = [("mmseg", backbone) for backbone in SIZES] + [("sss", "resnet50"), ("sss", "resnet101")]


@needs_fixtures
@pytest.mark.parametrize("system, backbone", PUBLISHED)
@pytest.mark.parametrize("head", models.HEADS)
def test_parameter_counts_match_the_originals(system, head, backbone):
    title, channels, auxiliary = SIZES[backbone]
    expected = json.loads((SHARED / "reference" / "param_counts.json").read_text())[f"{system} {head} {title}"]
    if system == "sss":
        auxiliary = 512
    shortcut = 12 if backbone == "resnet18" else 48
    with without_values():
        model = models.build(
            Model(
                backbone=backbone,
                head=head,
                channels=channels,
                auxiliary_channels=auxiliary,
                fcn=Fcn(concat_input=system == "mmseg"),
                deeplab=Deeplab(shortcut_channels=shortcut),
            ),
            19,
        )
    variables = {"total": model.trainable_variables}
    for part in ("backbone", "decode_head", "auxiliary_head"):
        variables[part] = [variable for variable in model.trainable_variables if variable.path.startswith(part)]
    counts = {part: sum(np.prod(variable.shape) for variable in variables[part]) for part in variables}
    parts = expected.keys() & variables.keys()
    assert {part: counts[part] for part in parts} == {part: expected[part] for part in parts}


@pytest.mark.parametrize(
    "stride, contract, expected",
    [
        (8, True, {3: [1, 2, 2, 2, 2, 2], 4: [2, 4, 4]}),
        (8, False, {3: [2] * 6, 4: [4] * 3}),
        (16, True, {3: [1] * 6, 4: [1, 2, 2]}),
        (16, False, {3: [1] * 6, 4: [2] * 3}),
    ],
)
def test_dilations(stride, contract, expected):
    with without_values():
        model = models.build(tiny(backbone="resnet50", output_stride=stride, contract_dilation=contract), CLASSES)
    dilations = {
        stage: [model.get_layer(f"backbone.layer{stage}.{block}.conv2").dilation_rate for block in range(len(blocks))]
        for stage, blocks in expected.items()
    }
    assert dilations == {stage: [(rate, rate) for rate in rates] for stage, rates in expected.items()}
    others = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and not re.search(r"layer[34]\.\d+\.conv2$", layer.name)
    ]
    assert {layer.dilation_rate for layer in others} == {(1, 1)}


@pytest.mark.parametrize(
    "settings, stage, expected",
    [
        ({"multi_grid": (1, 2, 4)}, "layer4", [1, 2, 4]),
        ({"multi_grid": (3, 1, 2), "output_stride": 8}, "layer4", [3, 1, 2]),
        ({"multi_grid": (1, 2, 4)}, "layer3", [1] * 6),
        ({"backbone": "resnet18", "multi_grid": (1, 2)}, "layer4", [1, 2]),
    ],
)
def test_multi_grid_is_absolute_and_only_for_the_last_stage(settings, stage, expected):
    with without_values():
        model = models.build(tiny(**{"backbone": "resnet50", "output_stride": 16} | settings), CLASSES)
    convolution = "conv1" if settings.get("backbone") == "resnet18" else "conv2"
    assert [
        model.get_layer(f"backbone.{stage}.{block}.{convolution}").dilation_rate[0] for block in range(len(expected))
    ] == expected


def test_multi_grid_of_a_wrong_length():
    with pytest.raises(ConfigError, match="model.multi_grid needs 3 dilations.*resnet50.*\\(1, 2\\)"):
        models.build(tiny(backbone="resnet50", multi_grid=(1, 2)), CLASSES)


@pytest.mark.parametrize(
    "settings, stem, strided, shortcut",
    [
        ({"stem": "7x7", "stride_on": "1x1"}, "conv1", "conv1", "downsample.0"),
        ({"stem": "7x7"}, "conv1", "conv2", "downsample.0"),
        ({}, "stem.0", "conv2", "downsample.0"),
        ({"downsample": "average"}, "stem.0", "conv2", "downsample.1"),
    ],
    ids=["v1", "v1b", "v1c", "v1d"],
)
def test_variants_of_the_backbone(settings, stem, strided, shortcut):
    with without_values():
        model = models.build(tiny(backbone="resnet50", **settings), CLASSES)
    names = {layer.name for layer in model.layers}
    block = "backbone.layer2.0"
    assert f"backbone.{stem}" in names and f"{block}.{shortcut}" in names
    # A strided 1x1 convolution is a subsampling layer followed by a convolution without stride.
    assert (f"{block}.conv1.subsample" in names) == (strided == "conv1")
    assert model.get_layer(f"{block}.conv2").strides == ((1, 1) if strided == "conv1" else (2, 2))
    assert any(isinstance(layer, keras.layers.AveragePooling2D) for layer in model.layers) == ("downsample" in settings)


def test_stem_channels_differ_from_the_width():
    with without_values():
        model = models.build(tiny(backbone="resnet18", stem_channels=12), CLASSES)
    assert [model.get_layer(f"backbone.stem.{index}").filters for index in (0, 3, 6)] == [6, 6, 12]
    assert model.get_layer("backbone.layer1.0.downsample.0").kernel.shape == (1, 1, 12, 4)


@pytest.mark.parametrize("head", all_of(["encnet", "apcnet"], "deeplabv3", "deeplabv3plus", "pspnet", "fcn"))
def test_initial_weights_of_convolutions(head):
    keras.utils.set_random_seed(0)
    model = models.build(Model(backbone="resnet18", head=head, channels=128, auxiliary_channels=64), CLASSES)
    # Depthwise convolutions are listed too, with another kernel layout. The plain 1x1 ones have a separate test.
    convolutions = [
        layer
        for layer in model.layers
        if isinstance(layer, (keras.layers.Conv2D, DepthwiseConv2D)) and not layer.name.endswith(".gla")
    ]
    assert len(convolutions) > 20
    for layer in convolutions:
        kernel = layer.kernel.numpy()
        classifier = layer.name.endswith("conv_seg")
        # Both systems count all channels of a depthwise kernel as its outputs.
        outputs = kernel.shape[2] if isinstance(layer, DepthwiseConv2D) else kernel.shape[3]
        deviation = 0.01 if classifier else np.sqrt(2 / (kernel.shape[0] * kernel.shape[1] * outputs))
        # The tolerance is five standard errors.
        assert kernel.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * kernel.size)), layer.name
        assert abs(kernel.mean()) < 5 * deviation / np.sqrt(kernel.size), layer.name
        # A truncated normal distribution would have no values beyond two standard deviations.
        assert kernel.size < 10_000 or np.abs(kernel).max() > 3 * deviation
        assert layer.use_bias == classifier and (not classifier or not layer.bias.numpy().any())


@pytest.mark.parametrize("backbone, last", [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_initial_weights_of_norms_and_of_the_encoding(backbone, last):
    keras.utils.set_random_seed(0)
    model = models.build(tiny(backbone=backbone, encnet=Encnet(codewords=16)), CLASSES)
    values = {variable.path: variable.numpy() for variable in model.variables}
    gammas = {path: value for path, value in values.items() if path.endswith("gamma")}
    zero = {path for path, value in gammas.items() if not value.any()}
    assert zero == {path for path in gammas if re.fullmatch(rf"backbone\.layer\d\.\d+\.{last}/gamma", path)} != set()
    assert all((value == 1).all() for path, value in gammas.items() if path not in zero)
    assert not any(value.any() for path, value in values.items() if path.endswith("beta"))
    assert_uniform(
        values,
        {
            "encoding.0/codewords": (-1, 1, (16 * 8) ** -0.5),
            "encoding.0/scale": (-1, 0, 1),
            "fc.0/kernel": (-1, 1, 8**-0.5),
            "fc.0/bias": (-1, 1, 8**-0.5),
            "se_layer/kernel": (-1, 1, 8**-0.5),
        },
    )


def assert_uniform(values, expected):
    """Check {suffix of a path: (low, high, limit)}: the values fill most of [low * limit, high * limit]."""
    for ending, (low, high, limit) in expected.items():
        matching = [value for path, value in values.items() if path.endswith(ending)]
        assert matching, ending
        for value in matching:
            assert low * limit <= value.min() and value.max() <= high * limit, ending
            assert value.size < 8 or value.max() - value.min() > 0.6 * (high - low) * limit, ending


def test_affinities_have_pytorchs_initial_weights():
    model = models.build(tiny(head="apcnet", channels=16), CLASSES)
    values = {variable.path: variable.numpy() for variable in model.variables}
    assert_uniform(values, {".gla/kernel": (-1, 1, 16**-0.5), ".gla/bias": (-1, 1, 16**-0.5)})


@pytest.mark.parametrize("head", all_of(["encnet", "apcnet"], "deeplabv3", "deeplabv3plus", "pspnet", "fcn"))
def test_uniform_initial_weights(head):
    keras.utils.set_random_seed(0)
    model = models.build(tiny(head=head, initial_weights="uniform", encnet=Encnet(codewords=16)), CLASSES)
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, DepthwiseConv2D)):
            kernel = layer.kernel.numpy()
            # A depthwise kernel has one input channel.
            fan_in = np.prod(kernel.shape[:2]) * (1 if isinstance(layer, DepthwiseConv2D) else kernel.shape[2])
            arrays = {"kernel": kernel} | ({"bias": layer.bias.numpy()} if layer.use_bias else {})
            assert_uniform(arrays, dict.fromkeys(arrays, (-1, 1, fan_in ** (-0.5))))
            assert all(np.abs(array).max() > 0 for array in arrays.values()), layer.name
        if layer.name.endswith(("bn1", "bn2", ".bn")):
            assert (layer.gamma.numpy() == 1).all() and not layer.beta.numpy().any()
