"""Looking at a data set before training on it: every label value counted, and augmented samples drawn."""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from kseg import config as configs
from kseg import data as batches
from kseg import datasets, pictures
from kseg.config import Config, Data
from kseg.datasets import IGNORED, UNMAPPED, Dataset, Split
from kseg.errors import ConfigError, DataError, unknown
from kseg.progress import Progress

FAULTS_LISTED = 10
SIZES_LISTED = 4
LARGEST_CROP = (512, 1024)
# Width to height that the sheet of samples comes closest to.
SHEET_RATIO = 1.6
TITLES = ("image", "label", "overlay")
STRIPE = 4
STRIPE_GREYS = (60, 200)


def check(data: Data, splits: Sequence[str] = (), report: Callable[[str], None] = print) -> dict[str, dict]:
    """Read every example of the splits (none given: all), report what their labels hold, and return it by split.

    A split's dict holds "images": how many; "sizes": {(height, width): images}; "pixels" and "images_with": int64
    (256,), pixels of each raw value and images in which it occurs; "class_pixels": int64 (C,); "void_share": ignored
    pixels' share of all; "turned": pictures with an EXIF orientation; "unseen": names of classes without a pixel;
    "weights": float64 (C,), see `class_weights`.
    Faulty examples are not counted. Raises DataError for an unknown data set or split or a missing directory at once,
    and after all files were read with the first ten faults: files without a partner, damaged or of the wrong kind,
    labels of another size than their image, values that the data set does not define, empty splits.
    """
    dataset = datasets.find(data)
    datasets.require_directory(data)
    known = datasets.split_names(data)
    for name in splits:
        if name not in known:
            raise DataError(unknown(f"split of {data.name}", name, known))
    results, faults = {}, []
    for name in dict.fromkeys(splits or known):
        try:
            split = datasets.open_split(data, name)
        except DataError as error:
            faults.append(str(error))
            report(f"{name}: cannot be opened\n")
            continue
        results[name], found = count_split(dataset, split, Progress(len(split.names), f"images of {name}", report))
        faults += found
        report(describe(dataset, name, results[name]))
    if faults:
        more = len(faults) - FAULTS_LISTED
        listed = [f"  {fault}" for fault in faults[:FAULTS_LISTED]] + [f"  and {more} more"] * (more > 0)
        raise DataError(f"{data.name} has {len(faults)} fault{'s' * (len(faults) > 1)}:\n" + "\n".join(listed))
    return results


def count_split(dataset: Dataset, split: Split, progress: Progress) -> tuple[dict, list[str]]:
    """Return what `check` says of a split, and one line for each faulty example."""
    classes = len(dataset.classes)
    table = np.array(dataset.label_table)
    sizes: collections.Counter = collections.Counter()
    pixels, images_with = np.zeros(256, np.int64), np.zeros(256, np.int64)
    # Of each class: the images in which it occurs, all their pixels counted.
    pixels_beside = np.zeros(classes, np.int64)
    faults, turned = [], 0
    for done, (size, counts, fault) in enumerate(_counted(dataset, split), 1):
        if fault:
            faults.append(fault)
        if counts is not None:
            sizes[size] += 1
            pixels += counts
            images_with += counts > 0
            pixels_beside += (_by_class(table, counts, classes) > 0) * counts.sum()
        turned += _is_turned(split.names[done - 1])
        progress.update(done)
    class_pixels, total = _by_class(table, pixels, classes), pixels.sum()
    return {
        "images": sum(sizes.values()), "sizes": dict(sizes), "pixels": pixels, "images_with": images_with,
        "class_pixels": class_pixels, "turned": turned,
        "void_share": float(pixels[table == IGNORED].sum() / total) if total else math.nan,
        "unseen": [name for name, count in zip(dataset.classes, class_pixels) if not count],
        "weights": class_weights(class_pixels, pixels_beside),
    }, faults


