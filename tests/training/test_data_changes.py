"""Changes of the data between two starts of a run are told with numbers."""

import json

import numpy as np
import pytest

from kseg.datasets import registry
from kseg.training import data_changes
from tests.helpers.small_sets import example, folder

LABEL = np.zeros((3, 4))
NONE, BEST = {"step": 0, "mIoU": -1.0}, {"step": 8, "mIoU": 0.5}


def start(data, workdir, best=BEST, resuming=True):
    lines = []
    splits = [registry.open_split(data, name) for name in ("train", "val")]
    data_changes.report_changes(workdir, splits, best, resuming, lines.append)
    return lines


@pytest.fixture
def data(tmp_path):
    return folder(tmp_path / "data", {"train": [LABEL] * 3, "val": [LABEL] * 2})


def test_unchanged_data_are_not_mentioned(data, tmp_path):
    assert start(data, tmp_path) == start(data, tmp_path) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_added_removed_and_changed_files_are_counted(data, tmp_path, split):
    start(data, tmp_path)
    directory = tmp_path / "data"
    for index in (7, 8):
        example(directory, split, f"e{index:02d}", LABEL)
    for part in ("images", "labels"):
        (directory / split / part / "e00.png").unlink()
    example(directory, split, "e01", np.arange(12).reshape(3, 4) % 3)
    [line] = start(data, tmp_path)
    assert repr(split) in line and "4 files added" in line and "2 files removed" in line
    assert "1 file of another size" in line and f"{split}/labels/e01.png" in line
    assert ("best.json" in line and "50.00 at step 8" in line) == (split == "val")
    # The change is told once.
    assert start(data, tmp_path) == []


def test_nothing_is_said_before_the_first_step_and_without_a_best_validation(data, tmp_path):
    start(data, tmp_path)
    example(tmp_path / "data", "val", "e05", LABEL)
    assert start(data, tmp_path, resuming=False) == []
    example(tmp_path / "data", "val", "e06", LABEL)
    [line] = start(data, tmp_path, NONE)
    assert "2 files added" in line and "best.json" not in line


def test_moved_data_are_unchanged(data, tmp_path):
    start(data, tmp_path)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert start(type(data)(name="folder", directory=str(tmp_path / "elsewhere")), tmp_path) == []


def test_another_form_of_storage_is_said(data):
    before = data_changes.describe(registry.open_split(data, "val"))
    now = {"form": "records", "files": dict.fromkeys(["a", "b"])}
    line = data_changes.difference(before, now)
    assert "read from files" in line and "records" in line


@pytest.mark.parametrize("text", ["", "3", "[]x", '{"val": 3}', '{"val": {"form": "files"}}'])
def test_a_damaged_list_is_said_and_written_again(data, tmp_path, text):
    (tmp_path / data_changes.FILE).write_text(text)
    [line] = start(data, tmp_path)
    assert data_changes.FILE in line
    assert json.loads((tmp_path / data_changes.FILE).read_text()).keys() == {"train", "val"}
