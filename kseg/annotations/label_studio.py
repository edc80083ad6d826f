"""Read Label Studio's JSON export: polygons, rectangles, ellipses, and brush masks."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

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
from kseg.annotations.outlines import ellipse, rectangle, rotate
from kseg.errors import DataError

# Results with an area; the value holds the labels under the name of the type.
AREAS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")
NO_AREA = ("keypointlabels", "vectorlabels")
# Label Studio puts 8 hexadecimal digits before the names of uploaded files.
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
# Channels of a brush mask; the last one is its opacity.
CHANNELS = 4


def read_label_studio(path: Path, options: Options, findings: Findings) -> Annotations:
    """Return the annotations of a JSON export; by default the classes are sorted by name.

    Of several annotations of a task the first one that is not cancelled is taken.

    Args:
        path: The JSON file.
        options: `images` is the directory of the images, by default the JSON file's.
        findings: Receives tasks and results that are skipped, and the faults of single results.

    Raises:
        DataError: The file is no JSON export of Label Studio.
    """
    tasks = []
    for index, task in enumerate(read_json(path, list)):
        place = f"{path}: task {task.get('id', index) if isinstance(task, dict) else index}"
        try:
            finished = [
                annotation
                for annotation in member(place, task, "annotations", list)
                if isinstance(annotation, dict) and not annotation.get("was_cancelled")
            ]
        except DataError:
            raise DataError(f"{place}: no list `annotations`; export `JSON`, not `JSON-MIN`") from None
        if not finished:
            findings.add("skipped", place)
            continue
        if len(finished) > 1:
            findings.add("further annotations", place)
        results = member(place, finished[0], "result", list)
        for number, result in enumerate(results):
            member(f"{place}: result {number}", result, "type", str)
        tasks.append((place, task, results))
    names = {
        name
        for place, _, results in tasks
        for result in results
        if result.get("type") in AREAS
        for name in _names(place, result)
    }
    directory = options.images or path.parent

    def read_images() -> Iterator[AnnotatedImage]:
        for place, task, results in tasks:
            stated = _image_of(place, task)
            file = _find_file(directory, stated)
            objects, sizes = [], set()
            for number, result in enumerate(results):
                object_place = f"{place}: result {result.get('id', number)}"
                try:
                    found = _read_result(object_place, result, findings)
                except DataError as error:
                    findings.fault(str(error))
                    continue
                if found:
                    size, item = found
                    sizes.add(size)
                    objects.append(item)
            if len(sizes) > 1:
                findings.fault(f"{place}: its results state several sizes of the image: {sorted(sizes)}")
                continue
            yield AnnotatedImage(str(path), file.name, file, sizes.pop() if sizes else None, tuple(objects))

    return Annotations(tuple(options.classes) or tuple(sorted(names)), read_images(), len(tasks))


def _names(place: str, result: dict) -> list[str]:
    """Return the labels of a result; raises DataError if they are no list of texts."""
    names = member(place, member(place, result, "value", dict), result["type"], list)
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{place}: the labels of a result are texts, found {names}")
    return names


def _image_of(place: str, task: dict) -> str:
    """Return the image's address in a task: the value of `image`, or the only text that ends as an image does."""
    data = member(place, task, "data", dict)
    texts = [data["image"]] if "image" in data else [value for value in data.values() if isinstance(value, str)]
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise DataError(f"{place}: `data` names no image; found the keys {', '.join(data)}")
    return texts[0]


def _find_file(directory: Path, address: str) -> Path:
    """Return the file of an image's address below a directory, with or without the prefix of uploaded files."""
    parts = urlsplit(address)
    # Files of a local storage are /data/local-files/?d=PATH.
    local = parse_qs(parts.query).get("d")
    path = PurePosixPath(local[0] if local else unquote(parts.path))
    names = [path.name, UPLOAD_PREFIX.sub("", path.name, count=1)]
    candidates = [directory / str(path).lstrip("/"), *(directory / name for name in names)]
    return next((candidate for candidate in candidates if candidate.is_file()), directory / path.name)


