"""The synthetic dataset: its contents, reproducibility, and storage."""

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
    """Return the stored examples of a split, in order."""
    records = shapes.prepare_shapes(directory, split)
    features = {key: tf.io.FixedLenFeature([], tf.string) for key in (*KEYS, "name")}
    return [
        {
            key: value.numpy()
            for key, value in tf.io.parse_single_example(
                read_record(tf.constant(records.files[shard]), tf.constant(offset, tf.int64)), features
            ).items()
        }
        for shard, offset in zip(records.shards, records.offsets, strict=True)
    ]


def pixels(example: dict[str, bytes], key: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(example[key])))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "made" / "shapes"
    shapes.prepare_shapes(root, "train")
    return root


@pytest.fixture(scope="module")
def labels(directory: Path) -> dict[str, np.ndarray]:
    return {
        split: np.stack([pixels(example, "segmentation_mask") for example in examples(directory, split)])
        for split in shapes.COUNTS
    }


def test_classes_and_colors_match():
    assert shapes.CLASSES[0] == "background" and len(shapes.CLASSES) == len(shapes.OUTLINES) + 1 == 7
    assert len(shapes.TEXTURES) == len(shapes.OUTLINES)
    assert len(set(shapes.CLASSES)) == len(set(shapes.PALETTE)) == len(shapes.PALETTE) == len(shapes.CLASSES)
    assert all(len(color) == 3 and all(0 <= value <= 255 for value in color) for color in shapes.PALETTE)


@pytest.mark.parametrize(("split", "count"), [("train", 64), ("val", 16)])
def test_examples_are_png_files_in_order(directory: Path, split: str, count: int):
    source = examples(directory, split)
    assert len(source) == count
    assert [source[index]["name"] for index in range(count)] == [f"{split}/{i:05d}".encode() for i in range(count)]
    for index in (0, 7, count - 1):
        example = source[index]
        assert all(type(example[key]) is bytes and example[key].startswith(b"\x89PNG") for key in KEYS)
        for key, drawn, shape in zip(KEYS, shapes.draw_example(split, index), ((128, 256, 3), (128, 256))):
            decoded = pixels(example, key)
            assert decoded.shape == shape and decoded.dtype == drawn.dtype == np.uint8
            np.testing.assert_array_equal(decoded, drawn)


