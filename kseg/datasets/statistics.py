"""What a split holds, in numbers and in words: sizes of its pictures, pixels of its label values and classes."""

import collections
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kseg.config import IGNORED
from kseg.datasets.registry import UNMAPPED, Dataset

SIZES_LISTED = 4


@dataclass(frozen=True)
class Example:
    """What one example adds: its picture's name, the (height, width) of its label, int64 (256,) pixels of each raw
    value, and whether the picture carries an EXIF orientation."""

    name: str
    size: tuple[int, int]
    counts: np.ndarray
    turned: bool


def value_counts(label: np.ndarray) -> np.ndarray:
    """Return int64 (256,): how many pixels of a uint8 (H, W) label have each value."""
    # numpy.bincount would first make every pixel an int64, which is a gigabyte for a satellite picture.
    return np.array(Image.fromarray(label).histogram(), np.int64)


def by_class(table: np.ndarray, counts: np.ndarray, classes: int) -> np.ndarray:
    """Return int64 (C,): counts (256,) of raw values summed by train id."""
    return np.bincount(table, weights=counts, minlength=256)[:classes].astype(np.int64)


def summarise(dataset: Dataset, examples: Iterable[Example]) -> dict:
    """Return what a split's examples hold together.

    "images": how many; "sizes": {(height, width): images}; "smallest" and "largest": ((height, width), picture's name)
    by area, None without an example; "pixels" and "images_with": int64 (256,), pixels of each raw value and images in
    which it occurs; "class_pixels" and "class_images": the same by class, int64 (C,); "fill": float64 (C,), share of a
    class in all pixels of the images in which it occurs, nan where unseen; "void_share": ignored pixels' share of all;
    "void_images": images without any labelled pixel; "turned": pictures with an EXIF orientation; "unseen": names of
    classes without a pixel; "weights": float64 (C,), see `class_weights`.
    """
    classes, table = len(dataset.classes), np.array(dataset.label_table)
    sizes: collections.Counter = collections.Counter()
    pixels, images_with = np.zeros(256, np.int64), np.zeros(256, np.int64)
    # Of each class: the images in which it occurs, and all their pixels.
    class_images, pixels_beside = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    turned = void_images = 0
    smallest = largest = None
    for example in examples:
        sizes[example.size] += 1
        pixels += example.counts
        images_with += example.counts > 0
        present = by_class(table, example.counts, classes) > 0
        class_images += present
        pixels_beside += present * example.counts.sum()
        void_images += not present.any()
        turned += example.turned
        if smallest is None or math.prod(example.size) < math.prod(smallest[0]):
            smallest = example.size, example.name
        if largest is None or math.prod(example.size) > math.prod(largest[0]):
            largest = example.size, example.name
    class_pixels, total = by_class(table, pixels, classes), pixels.sum()
    fill = np.full(classes, np.nan)
    np.divide(class_pixels, pixels_beside, out=fill, where=class_pixels > 0)
    return {
        "images": sum(sizes.values()), "sizes": dict(sizes), "smallest": smallest, "largest": largest,
        "pixels": pixels, "images_with": images_with, "class_pixels": class_pixels, "class_images": class_images,
        "fill": fill, "void_share": float(pixels[table == IGNORED].sum() / total) if total else math.nan,
        "void_images": void_images, "turned": turned,
        "unseen": [name for name, count in zip(dataset.classes, class_pixels) if not count],
        "weights": class_weights(fill),
    }


def class_weights(fill: np.ndarray) -> np.ndarray:
    """Return SegNet's median-frequency weights, float64 (C,): median of freq / freq of the class, nan where unseen.

    A class's freq is `fill` of `summarise`: its pixels divided by all pixels, ignored ones too, of the images in which
    it occurs. The median is over the classes seen, and of two middle ones their mean. (Badrinarayanan, Kendall,
    Cipolla, PAMI 2017, section 4.1.)
    """
    seen = ~np.isnan(fill)
    return np.median(fill[seen]) / fill if seen.any() else fill.copy()


def describe_values(dataset: Dataset, name: str, result: dict) -> str:
    """Return a split's summary as text: sizes, a table of label values, unseen classes, void share and weights."""
    pixels, total = result["pixels"], result["pixels"].sum()
    if not total:
        return f"{name}: no readable example\n"
    lines = [f"{images_line(dataset, name, result)}, {sizes_line(result['sizes'])}"]
    width = max(map(len, (*dataset.classes, "not a label value")))
    lines.append(f"  {'value':>5}  {'train id':>8}  {'class':<{width}}  {'pixels':>15}  {'share':>7}  {'images':>7}")
    for value, train_id in enumerate(dataset.label_table):
        if train_id >= UNMAPPED and not pixels[value]:
            continue
        number, title = {IGNORED: (IGNORED, "ignored"), UNMAPPED: ("-", "not a label value")}.get(
            train_id) or (train_id, dataset.classes[train_id])
        lines.append(f"  {value:>5}  {number:>8}  {title:<{width}}  {pixels[value]:>15,}  "
                     f"{100 * pixels[value] / total:>6.2f}%  {result['images_with'][value]:>7}")
    lines += [f"  never seen: {', '.join(result['unseen']) or 'none'}",
              f"  void: {100 * result['void_share']:.2f}% of all pixels", *_turned_lines(result),
              "  median-frequency weights: " + " ".join(f"{weight:.4f}" for weight in result["weights"])]
    return "\n".join(lines) + "\n"


