"""Labels that store colors: the same ids everywhere, and unknown colors that are named."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.config.sections import Data
from kseg.datasets import checks, diagnosis, prepare, raw_labels, registry
from kseg.errors import DataError
from kseg.evaluation import evaluator
from kseg.input_pipeline import batching
from tests.helpers.small_sets import config, write

CLASSES = "#804080 road\n0,0,0 sky\n250,170,30 car\n#00005a ignore\n"
COLORS = np.array([(128, 64, 128), (0, 0, 0), (250, 170, 30), (0, 0, 90)], np.uint8)
IDS = np.array([0, 1, 2, 255], np.uint8)


def silent(text):
    pass


def colored(directory, count=2, classes=CLASSES, seed=0):
    """Write a set with labels in colors, and return its config and the true ids (N, 8, 9)."""
    chosen = np.random.default_rng(seed).integers(4, size=(count, 8, 9))
    for number, label in enumerate(chosen):
        write(directory / f"train/images/e{number}.png", np.full((8, 9, 3), number, np.uint8))
        write(directory / f"train/labels/e{number}.png", COLORS[label])
    (directory / "classes.txt").write_text(classes, encoding="utf-8")
    return Data(name="folder", directory=str(directory), train_split="train"), IDS[chosen]


def read_ids(data):
    split = registry.open_split(data, "train")
    return np.stack([batching.read_example(split, tf.constant(index, tf.int64))[1] for index in range(2)])


def test_every_reader_sees_the_same_ids(tmp_path):
    data, ids = colored(tmp_path / "set")
    np.testing.assert_array_equal(read_ids(data), ids)
    split = registry.open_split(data, "train")
    # The padding around an 8x9 label is ignored.
    batch = next(iter(batching.train_batches(split, config(data, crop=(8, 9)))))
    for index, label in zip(batch["index"].numpy(), batch["label"].numpy(), strict=True):
        np.testing.assert_array_equal(label, ids[index])
    np.testing.assert_array_equal(next(iter(batching.eval_examples(split)))["label"], ids[0])
    np.testing.assert_array_equal(evaluator.predict_example(lambda image: None, split, 1)[1], ids[1])
    result = checks.check_dataset(data, report=silent)["train"]
    assert result["class_pixels"].tolist() == [int((ids == index).sum()) for index in range(3)]
    assert result["void_share"] == (ids == 255).mean()


@pytest.mark.parametrize("fast", [False, True])
def test_prepared_sets_store_ids(tmp_path, fast):
    data, ids = colored(tmp_path / "set")
    prepare.prepare_dataset(
        Data(name="folder", directory=str(tmp_path / "out")), tmp_path / "set", fast=fast, report=silent
    )
    prepared = Data(name="folder", directory=str(tmp_path / "out"))
    np.testing.assert_array_equal(read_ids(prepared), ids)
    source, stored = registry.find_dataset(data), registry.find_dataset(prepared)
    assert (stored.classes, stored.palette, stored.label_table) == (source.classes, source.palette, source.label_table)
    assert not stored.label_colors


def test_unknown_colors_are_named_with_place_and_count(tmp_path):
    data, _ = colored(tmp_path)
    path = tmp_path / "train/labels/e1.png"
    pixels = np.array(Image.open(path))
    pixels[3, 5] = pixels[4, 0] = pixels[7, 8] = (1, 2, 3)
    write(path, pixels)
    with pytest.raises(DataError) as error:
        checks.check_dataset(data, report=silent)
    message = str(error.value)
    assert f"{path}: color #010203 (3 pixels, first at column 5, row 3)" in message and "`#010203 NAME`" in message
    split = registry.open_split(data, "train")
    with pytest.raises(DataError, match="#010203"):
        diagnosis.decode_example(split, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="outside the table"):
        batching.read_example(split, tf.constant(1, tf.int64))
    colored(tmp_path, classes=CLASSES + "* ignore\n")
    write(path, pixels)
    assert read_ids(data)[1, 3, 5] == 255
    checks.check_dataset(data, report=silent)


def label_file(path, image, **options):
    image.save(path, **options)
    return tf.constant(path.read_bytes())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_all_kinds_of_png_have_the_colors_of_viewers(tmp_path, mode):
    gray = np.random.default_rng(1).integers(2, size=(5, 7)) * 255
    image = Image.fromarray(np.repeat(gray[..., None], 3, 2).astype(np.uint8))
    data = label_file(tmp_path / "label.png", image.convert(mode))
    (tmp_path / "classes.txt").write_text("#ffffff object\n#000000 background\n")
    dataset = registry.read_classes(tmp_path)
    np.testing.assert_array_equal(diagnosis.read_label(dataset, "label.png", data), gray == 0)
    # The same in the graph of an input pipeline.
    decode = tf.function(lambda data: raw_labels.decode_raw_label(dataset, data, in_python=True))
    np.testing.assert_array_equal(decode(data), gray == 0)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "classes.txt").write_text("#ffffff object\n#000000 background\n")
    dataset = registry.read_classes(tmp_path)
    for name, image, fault in (
        ("a.jpg", Image.new("RGB", (3, 3)), "not a PNG"),
        ("b.png", Image.new("I;16", (3, 3)), "16-bit gray PNG"),
        ("c.bmp", Image.new("RGB", (3, 3)), "not a PNG"),
    ):
        with pytest.raises(DataError, match=f"{name}: {fault}"):
            diagnosis.read_label(dataset, name, label_file(tmp_path / name, image))
    write(tmp_path / "d.png", np.zeros((30, 30, 3), np.uint8))
    for length, fault in ((0, "not a PNG"), (20, "not a PNG"), (60, "damaged PNG")):
        with pytest.raises(DataError, match=f"d.png: {fault}"):
            diagnosis.read_label(dataset, "d.png", tf.constant((tmp_path / "d.png").read_bytes()[:length]))


def test_gray_ids_with_a_list_of_colors_are_not_taken_for_colors(tmp_path):
    data, _ = colored(tmp_path)
    for number in range(2):
        write(tmp_path / f"train/labels/e{number}.png", np.full((8, 9), 2, np.uint8))
    with pytest.raises(DataError, match="color #020202 .72 pixels.*behind the names"):
        checks.check_dataset(data, report=silent)


def test_colored_labels_with_a_list_of_values_are_answered_with_the_grammar(tmp_path):
    data, _ = colored(tmp_path, classes="road #804080\nsky\n")
    with pytest.raises(DataError, match="8-bit RGB PNG; .*`#804080 road`"):
        checks.check_dataset(data, report=silent)
