"""Splits without a labeled pixel are refused, and the search reads as few labels as possible."""

import dataclasses

import numpy as np
import pytest

from kseg.config.sections import Data
from kseg.datasets import diagnosis, labeled_pixels, registry
from kseg.errors import DataError
from tests.helpers.small_sets import folder

IGNORED = np.full((3, 4), 255)


def open_split(data, name="train"):
    return registry.open_split(data, name)


@pytest.mark.parametrize(
    ("classes", "labels", "values"),
    [
        ("sky\nground\n", [IGNORED] * 3, "255"),
        # A classes.txt that ignores a value of its own.
        ("0 ignore\n1 sky\n2 ground\n", [np.zeros((3, 4)), IGNORED], "0, 255"),
        ("0 ignore\n7 ignore\n1 sky\n2 ground\n", [np.full((3, 4), 7)], "7"),
    ],
)
def test_a_split_without_labeled_pixels_is_refused(tmp_path, classes, labels, values):
    data = folder(tmp_path, {"train": labels, "val": [np.ones((3, 4))]}, classes)
    with pytest.raises(DataError) as caught:
        labeled_pixels.require_labeled_pixels(open_split(data))
    assert "'train'" in str(caught.value) and f" {values}." in str(caught.value) and "e00.png" in str(caught.value)
    labeled_pixels.require_labeled_pixels(open_split(data, "val"))


def test_one_pixel_of_the_last_label_is_enough(tmp_path):
    last = IGNORED.copy()
    last[2, 3] = 1
    data = folder(tmp_path, {"train": [IGNORED, IGNORED, last]})
    labeled_pixels.require_labeled_pixels(open_split(data))


def test_the_search_ends_at_the_first_labeled_pixel(tmp_path, monkeypatch):
    data = folder(tmp_path, {"train": [IGNORED, np.zeros((3, 4)), IGNORED]})
    read, names = diagnosis.read_label, []
    monkeypatch.setattr(
        diagnosis, "read_label", lambda dataset, name, content: names.append(name) or read(dataset, name, content)
    )
    labeled_pixels.require_labeled_pixels(open_split(data))
    assert len(names) == 2


@pytest.mark.parametrize("others", [[], [IGNORED]])
def test_unreadable_labels_are_left_to_training(tmp_path, others):
    data = folder(tmp_path, {"train": [IGNORED, *others]})
    (tmp_path / "train" / "labels" / "e00.png").write_bytes(b"not a picture")
    if others:
        with pytest.raises(DataError, match="no labeled pixel"):
            labeled_pixels.require_labeled_pixels(open_split(data))
    else:
        labeled_pixels.require_labeled_pixels(open_split(data))


def test_undefined_values_are_left_to_training(tmp_path):
    labeled_pixels.require_labeled_pixels(open_split(folder(tmp_path, {"train": [np.full((3, 4), 77)]})))


def test_a_drawn_set_has_labeled_pixels(tmp_path):
    split = open_split(Data(name="shapes", directory=str(tmp_path)), "val")
    labeled_pixels.require_labeled_pixels(dataclasses.replace(split, names=split.names[:1]))
