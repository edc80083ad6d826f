"""Read COCO's JSON of object instances: polygons, and masks as run lengths, compressed or not."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from kseg.annotations.json_files import member, read_json
from kseg.annotations.rasterization import masks_library
from kseg.errors import DataError


def read_coco(path: Path, options: Options, findings: Findings) -> Annotations:
    """Return the annotations of a COCO file; the classes have the order of their category ids.

    Args:
        path: The JSON file.
        options: `images` is the directory to which `file_name` is relative, by default the JSON file's.
        findings: Receives objects without a mask, and the faults of single objects.

    Raises:
        DataError: The file is not COCO's.
    """
    content = read_json(path, dict)
    categories = {}
    for index, category in enumerate(member(str(path), content, "categories", list)):
        place = f"{path}: categories[{index}]"
        categories[member(place, category, "id", int)] = member(place, category, "name", str)
    names = [categories[key] for key in sorted(categories)]
    repeated = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{path}: two categories have the name {repeated[0]!r}")
    images = member(str(path), content, "images", list)
    by_image = collections.defaultdict(list)
    known = {member(f"{path}: images[{index}]", image, "id", (int, str)) for index, image in enumerate(images)}
    for index, annotation in enumerate(member(str(path), content, "annotations", list)):
        place = f"{path}: annotations[{index}]"
        image_id = member(place, annotation, "image_id", (int, str))
        if image_id not in known:
            findings.fault(f"{place}: no image has the id {image_id!r}")
        by_image[image_id].append((f"{place} (id {annotation.get('id')})", annotation))

    def read_images() -> Iterator[AnnotatedImage]:
        for index, image in enumerate(images):
            place = f"{path}: images[{index}]"
            name = member(place, image, "file_name", str)
            size = (member(place, image, "height", int), member(place, image, "width", int))
            objects = []
            for object_place, annotation in by_image[image["id"]]:
                try:
                    item = _read_object(object_place, annotation, categories, size, options, findings)
                except DataError as error:
                    findings.fault(str(error))
                    continue
                if item:
                    objects.append(item)
            file = (options.images or path.parent) / name
            yield AnnotatedImage(str(path), name, file, size, tuple(objects))

    return Annotations(tuple(options.classes) or tuple(names), read_images(), len(images))


def _read_object(
    place: str,
    annotation: dict,
    categories: dict[int, str],
    size: tuple[int, int],
    options: Options,
    findings: Findings,
) -> AnnotatedObject | None:
    category = member(place, annotation, "category_id", int)
    if category not in categories:
        known = ", ".join(f"{key} {name}" for key, name in sorted(categories.items()))
        raise DataError(f"{place}: unknown category_id {category}; known: {known}")
    segmentation = annotation.get("segmentation")
    if not segmentation:
        findings.add("no area", place)
        return None
    shape = (
        Mask(_decode_runs(place, segmentation, size)) if isinstance(segmentation, dict) else _rings(place, segmentation)
    )
    return AnnotatedObject(
        place, categories[category], shape, bool(annotation.get("iscrowd")) and not options.draw_crowds
    )


def _rings(place: str, segmentation: Any) -> Polygons:
    try:
        rings = [np.asarray(ring, np.float64) for ring in segmentation]
    except (TypeError, ValueError):
        raise DataError(f"{place}: a segmentation is a list of lists of numbers, or run lengths") from None
    for ring in rings:
        if ring.ndim != 1 or len(ring) % 2:
            raise DataError(f"{place}: a polygon lists x and y in turn; found {ring.size} numbers")
    return Polygons(tuple(ring.reshape(-1, 2) for ring in rings))


def _decode_runs(place: str, segmentation: dict, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of run lengths down the columns, bool (H, W)."""
    stated = tuple(member(place, segmentation, "size", list))
    counts = member(place, segmentation, "counts", (list, str))
    if stated != size:
        raise DataError(f"{place}: its mask has the size {list(stated)}, its image {list(size)} (height, width)")
    if isinstance(counts, list) and not all(isinstance(count, int) for count in counts):
        raise DataError(f"{place}: run lengths are whole numbers")
    if isinstance(counts, str):
        # pycocotools reads past the image if the counts are damaged, so their sum is checked first.
        counts = _unpack_counts(place, counts)
    if sum(counts) != size[0] * size[1] or min(counts, default=0) < 0:
        raise DataError(f"{place}: the run lengths count {sum(counts)} pixels, its image has {size[0] * size[1]}")
    library = masks_library()
    return library.decode(library.frPyObjects({"size": list(size), "counts": counts}, *size)).astype(bool)


def _unpack_counts(place: str, text: str) -> list[int]:
    """Return the run lengths of COCO's compressed text.

    A number is written in groups of 5 bits, the lowest first, each as the character 48 + group, plus 32 if another
    group follows; bit 4 of the last group is the sign. From the fourth number on it is the difference to the number
    two before it.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise DataError(f"{place}: {character!r} cannot occur in compressed run lengths")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError(f"{place}: the compressed run lengths end inside a number")
    return counts
