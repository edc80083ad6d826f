"""Prepared sets of any format and location give the examples of their source."""

import numpy as np
import pytest
import tensorflow as tf

from kseg.config.sections import Data
from kseg.datasets import prepared, registry
from kseg.datasets.tfrecord import read_record, record_offsets
from kseg.errors import DataError
from kseg.input_pipeline import batching
from tests.helpers import original_archives
from tests.helpers.prepared_sets import contents, run
from tests.helpers.shared_files import VOC2012, needs_voc2012
from tests.helpers.small_sets import config, folder
from tests.helpers.splits import train_batches

RANDOM = np.random.default_rng(0)
LABELS = {
    "train": [RANDOM.integers(0, 3, (9, 11)).astype(np.uint8) for _ in range(6)],
    "val": [np.ones((1, 3), np.uint8), np.zeros((30, 7), np.uint8)],
}


def require_same_batches(first, second):
    pairs = list(zip(train_batches(config(first)).take(4), train_batches(config(second)).take(4)))
    assert len(pairs) == 4
    for batch, expected in pairs:
        assert all(np.array_equal(batch[key], expected[key]) for key in ("image", "label", "index"))


def test_pixels_equal_the_decoded_files(tmp_path):
    source = folder(tmp_path / "source", LABELS)
    data, lines = run("folder", tmp_path / "source", tmp_path / "out", fast=True)
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.p?m")) == [
        f"folder_pixels/{prepared.VERSION}/{split}/{number:08d}.{kind}"
        for split, labels in LABELS.items()
        for number in range(len(labels))
        for kind in ("pgm", "ppm")
    ]
    # Slightly more than four bytes per pixel: three colors and an id.
    assert any(line.startswith("needs 3.") and "e-06 GB" in line for line in lines)
    for split in LABELS:
        assert registry.split_names(data) == ("train", "val")
        found, files = contents(data, split), contents(source, split)
        assert list(found) == list(files)
        for name, (image, label) in files.items():
            assert np.array_equal(found[name][0], image) and np.array_equal(found[name][1], label)
    require_same_batches(data, source)


def test_pixels_take_precedence_over_records(tmp_path):
    folder(tmp_path / "source", LABELS)
    data, _ = run("folder", tmp_path / "source", tmp_path / "out")
    records = registry.open_split(data, "train")
    assert run("folder", tmp_path / "source", tmp_path / "out", fast=True)[0] == data
    pixels = registry.open_split(data, "train")
    assert [name.rsplit("/")[-1] for name in pixels.names] == [name.rsplit("/")[-1] for name in records.names]
    assert pixels.read(tf.constant(0, tf.int64))[0].numpy().startswith(b"P6\n")
    assert not records.read(tf.constant(0, tf.int64))[0].numpy().startswith(b"P6\n")


@pytest.mark.parametrize("form", ["zip", "tree"])
def test_pixels_of_cityscapes(tmp_path, form):
    pairs = {
        split: [
            (original_archives.noise(number), RANDOM.integers(0, 34, (8, 12)).astype(np.uint8))
            for number in range(len(original_archives.CITYSCAPES[split]))
        ]
        for split in ("train", "val")
    }
    images, labels = original_archives.cityscapes(pairs)
    if form == "zip":
        original_archives.write_zip(tmp_path / "leftImg8bit_trainvaltest.zip", images)
        original_archives.write_zip(tmp_path / "gtFine_trainvaltest.zip", labels)
    else:
        original_archives.write_tree(tmp_path, images | labels)
    data, _ = run("cityscapes", tmp_path, tmp_path / "out", ("train", "val"), fast=True)
    for split, examples in pairs.items():
        found = contents(data, split)
        assert len(found) == len(examples)
        for number, (image, label) in enumerate(examples):
            name = f"{original_archives.CITYSCAPES[split][number]}_{number:06d}_000019_leftImg8bit.png"
            assert np.array_equal(found[name][0], image) and np.array_equal(found[name][1], label)


@needs_voc2012
def test_pixels_of_voc2012_hold_ids(tmp_path):
    data, _ = run("voc2012", VOC2012, tmp_path / "out", ("val",), fast=True)
    source = Data(name="voc2012", directory=str(VOC2012))
    found, files = contents(data, "val"), contents(source, "val")
    assert found.keys() == files.keys() and len(found) == 130
    for name, (image, label) in list(files.items())[::10]:
        assert np.array_equal(found[name][0], image) and np.array_equal(found[name][1], label)


def copy(source, target):
    for path in source.rglob("*"):
        if path.is_file():
            address = f"{target}/{path.relative_to(source).as_posix()}"
            tf.io.gfile.makedirs(address.rsplit("/", 1)[0])
            with tf.io.gfile.GFile(address, "wb") as file:
                file.write(path.read_bytes())


@pytest.mark.parametrize("fast", [False, True])
def test_prepared_set_is_read_from_an_address(tmp_path, fast):
    """ram:// is an address that only TensorFlow's file system can read."""
    folder(tmp_path / "source", LABELS)
    local, _ = run("folder", tmp_path / "source", tmp_path / "out", fast=fast)
    address = f"ram://bucket/{tmp_path.name}"
    copy(tmp_path / "out", address)
    remote = Data(name="folder", directory=address)
    assert registry.find_dataset(remote) == registry.find_dataset(local)
    assert registry.open_split(remote, "train").names[0].startswith("ram://")
    require_same_batches(remote, local)
    assert len(list(batching.eval_examples(registry.open_split(remote, "val")))) == 2


@pytest.mark.parametrize(
    "address, message",
    [
        ("ram://nowhere", "camvid: no directory ram://nowhere. Get CamVid"),
        ("ram://there", "ram://there holds no prepared camvid"),
        ("unheard://of", "camvid: no directory unheard://of"),
    ],
)
def test_address_without_a_prepared_set(address, message):
    tf.io.gfile.makedirs("ram://there")
    with pytest.raises(DataError, match=message):
        registry.open_split(Data(name="camvid", directory=address), "train")


def test_records_are_read_in_any_order(tmp_path):
    values = [bytes([number]) * length for number, length in enumerate((0, 1, 300_000, 7))]
    path = str(tmp_path / "a.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for value in values:
            writer.write(value)
    offsets = list(record_offsets(path))
    for number in (2, 0, 3, 1):
        assert read_record(tf.constant(path), tf.constant(offsets[number], tf.int64)).numpy() == values[number]


def test_changed_byte_of_a_record_is_detected(tmp_path):
    source = folder(tmp_path / "source", LABELS)
    data, _ = run("folder", tmp_path / "source", tmp_path / "out")
    [path] = (tmp_path / "out").rglob("*train.tfrecord*")
    stored = bytearray(path.read_bytes())
    offset = list(record_offsets(str(path)))[2]
    stored[offset + 60] ^= 1
    path.write_bytes(stored)
    with pytest.raises(DataError, match="e02.png or its label .* cannot be read: .*corrupted record"):
        contents(data, "train")
    assert len(contents(source, "train")) == 6
