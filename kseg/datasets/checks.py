"""Looking at a data set before training on it: every label value counted, and augmented samples drawn."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from kseg import data
from kseg.config import IGNORED, Config, Data, checks, values
from kseg.datasets import diagnosis, registry, statistics
from kseg.datasets.layouts import Split
from kseg.datasets.registry import Dataset
from kseg.datasets.statistics import Example
from kseg.errors import ConfigError, DataError, UserError, unknown
from kseg.images import image_files
from kseg.system import atomic_files
from kseg.system.progress import Progress

FAULTS_LISTED = 10
LARGEST_CROP = (512, 1024)
# Width to height that the sheet of samples comes closest to.
SHEET_RATIO = 1.6
TITLES = ("image", "label", "overlay")
STRIPE = 4
STRIPE_GREYS = (60, 200)


def check(data: Data, splits: Sequence[str] = (), report: Callable[[str], None] = print) -> dict[str, dict]:
    """Read every example of the splits (none given: all), report what their labels hold, and return it by split.

    A split's dict is that of `statistics.summarise`. Faulty examples are not counted, but the pixels of a label with
    values that the data set does not define are. Raises DataError for an unknown data set or split or a missing
    directory at once, and after all files were read with the first ten faults: files without a partner, damaged or of
    the wrong kind, labels of another size than their image, values that the data set does not define, empty splits.
    """
    return _inspect(data, splits, _image_size, statistics.describe_values, report)


def stats(data: Data, splits: Sequence[str] = (), out: Path | None = None,
          report: Callable[[str], None] = print) -> dict[str, dict]:
    """Report sizes, frequencies of classes and void share of the splits (none given: all), and return them by split.

    As `check`, but pictures are not decoded, only labels are: faults are all of `check`'s but a picture that is damaged
    behind its header. `out` is given the same numbers, `statistics.plain` by split, as JSON, if there is no fault.
    Raises UserError where it cannot be written.
    """
    try:
        if out:
            # Told before all files are read, and not after.
            out.parent.mkdir(parents=True, exist_ok=True)
        results = _inspect(data, splits, diagnosis.header_size, statistics.describe_classes, report)
        if out:
            dataset = registry.find(data)
            plain = {name: statistics.plain(dataset, name, result) for name, result in results.items()}
            atomic_files.write_text(out, json.dumps(plain, indent=2) + "\n")
            report(f"wrote {out}")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return results


def _inspect(data: Data, splits: Sequence[str], image_size: Callable[[str, tf.Tensor], tuple[int, int]],
             describe: Callable[[Dataset, str, dict], str], report: Callable[[str], None]) -> dict[str, dict]:
    dataset = registry.find(data)
    registry.require_location(data)
    known = registry.split_names(data)
    for name in splits:
        if name not in known:
            raise DataError(unknown(f"split of {data.name}", name, known))
    results, faults = {}, []
    for name in dict.fromkeys(splits or known):
        try:
            split = registry.open_split(data, name)
        except DataError as error:
            faults.append(str(error))
            report(f"{name}: cannot be opened\n")
            continue
        progress = Progress(len(split.names), f"images of {name}", report)
        read = functools.partial(_read, dataset, split, image_size)
        results[name] = statistics.summarise(dataset, _counted(split, read, progress, faults))
        report(describe(dataset, name, results[name]))
    if faults:
        more = len(faults) - FAULTS_LISTED
        listed = [f"  {fault}" for fault in faults[:FAULTS_LISTED]] + [f"  and {more} more"] * (more > 0)
        raise DataError(f"{data.name} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n" + "\n".join(listed))
    return results


def _counted(split: Split, read: Callable[[int], tuple[Example | None, str]], progress: Progress,
             faults: list[str]) -> Iterator[Example]:
    """Yield the examples of a split in order as far as they can be counted, adding what is wrong to `faults`."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for done, (example, fault) in enumerate(pool.map(read, range(len(split.names))), 1):
            if fault:
                faults.append(fault)
            if example:
                yield example
            progress.update(done)
    finally:
        # An interrupted command shall not read the rest first.
        pool.shutdown(cancel_futures=True)


def _read(dataset: Dataset, split: Split, image_size: Callable[[str, tf.Tensor], tuple[int, int]],
          index: int) -> tuple[Example | None, str]:
    """Return what an example adds to the statistics, None where it cannot be read, and what is wrong with it or ""."""
    name, label_name = split.names[index], split.label_names[index]
    try:
        image_data, label_data = diagnosis.read_pair(split, index)
        size = image_size(name, image_data)
        label = diagnosis.label(label_name, label_data)
        diagnosis.require_same_size(name, size, label_name, label.shape)
    except DataError as error:
        return None, str(error)
    counts = statistics.value_counts(label)
    fault = diagnosis.unmapped(dataset, counts)
    return Example(name, label.shape, counts, diagnosis.is_turned(image_data)), fault and f"{label_name}: {fault}"


