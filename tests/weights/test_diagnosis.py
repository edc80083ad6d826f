"""The diagnosis of a file that does not fit names what differs. Small kseg models stand in for files."""

import dataclasses
import functools

import numpy as np
import pytest

from kseg import models
from kseg.config.sections import Apcnet, Deeplab, Encnet, Fcn, Model
from kseg.errors import WeightsError
from kseg.weights import loading
from kseg.weights.diagnosis import diagnose

SMALL = Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=4)


@functools.cache
def shapes(classes=3, **changes):
    model = models.build(dataclasses.replace(SMALL, **changes), classes)
    return {name: target.shape() for name, target in loading.torch_targets(model).items()}


def backbone_shapes(blocks, bottleneck=True, prefix="backbone."):
    """Return the convolutions of a backbone; only their names identify its depth."""
    return {
        f"{prefix}layer{stage}.{block}.conv{index}.weight": (4, 4, 1, 1)
        for stage, number in enumerate(blocks, 1)
        for block in range(number)
        for index in range(1, 4 if bottleneck else 3)
    }


@pytest.mark.parametrize(
    "file, model, head, fragments",
    [
        ({"head": "deeplabv3"}, {"head": "encnet"}, "encnet", ["head deeplabv3", "model.head=encnet"]),
        ({"head": "deeplabv3plus"}, {"head": "deeplabv3"}, "deeplabv3", ["head deeplabv3plus", "model.head=deeplabv3"]),
        ({"head": "fcn"}, {"head": "pspnet"}, "pspnet", ["head fcn", "model.head=pspnet"]),
        ({"head": "apcnet"}, {"head": "fcn"}, "fcn", ["head apcnet", "model.head=fcn"]),
        ({"classes": 5}, {}, "encnet", ["has 5 classes", "has 3"]),
        ({"stem": "7x7"}, {}, "encnet", ["model.stem=7x7", "model.stem=deep"]),
        ({}, {"downsample": "average"}, "encnet", ["model.downsample=convolution", "model.downsample=average"]),
        ({"auxiliary_channels": 16}, {}, "encnet", ["model.auxiliary_channels=16", "the config has 4"]),
        ({"auxiliary_channels": 0}, {}, "encnet", ["no auxiliary head", "the config has 4"]),
        ({"width": 8}, {}, "encnet", ["model.width=8", "model.width=4"]),
        ({"channels": 16}, {}, "encnet", ["model.channels=16", "model.channels=8"]),
        ({"encnet": Encnet(codewords=5)}, {}, "encnet", ["model.encnet.codewords=5"]),
        (
            {"head": "deeplabv3plus", "deeplab": Deeplab(shortcut_channels=3)},
            {"head": "deeplabv3plus"},
            "deeplabv3plus",
            ["model.deeplab.shortcut_channels=3"],
        ),
        (
            {"encnet": Encnet(lateral=True)},
            {},
            "encnet",
            ["has weights decode_head.lateral_convs.*", "model.encnet.lateral"],
        ),
        ({"encnet": Encnet(se=False)}, {}, "encnet", ["has no weights decode_head.se_layer.*", "model.encnet.se"]),
        ({"head": "fcn", "fcn": Fcn(concat_input=False)}, {"head": "fcn"}, "fcn", ["model.fcn.concat_input"]),
        ({"head": "apcnet", "apcnet": Apcnet(fusion=False)}, {"head": "apcnet"}, "apcnet", ["model.apcnet.fusion"]),
    ],
)
def test_files_of_other_configurations(file, model, head, fragments):
    reason = diagnose(shapes(**file), shapes(**model), head)
    assert all(fragment in reason for fragment in fragments)
    assert diagnose(shapes(**model), shapes(**model), head) == ""


def test_other_depths():
    resnet18, resnet34, resnet50, resnet101 = (
        backbone_shapes(*network)
        for network in (((2, 2, 2, 2), False), ((3, 4, 6, 3), False), ((3, 4, 6, 3),), ((3, 4, 23, 3),))
    )
    assert diagnose(resnet101, resnet50) == "has the backbone resnet101; the config has resnet50"
    assert diagnose(resnet50, resnet101) == "has the backbone resnet50; the config has resnet101"
    assert diagnose(resnet34, resnet50) == "has the backbone resnet34; the config has resnet50"
    assert diagnose(resnet18, resnet50) == "has the backbone resnet18; the config has resnet50"
    # An incomplete file is not a shallower network.
    assert diagnose(backbone_shapes((3, 4, 6, 1)), resnet50) == "lacks 6 of the model's 48 weights"


@pytest.mark.parametrize(
    "file, fragment",
    [
        ({"backbone.bottom_up.res2.0.conv1.weight": (1,)}, "Detectron2"),
        ({"classifier.4.weight": (1,), "backbone.conv1.weight": (1,)}, "torchvision's segmentation"),
        ({"encoder.conv1.weight": (1,)}, "segmentation_models.pytorch"),
        ({"x.weight": (1,), "y.weight": (2,)}, "x.weight, y.weight"),
        (backbone_shapes((2, 2, 2, 2), False, ""), "init.backbone"),
        ({"decode_head.cca.gamma": (1,), "decode_head.convs.0.conv.weight": (1,)}, "cca, convs"),
    ],
)
def test_files_of_other_systems(file, fragment):
    model = {"backbone.stem.0.weight": (2, 3, 3, 3), "decode_head.conv_seg.weight": (3, 8, 1, 1)}
    assert fragment in diagnose(file, model, "encnet")


def test_the_suggested_skip_loads_all_but_the_classifiers(tmp_path):
    file, model = shapes(classes=5), models.build(SMALL, 3)
    np.savez(tmp_path / "a.npz", **{name: np.ones(shape, "float32") for name, shape in file.items()})
    with pytest.raises(WeightsError) as caught:
        loading.load_checkpoint(model, tmp_path / "a.npz", "encnet")
    skip = str(caught.value).splitlines()[0].partition("init.skip=")[2].partition(" ")[0].split(",")
    notes = loading.load_checkpoint(model, tmp_path / "a.npz", "encnet", skip)
    assert f"{len(file) - 6} of the model's {len(file)} weights were loaded" in notes


def test_a_skip_is_only_suggested_if_it_loads_everything_else():
    reason = diagnose(shapes(classes=5, width=8), shapes(), "encnet")
    assert "model.width=8" in reason and "init.skip" not in reason
