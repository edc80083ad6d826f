"""Define the kinds of results that `kseg.predict --save` writes."""

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

# Cityscapes' evaluation (evalPixelLevelSemanticLabeling.py of cityscapesScripts) finds a result by the start of its
# name, which must be unique; the rest of the name is arbitrary.
CITYSCAPES_NAME = re.compile(r"([^_]+_\d{6}_\d{6}).*\.png")


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes:
        image: RGB image, uint8 of shape (H, W, 3).
        ids: Class ids, uint8 of shape (H, W).
        probabilities: Class probabilities, floating point of shape (H, W, C); None unless they are requested.
    """

    image: np.ndarray
    ids: np.ndarray
    probabilities: np.ndarray | None = None


class Kind(NamedTuple):
    """A kind of result.

    Attributes:
        description: Text for --help.
        suffix: Suffix of its files, .png or .npy.
        array: Maps (prediction, palette) to the array that a file contains: uint8 for .png, any type for .npy.
        classes: Class names that the model must have, in this order; None for any.
        is_video: Whether the result of a video is one video; otherwise it is one file per frame.
        needs_probabilities: Whether `array` reads the class probabilities, which are computed only then.
    """

    description: str
    suffix: str
    array: Callable[[Prediction, Sequence[tuple[int, int, int]]], np.ndarray]
    classes: tuple[str, ...] | None = None
    is_video: bool = False
    needs_probabilities: bool = False


def _lookup_table(values: Iterable[int]) -> np.ndarray:
    """Return the uint8 (256,) table from class id to value; it has 0 for ids that no model predicts."""
    table = np.zeros(256, np.uint8)
    values = list(values)
    table[: len(values)] = values
    return table


LABEL_IDS = _lookup_table(class_names.CITYSCAPES_LABEL_IDS)
# ADE20K's annotations use 0 for pixels outside the 150 classes.
ADE20K_VALUES = _lookup_table(range(1, len(class_names.ADE20K) + 1))

KINDS = {
    "ids": Kind("class ids (8-bit grayscale PNG)", ".png", lambda prediction, palette: prediction.ids),
    "overlay": Kind(
        "the image blended with the class colors (PNG; an .mp4 for a video)",
        ".png",
        lambda prediction, palette: drawing.overlay(prediction.image, prediction.ids, palette),
        is_video=True,
    ),
    "scores": Kind(
        "the probability of each class (NumPy .npy, float16 of height x width x classes: 80 MB for a "
        "Cityscapes image of 1024 x 2048 and 19 classes)",
        ".npy",
        lambda prediction, palette: prediction.probabilities.astype(np.float16),
        needs_probabilities=True,
    ),
    "cityscapes-labelids": Kind(
        "Cityscapes' label ids 7 to 33 instead of class ids 0 to 18, for its test server (8-bit grayscale PNG)",
        ".png",
        lambda prediction, palette: LABEL_IDS[prediction.ids],
        tuple(class_names.CITYSCAPES),
    ),
    "ade20k": Kind(
        "class ids + 1 as in ADE20K's annotations, for its test server (8-bit grayscale PNG)",
        ".png",
        lambda prediction, palette: ADE20K_VALUES[prediction.ids],
        tuple(class_names.ADE20K),
    ),
}


def parse_kinds(values: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds in the values of --save, in the order of KINDS.

    Args:
        values: Names of kinds, each value one or several joined by commas.

    Raises:
        UserError: a kind is unknown, or no kind is given.
    """
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            raise UserError(unknown("kind of result", name, KINDS))
    if not names:
        raise UserError(f"--save is empty; choices: {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)


def need_probabilities(kinds: Sequence[str]) -> bool:
    """Return whether one of some names of KINDS is made from class probabilities."""
    return any(KINDS[kind].needs_probabilities for kind in kinds)


def require_classes(kinds: Sequence[str], dataset: "Dataset") -> None:
    """Raise UserError if a kind of result requires other classes than the model's.

    Args:
        kinds: Names of KINDS.
        dataset: The record of the dataset that the model was trained on.
    """
    for kind in kinds:
        required, actual = KINDS[kind].classes, tuple(dataset.classes)
        if required is None or required == actual:
            continue
        pairs = zip((*required, "none"), (*actual, "none"))
        index, (expected, given) = next((index, pair) for index, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(
            f"--save {kind} requires a model of its {len(required)} classes, but this one has "
            f"{len(actual)} classes of {dataset.name}; class {index} must be {expected!r}, not {given!r}"
        )


def ambiguous_names(names: Iterable[PurePath]) -> list[str]:
    """Return the result names that Cityscapes' test server cannot match to exactly one image."""
    counts: dict[str, int] = {}
    matches = [(str(name), CITYSCAPES_NAME.fullmatch(name.name)) for name in names]
    for _, match in matches:
        if match:
            counts[match[1]] = counts.get(match[1], 0) + 1
    return [name for name, match in matches if not match or counts[match[1]] > 1]


def save_result(array: np.ndarray, path: Path) -> None:
    """Write a result atomically, as .png or .npy according to the suffix of `path`.

    Raises:
        UserError: the file cannot be written.
    """
    if path.suffix == ".png":
        image_files.save_image(array, path)
        return
    # np.save appends .npy to a path of another suffix.
    with image_files.replacing_file(path, suffix=".npy") as temporary:
        np.save(temporary, array)