def _image_size(name: str, data: tf.Tensor) -> tuple[int, int]:
    """Return (height, width) of an encoded picture that is decoded in whole."""
    return diagnosis.image(name, data).shape[:2]


def plain_config(data: Data, overrides: Sequence[str] = ()) -> Config:
    """Return the default config with `data` and `a.b=c` overrides, its crop as large as the first picture.

    The crop is at most 512 high and 1024 wide. Raises ConfigError for a wrong override, DataError where the first
    training example cannot be read.
    """
    def overridden(config: Config) -> Config:
        return functools.reduce(values.set_value, overrides, config)

    # Twice, for an override may say where the first picture lies, and another how large the crop is.
    config = overridden(Config(data=data))
    dataset, split = registry.find(config.data), registry.open_split(config.data, config.data.train_split)
    image, _ = diagnosis.examine(dataset, split, 0)
    crop = tuple(min(side, largest) for side, largest in zip(image.shape, LARGEST_CROP))
    return checks.check(overridden(dataclasses.replace(
        config, augment=dataclasses.replace(config.augment, crop=crop))))


def show(config: Config, count: int, step: int, out: Path, report: Callable[[str], None] = print) -> None:
    """Write a PNG of the first `count` training samples from a step on: image, label and overlay, beside the legend.

    They are what training gets, only with the normalisation undone; ignored pixels, padding among them, are striped.
    One line for each sample names its file, row by row. Raises ConfigError for a count below 1 or a step below 0,
    DataError naming an unreadable file, UserError where `out` cannot be written.
    """
    if count < 1 or step < 0:
        raise ConfigError(f"count must be above 0 and step not below 0, got {count} and {step}")
    dataset = registry.find(config.data)
    names = registry.open_split(config.data, config.data.train_split).names
    samples = _samples(config, count, step)
    cells = []
    for number, (image, label, index) in enumerate(samples, 1):
        report(f"{number}: {names[index]}")
        picture = np.rint(np.clip(image * np.float32(config.data.std) + np.float32(config.data.mean), 0, 255))
        cells.append(sample_cells(picture.astype(np.uint8), label, dataset))
    height, width = config.augment.crop
    columns = min(range(1, count + 1),
                  key=lambda number: abs(math.log(3 * width * number / (height * -(-count // number)) / SHEET_RATIO)))
    # A white column sets one sample off from the next.
    gap = np.full((height, image_files.MARGIN, 3), 255, np.uint8)
    rows = [sum(([*three, gap] for three in cells[first:first + columns]), []) for first in range(0, count, columns)]
    image_files.save(_beside(image_files.grid(rows, (*TITLES, "") * columns), _legend(dataset)), out)
    report(f"wrote {out}: {count} sample{'s' * (count > 1)} of {config.data.name} {config.data.train_split} "
           f"from step {step}, crop {width}x{height}")


def _samples(config: Config, count: int, step: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return (normalised image, label, index) of the first `count` training samples from `step` on."""
    end = step + -(-count // config.train.global_batch)
    # What a step trains on does not depend on how many follow; one may look beyond the last.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=end))
    iterator = iter(data.train_batches(config, step))
    samples: list[tuple] = []
    for number in range(step, end):
        try:
            batch = next(iterator)
        except tf.errors.OpError as error:
            indices = data.batch_indices(config, number)
            raise data.explain(config, config.data.train_split, indices, error) from None
        samples += zip(*(batch[part].numpy() for part in ("image", "label", "index")))
    return samples[:count]


def stripes(height: int, width: int) -> np.ndarray:
    """Return the uint8 (height, width, 3) diagonal stripes in two greys that stand for ignored pixels."""
    rows, columns = np.mgrid[:height, :width]
    greys = np.array(STRIPE_GREYS, np.uint8)[(rows + columns) // STRIPE % 2]
    return np.repeat(greys[..., None], 3, axis=2)


def sample_cells(image: np.ndarray, label: np.ndarray, dataset: Dataset) -> list[np.ndarray]:
    """Return [image, label, overlay], uint8 (H, W, 3), for a uint8 image and uint8 (H, W) train ids."""
    ignored = label == IGNORED
    striped = stripes(*label.shape)
    coloured, mixed = image_files.colour(label, dataset.palette), image_files.overlay(image, label, dataset.palette)
    coloured[ignored] = striped[ignored]
    mixed[ignored] = image[ignored] // 2 + striped[ignored] // 2
    return [image, coloured, mixed]


def _legend(dataset: Dataset) -> Image.Image:
    """Return the classes' legend with a line for ignored pixels below, its text in line with the classes' names."""
    upper = image_files.legend(dataset.classes, dataset.palette)
    font = ImageFont.load_default(image_files.FONT_SIZE)
    margin, gap, height, line = image_files.MARGIN, image_files.GAP, 18, 24
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
    """Return both pictures side by side on white, their upper edges in line."""
    sheet = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width, 0))
    return sheet
