"""Read LabelMe's JSON files, one for each image."""

import base64
import binascii
import io
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np
from PIL import Image

from kseg.annotations.annotated_images import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Findings,
    Mask,
    Options,
    Polygons,
)
from kseg.annotations.json_files import member, read_json
from kseg.annotations.outlines import ellipse, rectangle
from kseg.errors import DataError
from kseg.images.image_files import SUFFIXES

NO_AREA = ("point", "points", "line", "linestrip")


def read_labelme(path: Path, options: Options, findings: Findings) -> Annotations:
    """Return the annotations of a directory of LabelMe's files; by default the classes are sorted by name.

    Args:
        path: The directory; subdirectories are read as well.
        options: `images` is the directory to which `imagePath` is relative, by default each JSON file's own.
        findings: Receives shapes without an area, images without a JSON file, and the faults of single files.

    Raises:
        DataError: The directory holds no JSON file.
    """
    files = sorted(path.rglob("*.json"))
    if not files:
        raise DataError(f"no .json file below {path}")
    names, annotated, readable = set(), set(), []
    for file in files:
        try:
            content = read_json(file, dict)
            names |= {member(f"{file}: shapes", shape, "label", str) for shape in _shapes(file, content)}
            annotated.add(_image_file(file, content, options))
            readable.append(file)
        except DataError as error:
            findings.fault(str(error))
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file not in annotated:
            findings.add("not annotated", str(file))

    def read_images() -> Iterator[AnnotatedImage]:
        for file in readable:
            # The files hold their images as text, too much to keep all of them.
            content = read_json(file, dict)
            objects = []
            for index, shape in enumerate(_shapes(file, content)):
                place = f"{file}: shapes[{index}]"
                geometry = findings.read_shape(place, partial(_read_shape, place, shape))
                if geometry is not None:
                    objects.append(AnnotatedObject(place, shape["label"], geometry))
            size = content.get("imageHeight"), content.get("imageWidth")
            image = _image_file(file, content, options)
            name = file.relative_to(path).with_suffix(image.suffix).as_posix()
            yield AnnotatedImage(str(file), name, image, None if None in size else size, tuple(objects))

    return Annotations(tuple(options.classes) or tuple(sorted(names)), read_images(), len(readable))


def _shapes(file: Path, content: dict) -> list:
    return member(str(file), content, "shapes", list)


def _image_file(file: Path, content: dict, options: Options) -> Path:
    # Files that were written on Windows have its separators.
    stated = PureWindowsPath(member(str(file), content, "imagePath", str))
    image = Path(*stated.parts) if not stated.drive else Path(stated.name)
    found = (options.images or file.parent) / image
    return Path(*_without_parents(found)) if ".." in found.parts else found


def _without_parents(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return parts


def _read_shape(place: str, shape: dict) -> Polygons | Mask | None:
    """Return a shape's geometry, or None for a shape without an area."""
    kind = shape.get("shape_type") or "polygon"
    if kind in NO_AREA:
        return None
    try:
        points = np.asarray(member(place, shape, "points", list), np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise DataError(f"{place}: points are pairs of numbers") from None
    if not np.isfinite(points).all():
        raise DataError(f"{place}: a coordinate is not a finite number")
    if kind == "polygon":
        return Polygons((points,))
    if kind in ("rectangle", "circle", "mask") and len(points) != 2:
        raise DataError(f"{place}: a {kind} has 2 points, found {len(points)}")
    if kind == "rectangle":
        return Polygons((rectangle(*points.min(axis=0), *points.max(axis=0)),))
    if kind == "circle":
        center, radius = points[0], math.dist(*points)
        return Polygons((ellipse(*center, radius, radius),))
    if kind == "mask":
        return _read_mask(place, shape, points)
    raise DataError(
        f"{place}: unknown shape_type {kind!r}; known: polygon, rectangle, circle, mask, {', '.join(NO_AREA)}"
    )


def _read_mask(place: str, shape: dict, points: np.ndarray) -> Mask:
    """Return the mask of a PNG whose upper left pixel is the first point."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(member(place, shape, "mask", str), validate=True))) as image:
            pixels = np.asarray(image).astype(bool)
    except (binascii.Error, OSError, ValueError, SyntaxError):
        raise DataError(f"{place}: its mask is not a PNG in base64") from None
    left, top = (int(value) for value in points.min(axis=0))
    return Mask(pixels, left, top)
