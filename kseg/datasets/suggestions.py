"""Suggest training settings from a split's statistics, each with its reason."""

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kseg import config as configs
from kseg.config.files import config_names
from kseg.config.sections import Data
from kseg.datasets import checks, registry
from kseg.datasets.statistics import side_quantiles, sizes_line
from kseg.errors import DataError

# GB that MMSegmentation's model zoo reports for training R-50-D8 on 2 crops of 512x1024 in float32, by head.
REPORTED_MEMORY = {"apcnet": 7.7, "deeplabv3": 6.1, "deeplabv3plus": 7.5, "encnet": 8.6, "fcn": 5.7, "pspnet": 6.1}
REPORTED_PIXELS = 2 * 512 * 1024
# The published crops with their batches, at a learning rate of 0.01.
WIDE_CROP, WIDE_BATCH = (512, 1024), 8
SQUARE_CROP, SQUARE_BATCH = (512, 512), 16
PUBLISHED_RATE = 0.01
# The sides of a crop that is smaller than the published ones are multiples of it.
CROP_UNIT = 32
# 40,000 steps of 8 are 108 passes over the 2975 images of Cityscapes.
PASSES = 108
# kseg's recipe for CamVid has 2400 steps; the longest published schedule of ADE20K has 160,000.
FEWEST_STEPS, MOST_STEPS = 2_400, 160_000
# CamVid, for which kseg has a config with ResNet-18, has 367 images.
FEW_IMAGES = 500
# A class below this fraction of the most frequent one's pixels is called rare.
RARE = 0.02
LARGEST_WEIGHT = 10.0
# Pixels of a Cityscapes image, which the published recipes predict as a whole.
WHOLE_PIXELS = 1024 * 2048


@dataclass(frozen=True)
class Suggestion:
    """A value for a key of the config, as text for --set, and its reason."""

    key: str
    value: str
    reason: str


def suggest(
    data: Data, head: str = "encnet", memory: float | None = None, report: Callable[[str], None] = print
) -> list[str]:
    """Report suggested settings with their reasons, and the command that trains with them.

    Args:
        data: The dataset; the split `data.train_split` is counted.
        head: The main head, a key of REPORTED_MEMORY.
        memory: Memory of each GPU in GB; None if it does not limit the batch.
        report: Receives progress and the suggestions.

    Returns:
        The arguments of `kseg train`.

    Raises:
        DataError: The dataset or its training split cannot be read.
    """
    available = registry.split_names(data)
    results = checks.dataset_stats(data, [data.train_split], None, report)
    result = results[data.train_split]
    if not result["images"]:
        raise DataError(f"the split {data.train_split!r} of {data.name} has no image")
    published = f"{head}_{data.name}"
    base = published if published in config_names() else f"{head}_ade20k"
    if base == published:
        report(f"{base} is the published recipe for this dataset; the suggestions below are for data like it")
    suggestions = suggest_settings(head, result, registry.find_dataset(data).classes, memory)
    overrides = [f"data.name={data.name}", f"data.directory={registry.location_of(data)}"]
    overrides += [f"data.train_split={data.train_split}"]
    if data.val_split in available:
        overrides.append(f"data.val_split={data.val_split}")
    overrides += [f"{item.key}={item.value}" for item in suggestions]
    # A suggestion that the config refuses must not be printed.
    configs.load(base, overrides)
    width = max(len(f"{item.key}={item.value}") for item in suggestions if len(item.value) < 40)
    report(f"suggestions for the split {data.train_split}, images: {result['images']}, {sizes_line(result['sizes'])}:")
    for item in suggestions:
        report(f"  {f'{item.key}={item.value}':<{width}}  {item.reason}")
    if data.val_split not in available:
        report(f"  there is no split {data.val_split!r}; name one with data.val_split={'|'.join(available)}")
    arguments = ["--config", base, "--set", *overrides]
    report("nothing is set by this. The command with all of them:\n  " + shlex.join(["kseg", "train", *arguments]))
    return arguments