def test_no_figure_exceeds_its_box(monkeypatch):
    """Drawn over the whole image, figures have the same pixels; the last two have pixels far outside an outline."""
    indices = (0, 1112, 1116)
    drawn = [shapes.draw_example("train", index) for index in indices]
    monkeypatch.setattr(shapes, "REACH", 100.0)
    for index, example in zip(indices, drawn, strict=True):
        for actual, expected in zip(example, shapes.draw_example("train", index), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_images_differ_from_each_other(directory: Path):
    digests = {
        hashlib.sha256(pixels(example, "image").tobytes()).hexdigest()
        for split in shapes.COUNTS
        for example in examples(directory, split)
    }
    assert len(digests) == 80


def test_another_process_draws_the_same_images(directory: Path, tmp_path: Path):
    """A separate process shares no hash seed and no random state with this one."""
    program = (
        "import pathlib, sys; from kseg.datasets import shapes; shapes.prepare_shapes(pathlib.Path(sys.argv[1]), 'val')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(shapes.__file__).parents[2],
    )
    assert done.stdout == f"drawing the synthetic set shapes into {tmp_path}\n"
    assert "%|" not in done.stderr, "a progress bar"
    for split in shapes.COUNTS:
        assert examples(tmp_path, split) == examples(directory, split)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_class_is_frequent(labels: dict[str, np.ndarray], split: str):
    values, counts = np.unique(labels[split], return_counts=True)
    assert values.tolist() == [*range(len(shapes.CLASSES)), sections.IGNORED]
    fraction = dict(zip(values.tolist(), counts / labels[split].size))
    assert 0.5 < fraction[0] < 0.8
    assert all(0.02 < fraction[kind] < 0.12 for kind in range(1, len(shapes.CLASSES)))
    assert 0.02 < fraction[sections.IGNORED] < 0.12
    for kind in range(1, len(shapes.CLASSES)):
        assert np.mean((labels[split] == kind).sum(axis=(1, 2)) >= 30) > 0.8


def test_ignored_band_separates_all_regions(labels: dict[str, np.ndarray]):
    stack = np.concatenate([labels["train"], labels["val"]]).astype(int)
    for first, second in ((stack[:, 1:], stack[:, :-1]), (stack[:, :, 1:], stack[:, :, :-1])):
        touching = (first != second) & (first != sections.IGNORED) & (second != sections.IGNORED)
        assert not touching.any()


def test_ignored_band_is_two_pixels_wide_and_follows_visible_outlines():
    owners = np.zeros((6, 8), int)
    owners[:, 3:] = 1
    owners[3:, 3:] = 2
    expected = np.zeros((6, 8), bool)
    expected[:, 2:4] = expected[2:4, 3:] = True
    np.testing.assert_array_equal(shapes._outlines(owners), expected)


@pytest.mark.parametrize(
    ("outline", "inside", "outside"),
    [
        (shapes._disc, (0.6, 0.6), (0.8, 0.8)),
        (shapes._square, (0.7, 0.7), (0.9, 0.0)),
        (shapes._triangle, (0.0, 0.5), (0.6, -0.6)),
        (shapes._star, (0.9, 0.0), (-0.9, 0.0)),
        (shapes._ring, (0.0, 0.7), (0.0, 0.2)),
        (shapes._cross, (0.9, 0.1), (0.6, 0.6)),
    ],
)
def test_outlines_are_negative_inside(outline, inside: tuple[float, float], outside: tuple[float, float]):
    assert outline(*map(np.array, inside)) < 0 < outline(*map(np.array, outside))


def test_drawing_keeps_the_random_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blank = np.zeros((128, 256, 3), np.uint8), np.zeros((128, 256), np.uint8)
    monkeypatch.setattr(shapes, "draw_example", lambda split, index: blank)
    random.seed(5)
    expected = random.random()
    random.seed(5)
    shapes.prepare_shapes(tmp_path, "train")
    assert random.random() == expected


def test_unfinished_drawings_are_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        if split == "val":
            raise KeyboardInterrupt
        return draw_example(split, index)

    draw_example = shapes.draw_example
    monkeypatch.setattr(shapes, "draw_example", fail)
    with pytest.raises(KeyboardInterrupt):
        shapes.prepare_shapes(tmp_path, "train")
    assert not list(tmp_path.rglob("*tfrecord*"))
    monkeypatch.undo()
    assert len(examples(tmp_path, "train")) == 64


def test_slower_of_two_processes_uses_the_images_of_the_faster(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def overtaken(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        target = tmp_path / "shapes" / VERSION
        if not target.exists():
            target.symlink_to(directory / "shapes" / VERSION, target_is_directory=True)
        return blank

    blank = np.zeros((128, 256, 3), np.uint8), np.zeros((128, 256), np.uint8)
    monkeypatch.setattr(shapes, "draw_example", overtaken)
    assert examples(tmp_path, "val") == examples(directory, "val")
    assert [path.name for path in (tmp_path / "shapes").iterdir()] == [VERSION]


def test_errors_name_the_split_and_the_directory(tmp_path: Path, directory: Path):
    with pytest.raises(DataError, match="'trian'.*train"):
        shapes.prepare_shapes(directory, "trian")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match=f"into {blocked / 'shapes'}: Not a directory"):
        shapes.prepare_shapes(blocked / "shapes", "train")


def test_error_of_a_damaged_set_names_the_directory_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blank = np.zeros((128, 256, 3), np.uint8), np.zeros((128, 256), np.uint8)
    monkeypatch.setattr(shapes, "draw_example", lambda split, index: blank)
    shapes.prepare_shapes(tmp_path, "train")
    next(tmp_path.rglob("*train*")).unlink()
    assert len(examples(tmp_path, "val")) == 16
    with pytest.raises(DataError, match=f"{tmp_path / 'shapes' / VERSION} is damaged; delete"):
        shapes.prepare_shapes(tmp_path, "train")