def _counted(dataset: Dataset, split: Split) -> Iterator[tuple]:
    """Yield for each example in order its (height, width), pixels of each raw value (256,), and what is wrong or ""."""
    def count(index: int) -> tuple:
        try:
            _, label = batches.decode_pair(split, index)
        except DataError as error:
            return None, None, str(error)
        counts = np.bincount(label.ravel(), minlength=256)
        fault = batches.unmapped(dataset, counts)
        return label.shape, counts, fault and f"{split.label_names[index]}: {fault}"

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from pool.map(count, range(len(split.names)))
    finally:
        # An interrupted command shall not read the rest first.
        pool.shutdown(cancel_futures=True)


def _is_turned(name: str) -> bool:
    """Return whether a JPEG says that it is to be shown turned or mirrored."""
    if Path(name).suffix.lower() not in (".jpg", ".jpeg") or not Path(name).is_file():
        return False
    try:
        with Image.open(name) as image:
            return image.getexif().get(pictures.EXIF_ORIENTATION, 1) != 1
    except OSError:
        # Told already, as a fault.
        return False


def _by_class(table: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Return int64 (C,): counts of raw values summed by train id."""
    return np.bincount(table, weights=counts, minlength=256)[:classes].astype(np.int64)


def class_weights(class_pixels: np.ndarray, pixels_beside: np.ndarray) -> np.ndarray:
    """Return SegNet's median-frequency weights, float64 (C,): median of freq / freq of the class, nan where unseen.

    A class's freq is its pixels divided by all pixels, ignored ones too, of the images in which it occurs. The median
    is over the classes seen, and of two middle ones their mean.
    """
    seen = class_pixels > 0
    weights = np.full(len(class_pixels), np.nan)
    if seen.any():
        frequencies = class_pixels[seen] / pixels_beside[seen]
        weights[seen] = np.median(frequencies) / frequencies
    return weights


def describe(dataset: Dataset, name: str, result: dict) -> str:
    """Return a split's result as text: sizes, the table of values, classes never seen, void share and weights."""
    pixels, total = result["pixels"], result["pixels"].sum()
    if not total:
        return f"{name}: no readable example\n"
    published = dataset.published.get(name, result["images"])
    # A part of a split is as good to train on, but what it gives is no published number.
    images = f"{result['images']} of {published}" if result["images"] != published else f"{published}"
    plural = "s" if published > 1 else ""
    lines = [f"{name}: {images} image{plural}, {sizes_line(result['sizes'])}"]
    width = max(map(len, (*dataset.classes, "not a label value")))
    lines.append(f"  {'value':>5}  {'train id':>8}  {'class':<{width}}  {'pixels':>15}  {'share':>7}  {'images':>7}")
    for value, train_id in enumerate(dataset.label_table):
        if train_id >= UNMAPPED and not pixels[value]:
            continue
        number, title = {IGNORED: (IGNORED, "ignored"), UNMAPPED: ("-", "not a label value")}.get(
            train_id) or (train_id, dataset.classes[train_id])
        lines.append(f"  {value:>5}  {number:>8}  {title:<{width}}  {pixels[value]:>15,}  "
                     f"{100 * pixels[value] / total:>6.2f}%  {result['images_with'][value]:>7}")
    lines.append(f"  never seen: {', '.join(result['unseen']) or 'none'}")
    lines.append(f"  void: {100 * result['void_share']:.2f}% of all pixels")
    if result["turned"]:
        lines.append(f"  {result['turned']} pictures carry an EXIF orientation, which training and evaluation leave "
                     "alone and prediction applies: turn the pixels themselves")
    lines.append("  median-frequency weights: " + " ".join(f"{weight:.4f}" for weight in result["weights"]))
    return "\n".join(lines) + "\n"


def sizes_line(sizes: dict[tuple[int, int], int]) -> str:
    """Return {(height, width): images} as text, width before height: each size if they are few, else the extent."""
    if len(sizes) == 1:
        ((height, width),) = sizes
        return f"all {width}x{height}"
    if len(sizes) <= SIZES_LISTED:
        return ", ".join(f"{width}x{height} ({count})" for (height, width), count in sorted(sizes.items()))
    sides = np.repeat(list(sizes), list(sizes.values()), axis=0)
    low, middle, high = (np.quantile(sides, share, axis=0, method="lower") for share in (0, 0.5, 1))
    return (f"width {low[1]} to {high[1]}, median {middle[1]}; height {low[0]} to {high[0]}, median {middle[0]} "
            f"({len(sizes)} sizes)")


def plain_config(data: Data, overrides: Sequence[str] = ()) -> Config:
    """Return the default config with `data` and `a.b=c` overrides, its crop as large as the first picture.

    The crop is at most 512 high and 1024 wide. Raises ConfigError for a wrong override, DataError where the first
    training example cannot be read.
    """
    def overridden(config: Config) -> Config:
        return functools.reduce(configs.set_value, overrides, config)

    # Twice, for an override may say where the first picture lies, and another how large the crop is.
    config = overridden(Config(data=data))
    dataset, split = datasets.find(config.data), datasets.open_split(config.data, config.data.train_split)
    image, _ = batches.examine(dataset, split, 0)
    crop = tuple(min(side, largest) for side, largest in zip(image.shape, LARGEST_CROP))
    return configs.check(overridden(dataclasses.replace(
        config, augment=dataclasses.replace(config.augment, crop=crop))))


def show(config: Config, count: int, step: int, out: Path, report: Callable[[str], None] = print) -> None:
    """Write a PNG of the first `count` training samples from a step on: image, label and overlay, beside the legend.

    They are what training gets, only with the normalisation undone; ignored pixels, padding among them, are striped.
    One line for each sample names its file, row by row. Raises ConfigError for a count below 1 or a step below 0,
    DataError naming an unreadable file, UserError where `out` cannot be written.
    """
    if count < 1 or step < 0:
        raise ConfigError(f"count must be above 0 and step not below 0, got {count} and {step}")
    dataset = datasets.find(config.data)
    names = datasets.open_split(config.data, config.data.train_split).names
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
    gap = np.full((height, pictures.MARGIN, 3), 255, np.uint8)
    rows = [sum(([*three, gap] for three in cells[first:first + columns]), []) for first in range(0, count, columns)]
    pictures.save(_beside(pictures.grid(rows, (*TITLES, "") * columns), _legend(dataset)), out)
    report(f"wrote {out}: {count} sample{'s' * (count > 1)} of {config.data.name} {config.data.train_split} "
           f"from step {step}, crop {width}x{height}")


def _samples(config: Config, count: int, step: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return (normalised image, label, index) of the first `count` training samples from `step` on."""
    end = step + -(-count // config.train.global_batch)
    # What a step trains on does not depend on how many follow; one may look beyond the last.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=end))
    iterator = iter(batches.train_batches(config, step))
    samples: list[tuple] = []
    for number in range(step, end):
        try:
            batch = next(iterator)
        except tf.errors.OpError as error:
            indices = batches.batch_indices(config, number)
            raise batches.explain(config, config.data.train_split, indices, error) from None
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
    coloured, mixed = pictures.colour(label, dataset.palette), pictures.overlay(image, label, dataset.palette)
    coloured[ignored] = striped[ignored]
    mixed[ignored] = image[ignored] // 2 + striped[ignored] // 2
    return [image, coloured, mixed]


def _legend(dataset: Dataset) -> Image.Image:
    """Return the classes' legend with a line for ignored pixels below, its text in line with the classes' names."""
    upper = pictures.legend(dataset.classes, dataset.palette)
    font = ImageFont.load_default(pictures.FONT_SIZE)
    margin, gap, height, line = pictures.MARGIN, pictures.GAP, 18, 24
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