def suggest_settings(head: str, result: Mapping, classes: tuple[str, ...], memory: float | None) -> list[Suggestion]:
    """Return the suggestions for a split.

    Args:
        head: The main head, a key of REPORTED_MEMORY.
        result: `statistics.summarize_split` of the split.
        classes: Names of the classes.
        memory: Memory of each GPU in GB, or None.

    Returns:
        The suggestions, in the order of the config's sections.
    """
    images = result["images"]
    (_, height, largest_height), (_, width, largest_width) = side_quantiles(result["sizes"])
    crop, crop_reason = _crop(height, width)
    batch, batch_reason = _batch(crop, images)
    published_batch = WIDE_BATCH if crop == WIDE_CROP else SQUARE_BATCH
    rate = PUBLISHED_RATE * batch / published_batch
    steps = min(max(round(PASSES * images / batch / 100) * 100, FEWEST_STEPS), MOST_STEPS)
    steps_reason = f"{steps * batch / images:.0f} passes over the images; Cityscapes' 40000 steps of 8 are {PASSES}"
    if steps == FEWEST_STEPS:
        steps_reason += f", and {FEWEST_STEPS} steps are the shortest recipe, that for CamVid"
    found = [
        Suggestion("augment.scale", "", "the random factor applies to the images' own size"),
        Suggestion("augment.crop", _pair(crop), crop_reason),
        *_backbone(head, images),
        *_class_balance(result, classes),
        Suggestion("train.global_batch", str(batch), batch_reason),
        *_memory(head, crop, batch, memory),
        Suggestion("train.steps", str(steps), steps_reason),
        Suggestion(
            "train.learning_rate",
            f"{rate:g}",
            f"0.01 at a batch of {published_batch} as published, in proportion to the batch",
        ),
        Suggestion("train.validate_every", str(max(steps // 10, 1)), "ten validations, as in kseg's recipe for ADE20K"),
        Suggestion("train.checkpoint_every", str(max(steps // 20, 1)), "a lost run repeats at most 5% of the steps"),
        Suggestion("evaluate.resize", "", "images keep their own size"),
    ]
    return found + _evaluation(crop, largest_height, largest_width)


def _pair(size: tuple[int, int]) -> str:
    return f"{size[0]},{size[1]}"


def _crop(height: int, width: int) -> tuple[tuple[int, int], str]:
    """Return the crop and its reason, from the median height and width."""
    if height >= WIDE_CROP[0] and width >= WIDE_CROP[1] and width >= 1.5 * height:
        return WIDE_CROP, f"the crop of the Cityscapes recipes; the median size is {width}x{height}"
    if min(height, width) >= SQUARE_CROP[0]:
        return SQUARE_CROP, f"the crop of the VOC and ADE20K recipes; the median size is {width}x{height}"
    crop = tuple(max(CROP_UNIT, min(side, 512) // CROP_UNIT * CROP_UNIT) for side in (height, width))
    return crop, f"the median size {width}x{height} down to multiples of {CROP_UNIT}; a larger crop is mostly padding"


def _batch(crop: tuple[int, int], images: int) -> tuple[int, str]:
    if crop == WIDE_CROP:
        batch, reason = WIDE_BATCH, "the published batch of crops of 512x1024"
    else:
        batch, reason = SQUARE_BATCH, "the published batch of crops of 512x512"
    if images < batch:
        return images, f"as many as there are images; the published batch is {batch}"
    return batch, reason


def _backbone(head: str, images: int) -> list[Suggestion]:
    if images < FEW_IMAGES:
        reason = f"for fewer than {FEW_IMAGES} images, as kseg's recipe for CamVid with 367"
        width = "the published width of heads on ResNet-18"
        shortcut = [Suggestion("model.deeplab.shortcut_channels", "12", width)] * (head == "deeplabv3plus")
        return [
            Suggestion("model.backbone", "resnet18", reason),
            Suggestion("init.backbone", "resnet18_v1c", "pretrained on ImageNet"),
            Suggestion("model.channels", "128", width),
            Suggestion("model.auxiliary_channels", "64", width),
            *shortcut,
        ]
    return [
        Suggestion(
            "model.backbone",
            "resnet50",
            "the backbone of most published results; docs/zoo.md lists what resnet101 adds",
        ),
        Suggestion("init.backbone", "resnet50_v1c", "pretrained on ImageNet"),
    ]


def _class_balance(result: Mapping, classes: tuple[str, ...]) -> list[Suggestion]:
    """Return class weights if a class is rare, otherwise nothing."""
    pixels = np.asarray(result["class_pixels"], np.float64)
    seen = pixels > 0
    if not seen.any() or pixels[seen].min() >= RARE * pixels.max():
        return []
    rarest = int(np.argmin(np.where(seen, pixels, np.inf)))
    # An unseen class has no pixel whose loss its weight could change.
    weights = np.nan_to_num(np.asarray(result["weights"], np.float64), nan=1.0).clip(max=LARGEST_WEIGHT)
    reason = (
        f"{classes[rarest]} has {100 * pixels[rarest] / pixels.sum():.2g}% of the labeled pixels; these are `stats`' "
        f"median-frequency weights, at most {LARGEST_WEIGHT:g}. loss.ohem_kept is the alternative for hard pixels"
    )
    return [Suggestion("loss.class_weights", ",".join(f"{weight:.3g}" for weight in weights), reason)]


def _memory(head: str, crop: tuple[int, int], batch: int, memory: float | None) -> list[Suggestion]:
    """Return in how many parts a batch fits into a GPU's memory, by the memory that MMSegmentation reports."""
    if memory is None:
        return []
    for_image = REPORTED_MEMORY[head] * math.prod(crop) / REPORTED_PIXELS
    fitting = math.floor(memory / for_image)
    estimate = (
        f"about {for_image:.1f} GB for a crop, from the {REPORTED_MEMORY[head]} GB that MMSegmentation reports for "
        f"R-50 and 2 crops of 512x1024"
    )
    if fitting >= batch:
        return [Suggestion("train.accumulate", "1", f"one GPU holds the batch: {estimate}")]
    # The batch must be a multiple of the parts.
    parts = next(count for count in range(1, batch + 1) if batch % count == 0 and batch // count <= max(fitting, 1))
    more = "" if fitting else "; one crop may not fit, so also consider train.recompute=true or a smaller crop"
    reason = (
        f"for one GPU of {memory:g} GB: {estimate}. Batch norm then sees {batch // parts} crops; {parts} GPUs avoid it"
    )
    return [Suggestion("train.accumulate", str(parts), reason + more)]


def _evaluation(crop: tuple[int, int], height: int, width: int) -> list[Suggestion]:
    if height * width <= WHOLE_PIXELS:
        reason = f"whole images: none exceeds {width}x{height}, and the recipes predict 2048x1024 as a whole"
        return [Suggestion("evaluate.window", "", reason), Suggestion("evaluate.stride", "", "no window, no stride")]
    stride = tuple(side * 2 // 3 for side in crop)
    reason = f"images of up to {width}x{height} exceed the 2048x1024 that the recipes predict as a whole"
    return [
        Suggestion("evaluate.window", _pair(crop), reason),
        Suggestion("evaluate.stride", _pair(stride), "two thirds of the window, as the published 513 of 769"),
    ]
