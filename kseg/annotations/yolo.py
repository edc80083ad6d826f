"""Read YOLO's polygons: data.yaml, and one text file of corners for each image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kseg.annotations.annotated_images import AnnotatedImage, AnnotatedObject, Annotations, Findings, Options, Polygons
from kseg.errors import DataError
from kseg.images import picture_reader
from kseg.images.image_files import SUFFIXES

# Numbers of a line that is a box: class, center and sides.
BOX_NUMBERS = 5
SPLITS = {"train": "train", "val": "val", "test": "test"}


def read_yolo(path: Path, options: Options, findings: Findings) -> Annotations:
    """Return the annotations of a YOLO dataset; the classes are `names` of data.yaml.

    Args:
        path: The data.yaml, or its directory.
        options: `images` is the directory of the images, and `labels` beside it or beside data.yaml has the text files;
            by default they are those of the splits in data.yaml.
        findings: Receives boxes, and the faults of single lines.

    Raises:
        DataError: data.yaml is damaged or names no split.
    """
    path = path / "data.yaml" if path.is_dir() else path
    content = _read_yaml(path)
    listed = content.get("names")
    names = [listed[key] for key in sorted(listed)] if isinstance(listed, dict) else listed
    if isinstance(listed, dict) and sorted(listed) != list(range(len(listed))):
        raise DataError(f"{path}: the keys of `names` are not 0 to {len(listed) - 1}")
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: `names` lists no class")
    names = [str(name) for name in names]
    files = _image_files(path, content, options)

    def read_images() -> Iterator[AnnotatedImage]:
        for split, root, file in files:
            name = file.relative_to(root).as_posix()
            text_file = _label_file(path, file)
            size, objects = None, ()
            if file.is_file() and text_file.is_file():
                try:
                    # Tools show images upright, so the fractions are those of the upright image.
                    size = picture_reader.read_size(file, file)
                    objects = tuple(_read_lines(text_file, size, names, findings))
                except DataError as error:
                    findings.fault(str(error))
                    continue
            yield AnnotatedImage(str(text_file), name, file, size, objects, split)

    return Annotations(tuple(options.classes) or tuple(names), read_images(), len(files))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise DataError("data.yaml needs PyYAML: pip install 'kseg[convert]'") from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected keys such as names and train")
    return content


def _image_files(path: Path, content: dict, options: Options) -> list[tuple[str, Path, Path]]:
    """Return the split, the root directory and the path of each image."""
    if options.images:
        return [("", options.images, file) for file in _images_below(options.images)]
    root = path.parent / str(content.get("path") or "")
    found = []
    for key, split in SPLITS.items():
        stated = content.get(key) or []
        for entry in [stated] if isinstance(stated, str) else stated:
            # Exports of Roboflow write ../train/images, although train lies beside data.yaml.
            places = [root / entry, path.parent / entry, path.parent / entry.removeprefix("../")]
            place = next((place for place in places if place.exists()), None)
            if place is None:
                raise DataError(f"{path}: {key}: {places[0]} does not exist; name the images with --images DIR")
            if place.is_dir():
                found += [(split, place, file) for file in _images_below(place)]
            else:
                lines = [line.strip() for line in place.read_text().splitlines() if line.strip()]
                found += [(split, place.parent, place.parent / line) for line in lines]
    if not found:
        raise DataError(f"{path}: no image in {', '.join(SPLITS)}; name the images with --images DIR")
    return found


def _images_below(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.suffix.lower() in SUFFIXES)


def _label_file(path: Path, image: Path) -> Path:
    """Return an image's text file: below `labels` in place of the last `images`, or in labels beside data.yaml."""
    parts = list(image.with_suffix(".txt").parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            beside = Path(*parts[:index], "labels", *parts[index + 1 :])
            if beside.is_file():
                return beside
            break
    return path.parent / "labels" / image.with_suffix(".txt").name


def _read_lines(file: Path, size: tuple[int, int], names: list[str], findings: Findings) -> Iterator[AnnotatedObject]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        place = f"{file}, line {number}"
        if not line.strip():
            continue
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            findings.fault(f"{place}: {line[:60]!r} is not a list of numbers")
            continue
        index = values[0]
        if index not in range(len(names)):
            known = ", ".join(f"{key} {name}" for key, name in enumerate(names))
            findings.fault(f"{place}: unknown class {line.split()[0]}; known: {known}")
        elif len(values) == BOX_NUMBERS:
            findings.add("no area", place)
        elif len(values) % 2 == 0:
            findings.fault(f"{place}: a polygon is a class and pairs of numbers; found {len(values)} numbers")
        else:
            corners = np.array(values[1:], np.float64).reshape(-1, 2) * size[::-1]
            yield AnnotatedObject(place, names[int(index)], Polygons((corners,)))