def _read_result(place: str, result: dict, findings: Findings) -> tuple[tuple[int, int], AnnotatedObject] | None:
    """Return the image's (height, width) and the object of a result, or None for a result without an area."""
    kind = result.get("type")
    if kind not in AREAS:
        # Choices, texts and relations describe the image or other results.
        if kind in NO_AREA:
            findings.add("no area", place)
        return None
    size = tuple(member(place, result, f"original_{side}", int) for side in ("height", "width"))
    if result.get("image_rotation"):
        raise DataError(f"{place}: the image was turned by {result['image_rotation']} degrees in Label Studio")
    value, names = member(place, result, "value", dict), _names(place, result)
    if len(names) != 1:
        raise DataError(f"{place}: an object has one label, found {names}")
    if kind == "brushlabels":
        if value.get("format") != "rle":
            raise DataError(f"{place}: unknown format {value.get('format')!r} of a brush; known: rle")
        return size, AnnotatedObject(place, names[0], Mask(_brush_mask(place, value, size)))
    return size, AnnotatedObject(place, names[0], Polygons((_outline(place, kind, value, size),)))


def _outline(place: str, kind: str, value: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the corners in pixels, float64 (N, 2), of an outline in percent of the image's sides."""
    scale = np.array(size[::-1]) / 100

    def pixels(*keys: str) -> list[float]:
        return [member(place, value, key, (int, float)) * scale[axis % 2] for axis, key in enumerate(keys)]

    angle = value.get("rotation") or 0
    if kind == "polygonlabels":
        try:
            return np.array(member(place, value, "points", list), np.float64).reshape(-1, 2) * scale
        except (TypeError, ValueError):
            raise DataError(f"{place}: points are pairs of numbers") from None
    if kind == "rectanglelabels":
        left, top, width, height = pixels("x", "y", "width", "height")
        # Label Studio turns rectangles around their upper left corner.
        return rotate(rectangle(left, top, left + width, top + height), angle, (left, top))
    return rotate(ellipse(*pixels("x", "y", "radiusX", "radiusY")), angle)


def _brush_mask(place: str, value: dict, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a brush, bool (H, W)."""
    rle = member(place, value, "rle", list)
    try:
        numbers = decode_rle_pack(bytes(rle))
    except (TypeError, ValueError, IndexError):
        raise DataError(f"{place}: its rle is damaged") from None
    if len(numbers) != CHANNELS * size[0] * size[1]:
        raise DataError(f"{place}: its rle has {len(numbers)} values, its image {CHANNELS} x {size[0]} x {size[1]}")
    return numbers.reshape(*size, CHANNELS)[..., -1] > 0


def decode_rle_pack(data: bytes) -> np.ndarray:
    """Return the numbers of a stream of the format rle-pack, uint8 (N,).

    The stream is a row of bits, the highest bit of each byte first. Its header holds the number of values (32 bits),
    the bits of a value minus 1 (5 bits), and four widths minus 1 (4 bits each). Then come runs: a bit that is 1 if one
    value is repeated, the index of a width (2 bits), the run's length minus 1 in that width, and the value, or each
    value.

    Raises:
        ValueError: The stream ends too early, or has values of more than 8 bits.
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    position = 0

    def read(width: int) -> int:
        nonlocal position
        if position + width > len(bits):
            raise ValueError("the stream ends too early")
        number = int.from_bytes(np.packbits(bits[position : position + width]).tobytes()) >> (-width % 8)
        position += width
        return number

    count, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    # A damaged count must not allocate more than the longest runs of the stream can fill.
    if word > 8 or count > len(bits) << max(widths):
        raise ValueError("not a mask of 8 bits")
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        repeated, length = read(1), read(widths[read(2)]) + 1
        end = min(done + length, count)
        if repeated:
            values[done:end] = read(word)
        else:
            taken = bits[position : position + (end - done) * word].reshape(-1, word)
            if len(taken) < end - done:
                raise ValueError("the stream ends too early")
            values[done:end] = np.packbits(taken, axis=1)[:, 0] >> (8 - word)
            position += (end - done) * word
        done = end
    return values
