"""What predictions are written as: one record for each kind of result that `kseg.predict --save` names."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kseg.datasets import class_names
from kseg.errors import UserError, unknown
from kseg.images import drawing, image_files

if TYPE_CHECKING:
    from kseg.datasets.registry import Dataset

# The part of a result's name by which Cityscapes' evaluation finds it (evalPixelLevelSemanticLabeling.py of its
# scripts); whatever follows is free, but no two results may begin alike.
CITYSCAPES_NAME = re.compile(r"([^_]+_\d{6}_\d{6}).*\.png")


class Prediction(NamedTuple):
    """A picture, uint8 (H, W, 3), its class ids, uint8 (H, W), and where they are wanted the probabilities of the
    classes, floating point (H, W, C)."""

    image: np.ndarray
    ids: np.ndarray
    probabilities: np.ndarray | None = None


class Kind(NamedTuple):
    """A kind of result: its line in --help, its files' suffix, and the array that a file holds.

    `array(prediction, palette)` returns it: uint8 for .png, anything for .npy. `classes` are those a model must have,
    by name and in order; None: any. A kind that is `filmed` is one video for a video, the others one file a frame.
    """

    description: str
    suffix: str
    array: Callable[[Prediction, Sequence[tuple[int, int, int]]], np.ndarray]
    classes: tuple[str, ...] | None = None
    filmed: bool = False


def _table(values: Iterable[int]) -> np.ndarray:
    """Return the uint8 (256,) table id -> value; ids beyond the classes, which no model predicts, are 0."""
    table = np.zeros(256, np.uint8)
    values = list(values)
    table[:len(values)] = values
    return table


LABEL_IDS = _table(class_names.CITYSCAPES_LABEL_IDS)
# 0 is what has none of the 150 classes.
ADE20K_VALUES = _table(range(1, len(class_names.ADE20K) + 1))

KINDS = {
    "ids": Kind("class ids (8-bit grey PNG)", ".png", lambda prediction, palette: prediction.ids),
    "overlay": Kind("the picture mixed with the classes' colours (PNG; of a video an .mp4)", ".png",
                    lambda prediction, palette: drawing.overlay(prediction.image, prediction.ids, palette),
                    filmed=True),
    "scores": Kind("the probability of each class (NumPy .npy, float16 of height x width x classes: 80 MB for a "
                   "Cityscapes picture of 1024 x 2048 and 19 classes)", ".npy",
                   lambda prediction, palette: prediction.probabilities.astype(np.float16)),
    "cityscapes-labelids": Kind("Cityscapes' label ids 7 to 33 in place of 0 to 18, for its test server (8-bit grey "
                                "PNG)", ".png", lambda prediction, palette: LABEL_IDS[prediction.ids],
                                tuple(class_names.CITYSCAPES)),
    "ade20k": Kind("ids + 1 as in ADE20K's annotations, for its test server (8-bit grey PNG)", ".png",
                   lambda prediction, palette: ADE20K_VALUES[prediction.ids], tuple(class_names.ADE20K)),
}


def chosen(values: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds that --save's values name, each of which may join several with commas, in KINDS' order.

    Raises UserError for an unknown kind, or where none is named.
    """
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            raise UserError(unknown("kind of result", name, KINDS))
    if not names:
        raise UserError(f"--save names nothing; choices: {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)


def require_classes(kinds: Sequence[str], dataset: "Dataset") -> None:
    """Raise UserError where a kind of result is for the classes of another data set than the model's."""
    for name in kinds:
        wanted, found = KINDS[name].classes, tuple(dataset.classes)
        if wanted is None or wanted == found:
            continue
        pairs = zip((*wanted, "none"), (*found, "none"))
        index, (there, here) = next((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(f"--save {name} is for models of its {len(wanted)} classes, and this one has "
                        f"{len(found)} of {dataset.name}; class {index} is {there!r} there and {here!r} here")


def misnamed(names: Iterable[PurePath]) -> list[str]:
    """Return the results' names by which Cityscapes' test server would find none, or more than one, for a picture."""
    seen: dict[str, int] = {}
    matches = [(str(name), CITYSCAPES_NAME.fullmatch(name.name)) for name in names]
    for _, match in matches:
        if match:
            seen[match[1]] = seen.get(match[1], 0) + 1
    return [name for name, match in matches if not match or seen[match[1]] > 1]


def save(array: np.ndarray, path: Path) -> None:
    """Write a result's array as the suffix of `path` says, .png or .npy; raises UserError where it cannot be written.

    A reader sees the old file or the whole new one, never a part.
    """
    if path.suffix == ".png":
        image_files.save(array, path)
        return
    # np.save appends its suffix to any other.
    with image_files.replacing(path, suffix=".npy") as temporary:
        np.save(temporary, array)
