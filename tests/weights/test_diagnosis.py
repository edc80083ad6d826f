"""One sentence on what a file is that does not fit: small models of ours stand for the files."""

import dataclasses
import functools

import numpy as np
import pytest

from kseg import models
from kseg.config import Apcnet, Deeplab, Encnet, Fcn, Model
from kseg.errors import WeightsError
from kseg.weights import loading
from kseg.weights.diagnosis import diagnose

SMALL = Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=4)


@functools.cache
def shapes(classes=3, **changes):
    model = models.build(dataclasses.replace(SMALL, **changes), classes)
    return {name: target.shape() for name, target in loading.torch_targets(model).items()}


def backbone(blocks, bottleneck=True, prefix="backbone."):
    """Names of a backbone's convolutions; the shapes do not tell its depth."""
    return {f"{prefix}layer{stage}.{block}.conv{index}.weight": (4, 4, 1, 1) for stage, number in enumerate(blocks, 1)
            for block in range(number) for index in range(1, 4 if bottleneck else 3)}


@pytest.mark.parametrize("file, model, head, words", [
    ({"head": "deeplabv3"}, {"head": "encnet"}, "encnet", "is a checkpoint of head deeplabv3, the config asks for enc"),
    ({"head": "deeplabv3plus"}, {"head": "deeplabv3"}, "deeplabv3", "of head deeplabv3plus, the config asks for"),
    ({"head": "fcn"}, {"head": "pspnet"}, "pspnet", "of head fcn, the config asks for pspnet"),
    ({"head": "apcnet"}, {"head": "fcn"}, "fcn", "of head apcnet, the config asks for fcn"),
    ({"classes": 5}, {}, "encnet", "has 5 classes, the config's data set has 3"),
    ({"stem": "7x7"}, {}, "encnet", "was trained with model.stem=7x7, the config has model.stem=deep"),
    ({}, {"downsample": "average"}, "encnet", "was trained with model.downsample=convolution, the config has"),
    ({"auxiliary_channels": 16}, {}, "encnet", "has an auxiliary head of 16 channels, the config has "
     "model.auxiliary_channels=4 instead of 16"),
    ({"auxiliary_channels": 0}, {}, "encnet", "has no auxiliary head, the config has model.auxiliary_channels=4"),
    ({"width": 8}, {}, "encnet", "was trained with model.width=8, the config has model.width=4"),
    ({"channels": 16}, {}, "encnet", "was trained with model.channels=16, the config has model.channels=8"),
    ({"encnet": Encnet(codewords=5)}, {}, "encnet", "with model.encnet.codewords=5, the config has"),
    ({"head": "deeplabv3plus", "deeplab": Deeplab(shortcut_channels=3)}, {"head": "deeplabv3plus"}, "deeplabv3plus",
     "was trained with model.deeplab.shortcut_channels=3, the config has"),
    ({"encnet": Encnet(lateral=True)}, {}, "encnet", "has weights decode_head.lateral_convs.*, which model.encnet.lat"),
    ({"encnet": Encnet(se=False)}, {}, "encnet", "has no weights decode_head.se_layer.*, which model.encnet.se dec"),
    ({"head": "fcn", "fcn": Fcn(concat_input=False)}, {"head": "fcn"}, "fcn", "which model.fcn.concat_input decides"),
    ({"head": "apcnet", "apcnet": Apcnet(fusion=False)}, {"head": "apcnet"}, "apcnet", "which model.apcnet.fusion dec"),
])
def test_files_of_other_configurations(file, model, head, words):
    assert words in diagnose(shapes(**file), shapes(**model), head)
    assert diagnose(shapes(**model), shapes(**model), head) == ""


def test_other_depths():
    r18, r34, r50, r101 = (backbone(*network) for network in (
        ((2, 2, 2, 2), False), ((3, 4, 6, 3), False), ((3, 4, 6, 3),), ((3, 4, 23, 3),)))
    assert diagnose(r101, r50, "") == "has a backbone of 101 layers (23 blocks in layer3), the config asks for resnet50"
    assert diagnose(r50, r101, "") == "has a backbone of 50 layers (6 blocks in layer3), the config asks for resnet101"
    assert diagnose(r34, r50, "").startswith("has a backbone of 34 layers of other blocks (resnet34), the config asks")
    assert diagnose(r18, r50, "").startswith("has a backbone of 18 layers (2 blocks in layer3), the config asks")
    assert "5 blocks in layer2, the config asks for resnet50" in diagnose(backbone((3, 5, 6, 3)), r50, "")
    # A file that ends early is no shallower network.
    assert diagnose(backbone((3, 4, 6, 1)), r50, "") == "lacks 6 of the model's 48 weights"


@pytest.mark.parametrize("file, words", [
    ({"backbone.bottom_up.res2.0.conv1.weight": (1,)}, "of Detectron2 by its names"),
    ({"classifier.4.weight": (1,), "backbone.conv1.weight": (1,)}, "of torchvision's segmentation by its names"),
    ({"encoder.conv1.weight": (1,)}, "of segmentation_models.pytorch by its names"),
    ({"x.weight": (1,), "y.weight": (2,)}, "has none of the model's 2 weights; its names are of another system, "
                                           "such as x.weight, y.weight"),
    (backbone((2, 2, 2, 2), False, ""),
     "holds a backbone alone; name it by init.backbone, or convert it with --backbone"),
    ({"decode_head.cca.gamma": (1,), "decode_head.convs.0.conv.weight": (1,)},
     "of an unknown head of modules cca, convs"),
])
def test_files_of_other_systems(file, words):
    model = {"backbone.stem.0.weight": (2, 3, 3, 3), "decode_head.conv_seg.weight": (3, 8, 1, 1)}
    assert words in diagnose(file, model, "encnet")


def test_the_advice_on_other_classes_loads_the_rest(tmp_path):
    """What the sentence proposes for init.skip is enough, and all that is left out are the classifiers."""
    file, model = shapes(classes=5), models.build(SMALL, 3)
    np.savez(tmp_path / "a.npz", **{name: np.ones(shape, "float32") for name, shape in file.items()})
    with pytest.raises(WeightsError) as caught:
        loading.load_checkpoint(model, tmp_path / "a.npz", "encnet")
    skip = str(caught.value).splitlines()[0].partition("init.skip=")[2].partition(" ")[0].split(",")
    notes = loading.load_checkpoint(model, tmp_path / "a.npz", "encnet", skip)
    assert f"{len(file) - 6} of the model's {len(file)} weights were loaded" in notes
