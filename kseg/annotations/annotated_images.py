"""Hold annotated images, the shapes that are drawn on them, and what a reader found on the way."""

import collections
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kseg.errors import DataError

# A conversion counts these, and describes each kind so.
FINDINGS = {
    "clipped": "objects clipped at the edge of their image",
    "outside": "objects outside of their image, skipped",
    "too small": "objects without a pixel, skipped",
    "degenerate": "objects with a polygon of fewer than 3 points, which was skipped",
    "no area": "objects without an area (keypoints, lines, boxes without a mask), skipped",
    "crowd": "crowd regions, ignored (255); Datumaro calls every mask a crowd, which `--crowd draw` draws",
    "ignored": "objects of a class whose name means ignore, drawn as 255",
    "overlap": "images in which a later object covers an earlier one of another class",
    "empty": "images without an object",
    "missing": "missing images, skipped",
    "turned": "images with an EXIF orientation",
    "not annotated": "images without an annotation file, skipped",
    "further annotations": "tasks with several annotations, of which the first was taken",
    "skipped": "tasks without a finished annotation, skipped",
}


@dataclass(frozen=True)
class Polygons:
    """Rings whose union is the object: float64 arrays (N, 2) of x, y in pixels from the image's upper left corner."""

    rings: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Mask:
    """Pixels of an object: bool (h, w), whose upper left pixel lies at (left, top) of the image."""

    pixels: np.ndarray
    left: int = 0
    top: int = 0


@dataclass(frozen=True)
class LabelMap:
    """A class id for each pixel of the image, uint8 (H, W), 255 where it is ignored."""

    ids: np.ndarray


Shape = Polygons | Mask | LabelMap


@dataclass(frozen=True)
class AnnotatedObject:
    """An object: where its annotation is, its class ("" for a LabelMap), its shape, and whether it is a crowd."""

    place: str
    name: str
    shape: Shape
    crowd: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its objects in drawing order.

    Attributes:
        place: The annotation file, for messages.
        name: The image's path as the annotations name it.
        file: The image file, or its encoded bytes.
        size: (height, width) that the annotations state, None if they state none.
        split: The split that the format names, "" for none.
        objects: The objects; a later one is drawn over an earlier one.
    """

    place: str
    name: str
    file: Path | bytes
    size: tuple[int, int] | None
    objects: tuple[AnnotatedObject, ...]
    split: str = ""


@dataclass
class Findings:
    """Collect what a conversion changes or skips, and the faults that prevent it, each with its place."""

    entries: dict[str, list[str]] = field(default_factory=lambda: collections.defaultdict(list))
    faults: list[str] = field(default_factory=list)
    overlapped_pixels: int = 0

    def add(self, kind: str, place: str) -> None:
        """Add an entry of a kind of FINDINGS."""
        if kind not in FINDINGS:
            raise KeyError(kind)
        self.entries[kind].append(place)

    def fault(self, text: str) -> None:
        """Add a fault, after which no dataset is written."""
        self.faults.append(text)

    def read_shape(self, place: str, read: Callable[[], Shape | None]) -> Shape | None:
        """Read an object's shape; a fault or an object without an area is recorded and gives None."""
        try:
            shape = read()
        except DataError as error:
            self.fault(str(error))
            return None
        if shape is None:
            self.add("no area", place)
        return shape


@dataclass(frozen=True)
class Options:
    """Hold what a reader needs besides the annotations.

    Attributes:
        images: Directory of the images; None: where the format puts them.
        classes: Names of the classes in the order of their ids; empty: those of the annotations.
        colors: A table of colors and names, as in classes.txt; None: the colors that occur.
        draw_crowds: Whether COCO's crowd regions are drawn as objects; otherwise they are ignored.
    """

    images: Path | None = None
    classes: Sequence[str] = ()
    colors: Path | None = None
    draw_crowds: bool = False


@dataclass(frozen=True)
class Annotations:
    """The annotations of a path.

    Attributes:
        classes: Names of the classes in id order.
        images: The images; the iterator may raise DataError.
        count: Number of images.
        complete: Whether every pixel is labeled, so that no background class is needed.
    """

    classes: tuple[str, ...]
    images: Iterator[AnnotatedImage]
    count: int
    complete: bool = False
