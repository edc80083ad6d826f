"""Named variants of a config, and the groups of values that published variants share.

A config file lists its variants in a dict `VARIANTS`. `--config NAME:VARIANT` is the file's `config()` with the values
of that variant, which holds only the differences: `R101 | CROP_769 | steps(80_000)`.
"""

import re
from dataclasses import dataclass
from typing import Any

MMSEGMENTATION = "MMSegmentation"
SSSEGMENTATION = "SSSegmentation"


@dataclass(frozen=True)
class Variant:
    """A variant with its published results.

    Attributes:
        overrides: values by dotted config key.
        source: the system that published the variant.
        original: the name of the variant's config in that system.
        miou: published single-scale mean IoU on the dataset's val split, in percent; None: not published.
        miou_ms_flip: the same, averaged over scales 0.5 to 1.75 and mirrored images; None: not published.
        weights: URL of the published weights; empty: not published.
    """

    overrides: dict[str, Any]
    source: str = ""
    original: str = ""
    miou: float | None = None
    miou_ms_flip: float | None = None
    weights: str = ""


def mmsegmentation(
    overrides: dict[str, Any],
    original: str,
    miou: float | None = None,
    miou_ms_flip: float | None = None,
    weights: str = "",
) -> Variant:
    """Return a variant of MMSegmentation's model zoo.

    `weights` is the name of the weights' file, from which the URL follows: the file's directory has its name without
    date and hash, and lies in a directory named after the head.
    """
    if weights:
        directory = re.sub(r"_\d{8}_\d{6}-[0-9a-f]{8}\.pth$", "", weights)
        head = weights.partition("_")[0]
        weights = f"https://download.openmmlab.com/mmsegmentation/v0.5/{head}/{directory}/{weights}"
    return Variant(overrides, MMSEGMENTATION, original, miou, miou_ms_flip, weights)


def sssegmentation(overrides: dict[str, Any], original: str, miou: float) -> Variant:
    """Return a variant of SSSegmentation's model zoo, which publishes single-scale results only.

    The weights' file has the name of the original config.
    """
    head = original.partition("_")[0]
    address = f"https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_{head}/{original}.pth"
    return Variant(overrides, SSSEGMENTATION, original, miou, weights=address)


def steps(count: int) -> dict[str, Any]:
    """Return the values of a schedule of `count` steps with ten validations."""
    return {"train.steps": count, "train.validate_every": count // 10}


# Backbones. The configs' default is ResNet-50 v1c, which has the deep stem, at output stride 8.
R101 = {"model.backbone": "resnet101", "init.backbone": "resnet101_v1c"}
# The published ResNet-18 models have a quarter of the channels in both heads.
R18 = {
    "model.backbone": "resnet18",
    "init.backbone": "resnet18_v1c",
    "model.channels": 128,
    "model.auxiliary_channels": 64,
    "model.deeplab.shortcut_channels": 12,
}
# ResNet v1b has one 7x7 convolution as stem and starts from torchvision's weights.
R50B = {"model.stem": "7x7", "init.backbone": "resnet50"}
R101B = R101 | {"model.stem": "7x7", "init.backbone": "resnet101"}
R18B = R18 | {"model.stem": "7x7", "init.backbone": "resnet18"}
# A wider stem starts from the file of the usual stem; the weights whose shape depends on its width start at random.
R50S = {"model.stem_channels": 128, "init.skip": ("stem.*", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight")}

D16 = {"model.output_stride": 16}
# These variants include hard example mining: the 100000 pixels with the largest loss in each image count.
D16_MG124 = D16 | {"model.multi_grid": (1, 2, 4), "loss.ohem_kept": 100_000}

# Square crops of Cityscapes, tested in overlapping windows.
CROP_769 = {
    "augment.scale": (1025, 2049),
    "augment.crop": (769, 769),
    "model.align_corners": True,
    "evaluate.resize": (1025, 2049),
    "evaluate.window": (769, 769),
    "evaluate.stride": (513, 513),
}

# Mixed precision.
AMP = {"train.precision": "mixed_float16", "train.loss_scale": 512.0}

# Differences of SSSegmentation's recipes from MMSegmentation's, for every head. SSSegmentation draws at most ten crops;
# MMSegmentation takes an eleventh without checking it.
SSS = {
    "augment.crop_tries": 9,
    "augment.pad": "center",
    "augment.pad_color": "mean",
    "model.auxiliary_channels": 512,
    "model.initial_weights": "uniform",
    "loss.average": "valid",
    "evaluate.resize_logits": "once",
    "evaluate.scale_of": "input",
    "evaluate.average": "logits",
}
# 220 epochs of 372 steps, 130 of 1263 and 60 of 661. The learning rate would reach its end one step after the last.
SSS_CITYSCAPES = SSS | steps(81_840) | {"train.end_step": 81_840}
SSS_ADE20K = SSS | steps(164_190) | {"train.end_step": 164_190}
SSS_VOC2012 = SSS | steps(39_660) | {"train.end_step": 39_660}
