"""Summarize a split: image sizes, and the pixels of its label values and classes."""

import collections
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kseg.config.sections import IGNORED
from kseg.datasets.registry import UNMAPPED, Dataset

SIZES_LISTED = 4


@dataclass(frozen=True)
class ExampleCounts:
    """The contribution of one example to the statistics.

    Attributes:
        name: Name of the image.
        size: (height, width) of the label.
        counts: int64 (256,), pixels of each raw label value.
        has_orientation: Whether the image has an EXIF orientation other than upright.
    """

    name: str
    size: tuple[int, int]
    counts: np.ndarray
    has_orientation: bool


def value_counts(label: np.ndarray) -> np.ndarray:
    """Return the number of pixels of each value, int64 (256,).

    The label is uint8 (H, W).
    """
    # numpy.bincount converts every pixel to int64 first, a gigabyte for a satellite image.
    return np.array(Image.fromarray(label).histogram(), np.int64)


def counts_by_class(table: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Return int64 (C,): the sum of counts (256,) of raw values by train id."""
    return np.bincount(table, weights=counts, minlength=256)[:classes].astype(np.int64)


def summarize_split(dataset: Dataset, examples: Iterable[ExampleCounts]) -> dict:
    """Summarize the examples of a split.

    Returns:
        A dict of
            "images": number of examples
            "sizes": {(height, width): number of images}
            "smallest", "largest": ((height, width), image name) by area, None without examples
            "pixels", "images_with": int64 (256,), pixels of each raw value, and images in which it occurs
            "class_pixels", "class_images": int64 (C,), the same for each class
            "fill": float64 (C,), each class's fraction of all pixels of the images in which it occurs, nan if unseen
            "void_share": fraction of ignored pixels
            "void_images": number of images without a labeled pixel
            "turned": number of images with an EXIF orientation
            "unseen": names of the classes without a pixel
            "weights": float64 (C,), see `class_weights`
    """
    classes, table = len(dataset.classes), np.array(dataset.label_table)
    sizes: collections.Counter = collections.Counter()
    pixels, images_with = np.zeros(256, np.int64), np.zeros(256, np.int64)
    # Number of images in which each class occurs, and the number of all pixels of these images.
    class_images, containing_pixels = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    oriented = void_images = 0
    smallest = largest = None
    for example in examples:
        sizes[example.size] += 1
        pixels += example.counts
        images_with += example.counts > 0
        present = counts_by_class(table, example.counts, classes) > 0
        class_images += present
        containing_pixels += present * example.counts.sum()
        void_images += not present.any()
        oriented += example.has_orientation
        if smallest is None or math.prod(example.size) < math.prod(smallest[0]):
            smallest = example.size, example.name
        if largest is None or math.prod(example.size) > math.prod(largest[0]):
            largest = example.size, example.name
    class_pixels, total = counts_by_class(table, pixels, classes), pixels.sum()
    fill = np.full(classes, np.nan)
    np.divide(class_pixels, containing_pixels, out=fill, where=class_pixels > 0)
    return {
        "images": sum(sizes.values()),
        "sizes": dict(sizes),
        "smallest": smallest,
        "largest": largest,
        "pixels": pixels,
        "images_with": images_with,
        "class_pixels": class_pixels,
        "class_images": class_images,
        "fill": fill,
        "void_share": float(pixels[table == IGNORED].sum() / total) if total else math.nan,
        "void_images": void_images,
        "turned": oriented,
        "unseen": [name for name, count in zip(dataset.classes, class_pixels) if not count],
        "weights": class_weights(fill),
    }


def class_weights(fill: np.ndarray) -> np.ndarray:
    """Return SegNet's median-frequency weights of the classes (Badrinarayanan et al., PAMI 2017, section 4.1).

    The weight of a class is median(frequencies) / frequency. A class's frequency is its number of pixels divided by
    the number of all pixels, ignored ones included, of the images in which it occurs.

    Args:
        fill: float64 (C,), the frequencies, nan for unseen classes.

    Returns:
        float64 (C,), nan for unseen classes, which the median excludes.
    """
    seen = ~np.isnan(fill)
    return np.median(fill[seen]) / fill if seen.any() else fill.copy()


def describe_values(dataset: Dataset, name: str, result: dict) -> str:
    """Return a split's summary as text, with a table of label values."""
    pixels, total = result["pixels"], result["pixels"].sum()
    if not total:
        return f"{name}: no readable example\n"
    lines = [f"{images_line(dataset, name, result)}, {sizes_line(result['sizes'])}"]
    width = max(map(len, (*dataset.classes, "not a label value")))
    lines.append(f"  {'value':>5}  {'train id':>8}  {'class':<{width}}  {'pixels':>15}  {'percent':>7}  {'images':>7}")
    for value, train_id in enumerate(dataset.label_table):
        if train_id >= UNMAPPED and not pixels[value]:
            continue
        number, title = {IGNORED: (IGNORED, "ignored"), UNMAPPED: ("-", "not a label value")}.get(train_id) or (
            train_id,
            dataset.classes[train_id],
        )
        lines.append(
            f"  {value:>5}  {number:>8}  {title:<{width}}  {pixels[value]:>15,}  "
            f"{100 * pixels[value] / total:>6.2f}%  {result['images_with'][value]:>7}"
        )
    lines += [
        f"  never seen: {', '.join(result['unseen']) or 'none'}",
        f"  void: {100 * result['void_share']:.2f}% of all pixels",
        *_orientation_lines(result),
        "  median-frequency weights: " + " ".join(f"{weight:.4f}" for weight in result["weights"]),
    ]
    return "\n".join(lines) + "\n"


def describe_classes(dataset: Dataset, name: str, result: dict) -> str:
    """Return a split's summary as text, with a table of classes by frequency."""
    if not result["images"]:
        return f"{name}: no readable example\n"
    labeled = result["class_pixels"].sum()
    lines = [images_line(dataset, name, result), *_size_lines(result)]
    width = max(map(len, (*dataset.classes, "class")))
    if labeled:
        lines.append(
            f"  {'class':<{width}}  {'train id':>8}  {'pixels':>15}  {'percent':>7}  {'images':>7}  "
            f"{'of all':>7}  {'fills there':>11}"
        )
    for train_id in np.argsort(-result["class_pixels"], kind="stable"):
        count, images = result["class_pixels"][train_id], result["class_images"][train_id]
        if count:
            lines.append(
                f"  {dataset.classes[train_id]:<{width}}  {train_id:>8}  {count:>15,}  {100 * count / labeled:>6.2f}%"
                f"  {images:>7}  {100 * images / result['images']:>6.2f}%  {100 * result['fill'][train_id]:>10.2f}%"
            )
    unseen = result["unseen"]
    lines.append(f"  never seen: {', '.join(unseen) or 'none'}" + f" ({len(unseen)} classes)" * (len(unseen) > 1))
    void = f"  void: {100 * result['void_share']:.2f}% of all {result['pixels'].sum():,} pixels"
    if result["void_images"]:
        void += f"; {_plural(result['void_images'], 'image has', 'images have')} no labeled pixel"
    return "\n".join([*lines, void, *_orientation_lines(result)]) + "\n"


def images_line(dataset: Dataset, name: str, result: dict) -> str:
    """Return a split's name and number of images, and the published number if that differs."""
    published = dataset.published.get(name, result["images"])
    # Results of a partial split are not comparable to published ones.
    images = f"{result['images']} of {published}" if result["images"] != published else f"{published}"
    return f"{name}: {images} image{'s' * (published > 1)}"


def sizes_line(sizes: dict[tuple[int, int], int]) -> str:
    """Return {(height, width): images} as text, width before height.

    Many sizes are summarized by their quantiles.
    """
    if len(sizes) == 1:
        ((height, width),) = sizes
        return f"all {width}x{height}"
    if len(sizes) <= SIZES_LISTED:
        return ", ".join(f"{width}x{height} ({count})" for (height, width), count in sorted(sizes.items()))
    height, width = side_quantiles(sizes)
    return (
        f"width {width[0]} to {width[2]}, median {width[1]}; height {height[0]} to {height[2]}, "
        f"median {height[1]} ({len(sizes)} sizes)"
    )


def side_quantiles(sizes: dict[tuple[int, int], int]) -> list[list[int]]:
    """Return [minimum, median, maximum] of the heights and of the widths.

    An even number of sizes takes the lower median.
    """
    sides = np.repeat(list(sizes), list(sizes.values()), axis=0)
    return np.quantile(sides, (0, 0.5, 1), axis=0, method="lower").T.tolist()


def _size_lines(result: dict) -> list[str]:
    sizes = result["sizes"]
    if len(sizes) == 1:
        return [f"  sizes: {sizes_line(sizes)}"]
    height, width = side_quantiles(sizes)
    common = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:SIZES_LISTED]
    lines = [
        f"  sizes: {len(sizes)}, width {width[0]} to {width[2]}, median {width[1]}; "
        f"height {height[0]} to {height[2]}, median {height[1]}",
        "  most common: " + ", ".join(f"{across}x{down} ({count})" for (down, across), count in common),
    ]
    for kind in ("smallest", "largest"):
        (down, across), name = result[kind]
        lines.append(f"  {kind}: {across}x{down}, {name}")
    return lines


