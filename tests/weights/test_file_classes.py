"""The classes of a weight file are compared with those of the dataset."""

import json

import numpy as np
import pytest

from kseg.weights.file_classes import order_note, stored_classes
from tests.helpers.torch_writing import FakeTensor, Stored, write_zip

LAYERS = ["decode_head.conv_seg"]


def checkpoint(path, meta):
    tensor = FakeTensor(Stored(np.ones(2, "f4"), key="0"), 0, (2,), (1,))
    return write_zip(path, {"meta": meta, "state_dict": {"a": tensor}})


@pytest.mark.parametrize(
    "meta", [{"CLASSES": ("sky", "Road"), "PALETTE": [[1, 2, 3]]}, {"dataset_meta": {"classes": ["sky", "Road"]}}]
)
def test_classes_of_a_checkpoint(tmp_path, meta):
    path = checkpoint(tmp_path / "a.pth", meta)
    assert stored_classes(path) == ("sky", "Road")
    assert order_note(path, ("Sky", "road"), LAYERS) == "" and order_note(path, ("sky", "road", "car"), LAYERS) == ""
    note = order_note(path, ("road", "sky"), LAYERS)
    assert note.endswith("init.skip=decode_head.conv_seg.* draws it anew")
    assert order_note(path, ("road", "sky"), []) == ""
    assert "the same classes in another order: 0 is 'sky' there and 'road' here" in note
    assert "other classes: 1 is 'Road' there and 'car' here" in order_note(path, ("sky", "car"), LAYERS)


def test_classes_of_a_working_directory(tmp_path):
    path = tmp_path / "best.weights.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    assert stored_classes(path) == ()
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["sky", "road"]}))
    assert stored_classes(path) == ("sky", "road")
    for text in ("{", "[]", '{"classes": 3}', '{"classes": [1]}'):
        (tmp_path / "dataset.json").write_text(text)
        assert stored_classes(path) == ()


@pytest.mark.parametrize("meta", [None, 3, {}, {"CLASSES": 3}, {"CLASSES": None, "dataset_meta": [1]}])
def test_files_without_classes(tmp_path, meta):
    assert stored_classes(checkpoint(tmp_path / "a.pth", meta)) == ()
