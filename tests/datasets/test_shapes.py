"""Tests of the synthetic data set: what is drawn, that it is always the same, and how it comes to lie on the disk."""

import hashlib
import io
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.config import sections
from kseg.datasets import shapes
from kseg.datasets.tfrecord import read_record
from kseg.errors import DataError

KEYS = ("image", "segmentation_mask")
VERSION = str(shapes.Shapes.VERSION)


def examples(directory: Path, split: str) -> list[dict[str, bytes]]:
    """Return what is stored of a split, in order."""
    found = shapes.prepare(directory, split)
    features = {key: tf.io.FixedLenFeature([], tf.string) for key in (*KEYS, "name")}
    return [{key: value.numpy() for key, value in tf.io.parse_single_example(
        read_record(tf.constant(found.files[shard]), tf.constant(offset, tf.int64)), features).items()}
        for shard, offset in zip(found.shards, found.offsets, strict=True)]


def pixels(example: dict[str, bytes], key: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(example[key])))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "made" / "shapes"
    shapes.prepare(root, "train")
    return root


@pytest.fixture(scope="module")
def labels(directory: Path) -> dict[str, np.ndarray]:
    return {split: np.stack([pixels(example, "segmentation_mask") for example in examples(directory, split)])
            for split in shapes.COUNTS}


def test_classes_and_colours_match():
    assert shapes.CLASSES[0] == "background" and len(shapes.CLASSES) == len(shapes.OUTLINES) + 1 == 7
    assert len(shapes.TEXTURES) == len(shapes.OUTLINES)
    assert len(set(shapes.CLASSES)) == len(set(shapes.PALETTE)) == len(shapes.PALETTE) == len(shapes.CLASSES)
    assert all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in shapes.PALETTE)


@pytest.mark.parametrize(("split", "count"), [("train", 64), ("val", 16)])
def test_examples_are_png_files_in_order(directory: Path, split: str, count: int):
    source = examples(directory, split)
    assert len(source) == count
    assert [source[index]["name"] for index in range(count)] == [f"{split}/{i:05d}".encode() for i in range(count)]
    for index in (0, 7, count - 1):
        example = source[index]
        assert all(type(example[key]) is bytes and example[key].startswith(b"\x89PNG") for key in KEYS)
        for key, drawn, shape in zip(KEYS, shapes.draw(split, index), ((128, 256, 3), (128, 256))):
            decoded = pixels(example, key)
            assert decoded.shape == shape and decoded.dtype == drawn.dtype == np.uint8
            np.testing.assert_array_equal(decoded, drawn)


def test_pictures_differ_from_one_another(directory: Path):
    digests = {hashlib.sha256(pixels(example, "image").tobytes()).hexdigest()
               for split in shapes.COUNTS for example in examples(directory, split)}
    assert len(digests) == 80


def test_another_process_draws_the_same(directory: Path, tmp_path: Path):
    """Another process, so that nothing left over in this one (hash seeds, random state) can help."""
    program = "import pathlib, sys; from kseg.builders import shapes; shapes.prepare(pathlib.Path(sys.argv[1]), 'val')"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True,
                          cwd=Path(shapes.__file__).parents[2])
    assert done.stdout == f"drawing the synthetic set shapes into {tmp_path}\n"
    assert "%|" not in done.stderr, "a progress bar"
    for split in shapes.COUNTS:
        assert examples(tmp_path, split) == examples(directory, split)


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_hold_every_class_often(labels: dict[str, np.ndarray], split: str):
    values, counts = np.unique(labels[split], return_counts=True)
    assert values.tolist() == [*range(len(shapes.CLASSES)), sections.IGNORED]
    share = dict(zip(values.tolist(), counts / labels[split].size))
    assert 0.5 < share[0] < 0.8
    assert all(0.02 < share[kind] < 0.12 for kind in range(1, len(shapes.CLASSES)))
    assert 0.02 < share[sections.IGNORED] < 0.12
    for kind in range(1, len(shapes.CLASSES)):
        assert np.mean((labels[split] == kind).sum(axis=(1, 2)) >= 30) > 0.8


def test_an_ignored_band_parts_all_regions(labels: dict[str, np.ndarray]):
    every = np.concatenate([labels["train"], labels["val"]]).astype(int)
    for first, second in ((every[:, 1:], every[:, :-1]), (every[:, :, 1:], every[:, :, :-1])):
        touching = (first != second) & (first != sections.IGNORED) & (second != sections.IGNORED)
        assert not touching.any()


def test_the_band_is_two_pixels_wide_and_follows_what_is_visible():
    owners = np.zeros((6, 8), int)
    owners[:, 3:] = 1
    owners[3:, 3:] = 2
    expected = np.zeros((6, 8), bool)
    expected[:, 2:4] = expected[2:4, 3:] = True
    np.testing.assert_array_equal(shapes._outlines(owners), expected)


@pytest.mark.parametrize(("outline", "inside", "outside"), [
    (shapes._disc, (0.6, 0.6), (0.8, 0.8)), (shapes._square, (0.7, 0.7), (0.9, 0.0)),
    (shapes._triangle, (0.0, 0.5), (0.6, -0.6)), (shapes._star, (0.9, 0.0), (-0.9, 0.0)),
    (shapes._ring, (0.0, 0.7), (0.0, 0.2)), (shapes._cross, (0.9, 0.1), (0.6, 0.6))])
def test_outlines_are_negative_inside(outline, inside: tuple[float, float], outside: tuple[float, float]):
    assert outline(*map(np.array, inside)) < 0 < outline(*map(np.array, outside))


def test_drawing_leaves_random_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blank = np.zeros((128, 256, 3), np.uint8), np.zeros((128, 256), np.uint8)
    monkeypatch.setattr(shapes, "draw", lambda split, index: blank)
    random.seed(5)
    expected = random.random()
    random.seed(5)
    shapes.prepare(tmp_path, "train")
    assert random.random() == expected


def test_unfinished_drawings_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        if split == "val":
            raise KeyboardInterrupt
        return pictures(split, index)

    pictures = shapes.draw
    monkeypatch.setattr(shapes, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        shapes.prepare(tmp_path, "train")
    assert not list(tmp_path.rglob("*tfrecord*"))
    monkeypatch.undo()
    assert len(examples(tmp_path, "train")) == 64


def test_the_slower_of_two_takes_what_the_faster_drew(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def overtaken(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        target = tmp_path / "shapes" / VERSION
        if not target.exists():
            target.symlink_to(directory / "shapes" / VERSION, target_is_directory=True)
        return blank

    blank = np.zeros((128, 256, 3), np.uint8), np.zeros((128, 256), np.uint8)
    monkeypatch.setattr(shapes, "draw", overtaken)
    assert examples(tmp_path, "val") == examples(directory, "val")
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == [VERSION]


def test_errors_name_what_is_wrong(tmp_path: Path, directory: Path):
    with pytest.raises(DataError, match="'trian'.*train"):
        shapes.prepare(directory, "trian")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match=f"into {blocked / 'shapes'}: Not a directory"):
        shapes.prepare(blocked / "shapes", "train")


def test_a_damaged_set_says_what_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blank = np.zeros((128, 256, 3), np.uint8), np.zeros((128, 256), np.uint8)
    monkeypatch.setattr(shapes, "draw", lambda split, index: blank)
    shapes.prepare(tmp_path, "train")
    next(tmp_path.rglob("*train*")).unlink()
    assert len(examples(tmp_path, "val")) == 16
    with pytest.raises(DataError, match=f"{tmp_path / 'shapes' / VERSION} is damaged; delete"):
        shapes.prepare(tmp_path, "train")