def _orientation_lines(result: dict) -> list[str]:
    if not result["turned"]:
        return []
    return [f"  {orientation_note(result['turned'])}"]


def orientation_note(count: int) -> str:
    """Return a sentence on a number of images with an EXIF orientation other than upright."""
    return (
        f"{_plural(count, 'image has', 'images have')} an EXIF orientation; all commands read it upright, so its "
        "label must be drawn on the upright image"
    )


def _plural(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural}"


def plain_summary(dataset: Dataset, name: str, result: dict) -> dict:
    """Return a split's summary as JSON values, with classes and sizes sorted by frequency.

    Undefined fractions are None.
    """
    labeled = int(result["class_pixels"].sum())
    quantile_names = ("least", "median", "largest")
    height, width = side_quantiles(result["sizes"])
    order = np.argsort(-result["class_pixels"], kind="stable").tolist()
    common = sorted(result["sizes"].items(), key=lambda item: (-item[1], item[0]))
    return {
        "images": result["images"],
        "published": dataset.published.get(name),
        "width": dict(zip(quantile_names, width)),
        "height": dict(zip(quantile_names, height)),
        "sizes": [{"width": across, "height": down, "images": count} for (down, across), count in common],
        "pixels": int(result["pixels"].sum()),
        "labelled_pixels": labeled,
        "void_share": result["void_share"],
        "void_images": result["void_images"],
        "turned": result["turned"],
        "classes": [
            {
                "name": dataset.classes[index],
                "train_id": index,
                "pixels": int(result["class_pixels"][index]),
                "share": int(result["class_pixels"][index]) / labeled if labeled else None,
                "images": int(result["class_images"][index]),
                "fill": _finite_or_none(result["fill"][index]),
                "weight": _finite_or_none(result["weights"][index]),
            }
            for index in order
        ],
    }


def _finite_or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