def describe_classes(dataset: Dataset, name: str, result: dict) -> str:
    """Return a split's summary as text: sizes in full, a table of the classes, the commonest first, and void share."""
    if not result["images"]:
        return f"{name}: no readable example\n"
    labelled = result["class_pixels"].sum()
    lines = [images_line(dataset, name, result), *_size_lines(result)]
    width = max(map(len, (*dataset.classes, "class")))
    if labelled:
        lines.append(f"  {'class':<{width}}  {'train id':>8}  {'pixels':>15}  {'share':>7}  {'images':>7}  "
                     f"{'of all':>7}  {'fills there':>11}")
    for train_id in np.argsort(-result["class_pixels"], kind="stable"):
        count, images = result["class_pixels"][train_id], result["class_images"][train_id]
        if count:
            lines.append(
                f"  {dataset.classes[train_id]:<{width}}  {train_id:>8}  {count:>15,}  {100 * count / labelled:>6.2f}%"
                f"  {images:>7}  {100 * images / result['images']:>6.2f}%  {100 * result['fill'][train_id]:>10.2f}%")
    unseen = result["unseen"]
    lines.append(f"  never seen: {', '.join(unseen) or 'none'}" + f" ({len(unseen)} classes)" * (len(unseen) > 1))
    void = f"  void: {100 * result['void_share']:.2f}% of all {result['pixels'].sum():,} pixels"
    if result["void_images"]:
        void += f"; {_plural(result['void_images'], 'image has', 'images have')} no labelled pixel"
    return "\n".join([*lines, void, *_turned_lines(result)]) + "\n"


def images_line(dataset: Dataset, name: str, result: dict) -> str:
    """Return the name of a split and how many images it has, and of how many where it is a part of the published."""
    published = dataset.published.get(name, result["images"])
    # A part of a split is as good to train on, but what it gives is no published number.
    images = f"{result['images']} of {published}" if result["images"] != published else f"{published}"
    return f"{name}: {images} image{'s' * (published > 1)}"


def sizes_line(sizes: dict[tuple[int, int], int]) -> str:
    """Return {(height, width): images} as text, width before height: each size if they are few, else the extent."""
    if len(sizes) == 1:
        ((height, width),) = sizes
        return f"all {width}x{height}"
    if len(sizes) <= SIZES_LISTED:
        return ", ".join(f"{width}x{height} ({count})" for (height, width), count in sorted(sizes.items()))
    height, width = sides(sizes)
    return (f"width {width[0]} to {width[2]}, median {width[1]}; height {height[0]} to {height[2]}, "
            f"median {height[1]} ({len(sizes)} sizes)")


def sides(sizes: dict[tuple[int, int], int]) -> list[list[int]]:
    """Return [least, median, largest] of the heights and of the widths; of two middle ones the lower."""
    every = np.repeat(list(sizes), list(sizes.values()), axis=0)
    return np.quantile(every, (0, 0.5, 1), axis=0, method="lower").T.tolist()


def _size_lines(result: dict) -> list[str]:
    sizes = result["sizes"]
    if len(sizes) == 1:
        return [f"  sizes: {sizes_line(sizes)}"]
    height, width = sides(sizes)
    common = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:SIZES_LISTED]
    lines = [f"  sizes: {len(sizes)}, width {width[0]} to {width[2]}, median {width[1]}; "
             f"height {height[0]} to {height[2]}, median {height[1]}",
             "  commonest: " + ", ".join(f"{across}x{down} ({count})" for (down, across), count in common)]
    for kind in ("smallest", "largest"):
        (down, across), name = result[kind]
        lines.append(f"  {kind}: {across}x{down}, {name}")
    return lines


def _turned_lines(result: dict) -> list[str]:
    if not result["turned"]:
        return []
    return [f"  {_plural(result['turned'], 'picture carries', 'pictures carry')} an EXIF orientation, which training "
            "and evaluation leave alone and prediction applies: turn the pixels themselves"]


def _plural(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def plain(dataset: Dataset, name: str, result: dict) -> dict:
    """Return a split's summary as plain values for JSON, its classes and sizes the commonest first.

    Shares of nothing are None.
    """
    labelled = int(result["class_pixels"].sum())
    least_median_largest = ("least", "median", "largest")
    height, width = sides(result["sizes"])
    order = np.argsort(-result["class_pixels"], kind="stable").tolist()
    common = sorted(result["sizes"].items(), key=lambda item: (-item[1], item[0]))
    return {
        "images": result["images"], "published": dataset.published.get(name),
        "width": dict(zip(least_median_largest, width)), "height": dict(zip(least_median_largest, height)),
        "sizes": [{"width": across, "height": down, "images": count} for (down, across), count in common],
        "pixels": int(result["pixels"].sum()), "labelled_pixels": labelled, "void_share": result["void_share"],
        "void_images": result["void_images"], "turned": result["turned"],
        "classes": [{
            "name": dataset.classes[index], "train_id": index, "pixels": int(result["class_pixels"][index]),
            "share": int(result["class_pixels"][index]) / labelled if labelled else None,
            "images": int(result["class_images"][index]), "fill": _number(result["fill"][index]),
            "weight": _number(result["weights"][index])} for index in order],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
