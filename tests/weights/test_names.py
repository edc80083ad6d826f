"""The name tables match the weight lists of the reference systems."""

import pytest

from kseg import config as configs
from kseg import models
from kseg.errors import WeightsError
from kseg.weights import loading
from kseg.weights.names import keras_to_torchvision, mmseg_head, sss_head, sss_to_mmseg
from tests.helpers.shared_files import KEYS, read_keys
from tests.helpers.small_models import without_values

needs_keys = pytest.mark.skipif(not KEYS.is_dir(), reason=f"the reference key lists in {KEYS} are missing")
HEADS = ["encnet", "deeplabv3", "deeplabv3plus", "apcnet", "pspnet", "fcn"]


@needs_keys
@pytest.mark.parametrize("head", HEADS)
def test_translated_sss_names_have_the_shapes_of_mmseg(head):
    sss, mmseg = (read_keys(KEYS / f"keys_{system}_{head}.txt") for system in ("sss", "mmseg"))
    renamed = {sss_to_mmseg(name, head): shape for name, shape in sss.items()}
    # SSSegmentation's FCN lacks the convolution that joins input and output.
    expected = {name: shape for name, shape in mmseg.items() if not name.startswith("decode_head.conv_cat.")}
    assert renamed.keys() == expected.keys() and len(renamed) == len(sss)
    for name, shape in renamed.items():
        # The auxiliary heads differ only in width.
        assert shape == expected[name] or name.startswith("auxiliary_head.") and len(shape) == len(expected[name]), name
    assert sss_head(sss) == head and mmseg_head(mmseg) == head


@needs_keys
@pytest.mark.parametrize(
    "keys, overrides",
    [(head, [f"model.head={head}"]) for head in HEADS]
    + [
        ("encnet_lateral", ["model.encnet.lateral=true"]),
        ("backbone_v1b", ["model.stem=7x7"]),
        ("backbone_v1d", ["model.downsample=average"]),
    ],
)
def test_models_have_the_names_and_shapes_of_mmseg(keys, overrides):
    config = configs.load("encnet_cityscapes", overrides)
    with without_values():
        model = models.build(config.model, 19)
    actual = {name: target.shape() for name, target in loading.torch_targets(model).items()}
    expected = read_keys(KEYS / f"keys_mmseg_{keys}.txt")
    if keys.startswith("backbone"):
        actual = {name: shape for name, shape in actual.items() if name.startswith("backbone.")}
        expected = {f"backbone.{name.removeprefix('backbone.')}": shape for name, shape in expected.items()}
    assert actual == expected


@pytest.mark.parametrize(
    "name, head, expected",
    [
        ("aspp_net.parallel_branches.11.0.weight", "deeplabv3", "decode_head.aspp_modules.11.conv.weight"),
        (
            "aspp_net.parallel_branches.6.depthwise_bn.bias",
            "deeplabv3plus",
            "decode_head.aspp_modules.6.depthwise_conv.bn.bias",
        ),
        ("acm_modules.10.gla.bias", "apcnet", "decode_head.acm_modules.10.gla.bias"),
        ("ppm_net.branches.12.2.running_var", "pspnet", "decode_head.psp_modules.12.1.bn.running_var"),
        ("backbone_net.layer3.10.bn1.weight", "fcn", "backbone.layer3.10.bn1.weight"),
    ],
)
def test_any_number_of_branches(name, head, expected):
    assert sss_to_mmseg(name, head) == expected


def test_sss_fcn_of_other_depths():
    for convolutions, index in ((1, 4), (2, 7), (3, 10)):
        assert sss_to_mmseg(f"decoder.{index}.bias", "fcn", convolutions) == "decode_head.conv_seg.bias"
    assert sss_to_mmseg("decoder.7.bias", "fcn", 3) == "decode_head.convs.2.bn.bias"
    assert sss_to_mmseg("decoder.6.weight", "fcn", 3) == "decode_head.convs.2.conv.weight"


def test_unknown_sss_names():
    with pytest.raises(WeightsError, match="'ocr'.*Choices: apcnet, deeplabv3, deeplabv3plus, encnet, fcn, pspnet"):
        sss_to_mmseg("decoder.1.weight", "ocr")
    for name in ("decoder.10.weight", "decode_head.conv_seg.weight", "bottleneck.2.weight"):
        with pytest.raises(WeightsError, match=f"'{name}'.*decoder.1"):
            sss_to_mmseg(name, "encnet")


def test_unsupported_heads_are_not_confused_with_supported_ones():
    assert mmseg_head(["decode_head.psp_modules.0.1.conv.weight", "decode_head.fpn_convs.0.conv.weight"]) == "upernet"
    assert mmseg_head(["decode_head.convs.0.conv.weight", "decode_head.cca.gamma"]) == ""
    assert mmseg_head(["backbone.conv1.weight"]) == ""
    assert sss_head(["ppm_net.branches.0.1.weight", "fpn_convs.0.0.weight"]) == ""
    assert sss_head(["backbone_net.conv1.weight", "decoder.0.weight", "conv_before_cca.0.weight"]) == ""


def test_keras_applications_layers():
    assert keras_to_torchvision("conv1_conv") == "conv1" and keras_to_torchvision("conv1_bn") == "bn1"
    assert keras_to_torchvision("conv4_block23_2_bn") == "layer3.22.bn2"
    assert keras_to_torchvision("conv2_block1_0_conv") == "layer1.0.downsample.0"
    # These are layers of ResNetV2, and of blocks that no ResNet has.
    for name in ("conv2_block1_preact_bn", "post_bn", "conv6_block1_1_conv", "conv2_block1_4_conv", "dense"):
        assert keras_to_torchvision(name) == ""
