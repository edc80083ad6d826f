"""Named variants of a config: rows of values with their sources, and the groups of values that published rows share.

A config file holds them in a dict `VARIANTS`, and `--config NAME:VARIANT` means its `config()` with the row's values
put in. A row says only what differs from `config()`: `R101 | CROP_769 | steps(80_000)`.
"""

import re
from dataclasses import dataclass
from typing import Any

MMSEGMENTATION = "MMSegmentation"
SSSEGMENTATION = "SSSegmentation"


@dataclass(frozen=True)
class Variant:
    """A row: its values by dotted config key, whose row it is, what was published for it, and the weights' address.

    The mean IoU is in percent, on the data set's val split: single scale, and averaged over scales 0.5 to 1.75 with
    flip. None and "" stand for what is not published.
    """

    overrides: dict[str, Any]
    source: str = ""
    original: str = ""
    miou: float | None = None
    miou_ms_flip: float | None = None
    weights: str = ""


def mmsegmentation(overrides: dict[str, Any], original: str, miou: float | None = None,
                   miou_ms_flip: float | None = None, weights: str = "") -> Variant:
    """Return a row of MMSegmentation's zoo: `original` is its config's name, `weights` the name of the weights' file.

    The file lies in a directory named like itself without date and hash, in one named like the head.
    """
    if weights:
        directory = re.sub(r"_\d{8}_\d{6}-[0-9a-f]{8}\.pth$", "", weights)
        head = weights.partition("_")[0]
        weights = f"https://download.openmmlab.com/mmsegmentation/v0.5/{head}/{directory}/{weights}"
    return Variant(overrides, MMSEGMENTATION, original, miou, miou_ms_flip, weights)


def sssegmentation(overrides: dict[str, Any], original: str, miou: float) -> Variant:
    """Return a row of SSSegmentation's zoo: `original` is the name of its config, and of its weights' file.

    It publishes single-scale results only.
    """
    head = original.partition("_")[0]
    address = f"https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_{head}/{original}.pth"
    return Variant(overrides, SSSEGMENTATION, original, miou, weights=address)


def steps(count: int) -> dict[str, Any]:
    """Return the values of a schedule of so many steps, validated ten times."""
    return {"train.steps": count, "train.validate_every": count // 10}


# Backbones. The configs' own is ResNet-50 v1c at output stride 8, that is, with the deep stem.
R101 = {"model.backbone": "resnet101", "init.backbone": "resnet101_v1c"}
# With a head and an auxiliary head of a quarter of the channels.
R18 = {"model.backbone": "resnet18", "init.backbone": "resnet18_v1c",
       "model.channels": 128, "model.auxiliary_channels": 64, "model.deeplab.shortcut_channels": 12}
# v1b: one 7x7 convolution as stem, and torchvision's weights.
R50B = {"model.stem": "7x7", "init.backbone": "resnet50"}
R101B = R101 | {"model.stem": "7x7", "init.backbone": "resnet101"}
R18B = R18 | {"model.stem": "7x7", "init.backbone": "resnet18"}
# A wider stem, started from the file of the usual one: what the stem's width changes begins at random.
R50S = {"model.stem_channels": 128,
        "init.skip": ("stem.*", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight")}

D16 = {"model.output_stride": 16}
# Hard example mining belongs to these rows: the 100000 pixels for each image with the largest loss count.
D16_MG124 = D16 | {"model.multi_grid": (1, 2, 4), "loss.ohem_kept": 100_000}

# Square crops of Cityscapes, tested in overlapping windows.
CROP_769 = {"augment.scale": (1025, 2049), "augment.crop": (769, 769), "model.align_corners": True,
            "evaluate.resize": (1025, 2049), "evaluate.window": (769, 769), "evaluate.stride": (513, 513)}

# Mixed precision.
AMP = {"train.precision": "mixed_float16", "train.loss_scale": 512.0}

# What SSSegmentation does otherwise than MMSegmentation, whichever the head.
# It looks at ten crops in all, where MMSegmentation takes an eleventh unseen.
SSS = {"augment.crop_tries": 9, "augment.pad": "center", "augment.pad_color": "mean", "model.auxiliary_channels": 512,
       "model.initial_weights": "uniform", "loss.average": "valid", "evaluate.resize_logits": "once",
       "evaluate.scale_of": "input", "evaluate.average": "logits"}
# 220 epochs of 372 steps, 130 of 1263 and 60 of 661; the learning rate would reach its end one step after the last.
SSS_CITYSCAPES = SSS | steps(81_840) | {"train.end_step": 81_840}
SSS_ADE20K = SSS | steps(164_190) | {"train.end_step": 164_190}
SSS_VOC2012 = SSS | steps(39_660) | {"train.end_step": 39_660}
