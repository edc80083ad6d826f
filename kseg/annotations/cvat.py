"""Read CVAT for images 1.1: one XML file with polygons, boxes, ellipses and masks."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from kseg.annotations.annotated_images import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Findings,
    Mask,
    Options,
    Polygons,
)
from kseg.annotations.outlines import ellipse, rectangle, rotate
from kseg.errors import DataError

NO_AREA = ("polyline", "points", "skeleton", "cuboid")
# Elements of an image that are no objects.
OTHER = ("tag",)


def read_cvat(path: Path, options: Options, findings: Findings) -> Annotations:
    """Return the annotations of a CVAT file; the classes have the order of the labels in it.

    Objects are drawn by their z_order, and within it in the order of the file.

    Args:
        path: The XML file, or a directory with annotations.xml.
        options: `images` is the directory of the images, by default `images` beside the file, or the file's directory.
        findings: Receives objects without an area, and the faults of single objects.

    Raises:
        DataError: The file is not CVAT's.
    """
    path = path / "annotations.xml" if path.is_dir() else path
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        line, column = error.position
        raise DataError(f"{path}, line {line}, column {column}: not XML: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        hint = "; export `CVAT for images 1.1`, not for video" if root.find("track") is not None else ""
        raise DataError(f"{path}: no <image> in <annotations>{hint}")
    names = [label.findtext("name", "").strip() for label in root.findall("meta//labels/label")]
    beside = path.parent / "images"
    directory = options.images or (beside if beside.is_dir() else path.parent)

    def read_images() -> Iterator[AnnotatedImage]:
        for image in images:
            name = image.get("name", "")
            place = f"{path}: image {name!r}"
            size = _number(place, image, "height", int), _number(place, image, "width", int)
            objects = []
            # The sort is stable.
            for index, element in sorted(enumerate(image, 1), key=lambda item: float(item[1].get("z_order") or 0)):
                if element.tag in OTHER:
                    continue
                object_place = f"{place}: {element.tag} {index}"
                shape = findings.read_shape(object_place, partial(_read_shape, object_place, element))
                if shape is not None:
                    objects.append(AnnotatedObject(object_place, element.get("label", ""), shape))
            yield AnnotatedImage(str(path), name, directory / name, size, tuple(objects), image.get("subset", ""))

    # Exports of a job and of a project have the labels elsewhere; an old one may lack them.
    found = names or sorted({element.get("label", "") for image in images for element in image})
    return Annotations(tuple(options.classes) or tuple(dict.fromkeys(found)), read_images(), len(images))


def _number(place: str, element: Element, key: str, kind: type[int] | type[float]) -> int | float:
    text = element.get(key, "")
    try:
        return kind(text)
    except ValueError:
        raise DataError(f"{place}: {key}={text!r} is not a number") from None


def _read_shape(place: str, element: Element) -> Polygons | Mask | None:
    """Return an element's geometry, or None for one without an area."""
    if element.tag in NO_AREA:
        return None
    if element.tag == "polygon":
        try:
            points = [[float(value) for value in pair.split(",")] for pair in element.get("points", "").split(";")]
            return Polygons((np.array(points, np.float64).reshape(-1, 2),))
        except ValueError:
            raise DataError(f"{place}: points are pairs of numbers, such as 1.5,2;3,4") from None
    if element.tag == "mask":
        return _read_mask(place, element)
    angle = _number(place, element, "rotation", float) if element.get("rotation") else 0.0
    if element.tag == "box":
        corners = rectangle(*(_number(place, element, key, float) for key in ("xtl", "ytl", "xbr", "ybr")))
    elif element.tag == "ellipse":
        corners = ellipse(*(_number(place, element, key, float) for key in ("cx", "cy", "rx", "ry")))
    else:
        raise DataError(
            f"{place}: unknown element <{element.tag}>; known: polygon, mask, box, ellipse, {', '.join(NO_AREA)}"
        )
    return Polygons((rotate(corners, angle),))


def _read_mask(place: str, element: Element) -> Mask:
    """Return the mask of run lengths along the rows of a box, of zeros and ones in turn."""
    left, top, width, height = (_number(place, element, key, int) for key in ("left", "top", "width", "height"))
    try:
        runs = [int(text) for text in element.get("rle", "").split(",")]
    except ValueError:
        raise DataError(f"{place}: rle is a list of whole numbers") from None
    if min(runs) < 0 or sum(runs) != width * height:
        raise DataError(
            f"{place}: the run lengths count {sum(runs)} pixels, its box {width}x{height} = {width * height}"
        )
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return Mask(pixels, left, top)
