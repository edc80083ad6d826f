"""Draw augmented training samples, for `python -m kseg.data show`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from kseg.config import Config, checks, values
from kseg.config.sections import IGNORED, Data
from kseg.datasets import diagnosis, plausibility, registry
from kseg.datasets.registry import Dataset, Split
from kseg.errors import ConfigError
from kseg.images import drawing, image_files
from kseg.input_pipeline import batching
from kseg.input_pipeline.normalization import normalize_batch

LARGEST_CROP = (512, 1024)
# Preferred ratio of width to height of the sheet.
SHEET_RATIO = 1.6
TITLES = ("image", "label", "overlay")
STRIPE = 4
STRIPE_GRAYS = (60, 200)


def plain_config(data: Data, overrides: Sequence[str] = ()) -> Config:
    """Return the default config of a dataset with `a.b=c` overrides.

    The crop is the size of the first image.

    The crop is at most 512 high and 1024 wide.

    Raises:
        ConfigError: An override is wrong.
        DataError: The first training example cannot be read.
    """

    def overridden(config: Config) -> Config:
        return functools.reduce(values.set_value, overrides, config)

    # Overrides apply twice, because they may set both the location of the data and the crop.
    config = overridden(Config(data=data))
    image, _ = diagnosis.decode_example(registry.open_split(config.data, config.data.train_split), 0)
    crop = tuple(min(side, largest) for side, largest in zip(image.shape, LARGEST_CROP))
    return checks.check_config(
        overridden(dataclasses.replace(config, augment=dataclasses.replace(config.augment, crop=crop)))
    )


def show(config: Config, count: int, step: int, out: Path, report: Callable[[str], None] = print) -> None:
    """Write a PNG of training samples, each as image, label and overlay, with a legend.

    The samples are those of training, with the normalization reversed. Ignored pixels and padding are striped.

    Args:
        config: The config; its training split is shown.
        count: Number of samples.
        step: Step of the first sample.
        out: The PNG file.
        report: Receives the file name of each sample.

    Raises:
        ConfigError: `count` is below 1 or `step` below 0.
        DataError: A file cannot be read; the message names it.
        UserError: `out` cannot be written.
    """
    if count < 1 or step < 0:
        raise ConfigError(f"count must be at least 1 and step at least 0, got {count} and {step}")
    split = registry.open_split(config.data, config.data.train_split)
    plausibility.report_notes((split,), report)
    dataset, samples = split.dataset, _samples(config, split, count, step)
    cells = []
    for number, (image, label, index) in enumerate(samples, 1):
        report(f"{number}: {split.names[index]}")
        pixels = np.rint(np.clip(image * np.float32(config.data.std) + np.float32(config.data.mean), 0, 255))
        cells.append(sample_cells(pixels.astype(np.uint8), label, dataset))
    height, width = config.augment.crop
    columns = min(
        range(1, count + 1),
        key=lambda number: abs(math.log(3 * width * number / (height * -(-count // number)) / SHEET_RATIO)),
    )
    # A white column separates neighboring samples.
    gap = np.full((height, drawing.MARGIN, 3), 255, np.uint8)
    rows = [
        sum(([*sample, gap] for sample in cells[first : first + columns]), []) for first in range(0, count, columns)
    ]
    image_files.save_image(_beside(drawing.grid(rows, (*TITLES, "") * columns), _legend(dataset)), out)
    report(
        f"wrote {out}: {count} sample{'s' * (count > 1)} of {dataset.name} {split.name} "
        f"from step {step}, crop {width}x{height}"
    )


def _samples(config: Config, split: Split, count: int, step: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return (normalized image, label, index) of the first `count` training samples from `step` on."""
    end = step + -(-count // config.train.global_batch)
    # A step's batch does not depend on the number of steps, so steps beyond the last one can be shown.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=end))
    iterator = iter(batching.train_batches(split, config, step))
    samples: list[tuple] = []
    for number in range(step, end):
        try:
            batch = next(iterator)
        except tf.errors.OpError as error:
            indices = batching.batch_indices(len(split.names), config.train, number)
            raise batching.reading_error(split, indices, error) from None
        # Padding gets the color that the network sees.
        images = normalize_batch(
            batch["image"], batch["inside"], config.data.mean, config.data.std, config.augment.pad_color
        )
        samples += zip(images.numpy(), batch["label"].numpy(), batch["index"].numpy())
    return samples[:count]


def stripes(height: int, width: int) -> np.ndarray:
    """Return gray diagonal stripes, uint8 (height, width, 3), which mark ignored pixels."""
    rows, columns = np.mgrid[:height, :width]
    grays = np.array(STRIPE_GRAYS, np.uint8)[(rows + columns) // STRIPE % 2]
    return np.repeat(grays[..., None], 3, axis=2)


def sample_cells(image: np.ndarray, label: np.ndarray, dataset: Dataset) -> list[np.ndarray]:
    """Return [image, label, overlay], uint8 (H, W, 3) each.

    The image is uint8 (H, W, 3), the label uint8 train ids (H, W).
    """
    ignored = label == IGNORED
    striped = stripes(*label.shape)
    colored, blended = drawing.colorize(label, dataset.palette), drawing.overlay(image, label, dataset.palette)
    colored[ignored] = striped[ignored]
    blended[ignored] = image[ignored] // 2 + striped[ignored] // 2
    return [image, colored, blended]


def _legend(dataset: Dataset) -> Image.Image:
    """Return the legend of the classes with an additional line for ignored pixels."""
    upper = drawing.legend(dataset.classes, dataset.palette)
    font = drawing.font_for("")
    margin, gap, height, line = drawing.MARGIN, drawing.GAP, 18, 24
    numbers = math.ceil(font.getlength(str(len(dataset.classes) - 1)))
    text, text_left = f"ignored or padding ({IGNORED})", margin + 32 + 2 * gap + numbers + 2 * gap
    width = max(upper.width, text_left + math.ceil(font.getlength(text)) + margin)
    sheet = Image.new("RGB", (width, upper.height + line), "white")
    sheet.paste(upper, (0, 0))
    top = upper.height - margin
    sheet.paste(Image.fromarray(stripes(height, 32)), (margin, top + 3))
    ImageDraw.Draw(sheet).text((text_left, top + line // 2), text, "black", font, anchor="lm")
    return sheet


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return two images side by side on white, aligned at the top."""
    sheet = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width, 0))
    return sheet
