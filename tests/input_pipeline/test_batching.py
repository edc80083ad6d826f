"""Training and evaluation examples: decoding against Pillow, the training order, padding, and unusable files."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kseg.config import Config
from kseg.config.sections import Augment, Data
from kseg.datasets import registry
from kseg.datasets.diagnosis import decode_example
from kseg.errors import DataError
from kseg.images import decoding
from kseg.input_pipeline import batching
from tests.helpers.small_sets import config, folder, write
from tests.helpers.splits import network_inputs, step_indices, train_batches

RANDOM = np.random.default_rng(5)
LABEL = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
PHOTO = np.rint(
    np.clip(
        128
        + 90 * np.sin(np.mgrid[:61, :83][0] / 7)[..., None] * np.array([1, 0.5, -0.8])
        + 40 * np.cos(np.mgrid[:61, :83][1] / 3)[..., None]
        + RANDOM.normal(0, 12, (61, 83, 3)),
        0,
        255,
    )
).astype(np.uint8)


def encoded(image, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, **options)
    return file.getvalue()


def palette_image(indices):
    """Return a palette image whose luminances differ from its indices."""
    image = Image.new("P", indices.shape[::-1])
    image.putdata(indices.ravel().tolist())
    image.putpalette([250 - value for value in range(250) for _ in range(3)])
    return image


def drain(examples):
    return [{key: value.numpy() for key, value in element.items()} for element in examples]


def train_indices(settings, count):
    return [int(index) for batch in train_batches(settings).take(count) for index in batch["index"]]


@pytest.mark.parametrize(
    "options",
    [{"quality": 95, "subsampling": 0}, {"quality": 85, "subsampling": 2}, {"quality": 60, "progressive": True}],
)
def test_jpeg_differs_from_pillow_by_at_most_one(options):
    stored = encoded(PHOTO, format="JPEG", **options)
    expected = np.array(Image.open(io.BytesIO(stored)).convert("RGB")).astype(int)
    assert np.abs(decoding.decode_image(tf.constant(stored)).numpy() - expected).max() <= 1


@pytest.mark.parametrize(
    "image, form",
    [
        (PHOTO, "PNG"),
        (PHOTO, "BMP"),
        (PHOTO[..., 0], "PNG"),
        (np.dstack([PHOTO, PHOTO[..., :1]]), "PNG"),
        (palette_image(RANDOM.integers(0, 250, (9, 7))), "PNG"),
    ],
)
def test_lossless_images_equal_pillow(image, form):
    stored = encoded(image, format=form)
    assert np.array_equal(decoding.decode_image(tf.constant(stored)), Image.open(io.BytesIO(stored)).convert("RGB"))


def test_gray_jpeg_has_three_channels():
    assert decoding.decode_image(tf.constant(encoded(PHOTO[..., 0], format="JPEG"))).shape == (61, 83, 3)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_label_gives_indices(bits):
    indices = RANDOM.integers(0, min(2**bits, 250), (7, 13))
    stored = tf.constant(encoded(palette_image(indices), format="PNG", bits=bits))
    assert np.array_equal(decoding.decode_label(stored, in_python=True), indices)
    assert np.array_equal(tf.function(lambda data: decoding.decode_label(data, in_python=True))(stored), indices)


def test_gray_label_gives_its_values():
    indices = RANDOM.integers(0, 256, (7, 13)).astype(np.uint8)
    assert np.array_equal(decoding.decode_label(tf.constant(encoded(indices, format="PNG")), in_python=True), indices)


@pytest.mark.parametrize(
    "image, form",
    [
        (PHOTO, "PNG"),
        (Image.new("1", (3, 2)), "PNG"),
        (Image.new("I;16", (3, 2)), "PNG"),
        (Image.new("LA", (3, 2)), "PNG"),
        (Image.new("RGBA", (3, 2)), "PNG"),
        # At this quality, the bytes at the offset of a PNG's color type look like those of a palette PNG.
        (PHOTO[..., 0], "JPEG"),
    ],
)
def test_other_labels_are_refused(image, form):
    with pytest.raises(tf.errors.InvalidArgumentError, match="palette PNG"):
        decoding.decode_label(tf.constant(encoded(image, format=form, quality=90)), in_python=True)


def test_order_is_a_permutation_in_each_epoch(tmp_path):
    settings = config(folder(tmp_path, {"train": [LABEL] * 7}), batch=3)
    order = train_indices(settings, 7)
    epochs = [order[start : start + 7] for start in (0, 7, 14)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order == [index for step in range(7) for index in step_indices(settings, step)]
    other = dataclasses.replace(settings, train=dataclasses.replace(settings.train, seed=1))
    assert sorted(train_indices(other, 7)[:7]) == list(range(7)) and train_indices(other, 7) != order


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_shuffled_index_is_a_permutation_of_each_epoch(count):
    order = [int(batching.shuffled_index(tf.constant(position, tf.int64), count, 0)) for position in range(2 * count)]
    assert sorted(order[:count]) == sorted(order[count:]) == list(range(count))


def test_index_identifies_the_image_in_the_batch(tmp_path):
    settings = config(folder(tmp_path, {"train": [LABEL] * 5}), crop=(2, 3))
    for batch in drain(train_batches(settings).take(3)):
        # All pixels of image i are i.
        assert (batch["image"] == batch["index"][:, None, None, None]).all()
        assert (batch["label"] == LABEL).all()


def test_types_and_padding(tmp_path):
    settings = config(folder(tmp_path, {"train": [LABEL]}), crop=(4, 5), batch=1)
    (batch,) = drain(train_batches(settings).take(1))
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "image": ("uint8", (1, 4, 5, 3)),
        "label": ("uint8", (1, 4, 5)),
        "index": ("int64", (1,)),
        "inside": ("int32", (1, 4)),
    }
    assert batch["label"][0].tolist() == [[0, 1, 2, 255, 255], [2, 1, 255, 255, 255], [255] * 5, [255] * 5]
    assert batch["inside"][0].tolist() == [0, 0, 2, 3]
    inputs = network_inputs(batch, settings).numpy()[0]
    assert (inputs[2:] == 0).all() and (inputs[:, 3:] == 0).all()
    # Black is (0 - mean) / std.
    assert np.allclose(inputs[0, 0], [-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375])


MEAN = (123.675, 116.28, 103.53)


@pytest.mark.parametrize("pad, top, left", [("corner", 0, 0), ("center", 1, 1)])
@pytest.mark.parametrize("color, raw", [("mean", MEAN), ("black", (0, 0, 0))])
def test_position_and_color_of_padding(pad, top, left, color, raw):
    settings = Config(augment=Augment(crop=(5, 6), pad=pad, pad_color=color))
    # 2x3 in 5x6: of the 3 padded rows and columns, the smaller part comes first.
    image, label, inside = batching.finish_example(
        tf.fill((2, 3, 3), 200.0), tf.constant(LABEL), tuple(range(256)), settings.augment
    )
    expected = np.full((5, 6), 255, np.uint8)
    expected[top : top + 2, left : left + 3] = LABEL
    assert np.array_equal(label, expected)
    inputs = network_inputs({"image": image[None], "inside": inside[None]}, settings).numpy()[0]
    shown = inputs * (58.395, 57.12, 57.375) + MEAN
    around = np.ones((5, 6), bool)
    around[top : top + 2, left : left + 3] = False
    assert np.allclose(shown[around], raw, atol=1e-4) and np.allclose(shown[~around], 200, atol=1e-4)


def test_image_of_the_crop_size_is_not_padded():
    settings = Config(augment=Augment(crop=(2, 3), pad="center", pad_color="black"))
    image, label, inside = batching.finish_example(
        tf.fill((2, 3, 3), 200.0), tf.constant(LABEL), tuple(range(256)), settings.augment
    )
    assert np.array_equal(label, LABEL) and (image == 200).numpy().all() and inside.numpy().tolist() == [0, 0, 2, 3]


def test_eval_examples_are_complete_ordered_and_not_resized(tmp_path):
    labels = [np.full((2 + index, 9 - index), index % 3, np.uint8) for index in range(7)]
    settings = config(folder(tmp_path, {"val": labels}))
    examples = drain(batching.eval_examples(registry.open_split(settings.data, "val")))
    assert [int(found["index"]) for found in examples] == list(range(7))
    for index, found in enumerate(examples):
        assert found["image"].dtype == found["label"].dtype == np.uint8
        assert np.array_equal(found["label"], labels[index])
        assert found["image"].shape == (*labels[index].shape, 3) and (found["image"] == index).all()


def test_raw_values_become_train_ids(tmp_path):
    raw = np.array([[0, 255, 7]], np.uint8)
    source = folder(tmp_path, {"val": [raw]}, "0 background\n255 object\n7 ignore\n")
    (found,) = drain(batching.eval_examples(registry.open_split(source, "val")))
    assert found["label"].tolist() == [[0, 1, 255]]
    image, label = decode_example(registry.open_split(source, "val"), 0)
    assert np.array_equal(label, raw) and image.shape == (1, 3, 3)


def palette_with_broken_data():
    stored = bytearray(encoded(palette_image(RANDOM.integers(0, 250, (40, 40))), format="PNG"))
    stored[stored.index(b"IDAT") + 40 : stored.index(b"IEND") - 8] = bytes(20)
    return bytes(stored)


JPEG = encoded(PHOTO[:2, :3], format="JPEG")
FAULTS = {
    "another size": (
        "labels",
        encoded(LABEL[:, :2], format="PNG"),
        r"labels/e01.png is 2x2, its image \S+images/e01.png 3x2",
    ),
    "value outside the table": (
        "labels",
        encoded(LABEL + np.uint8(3), format="PNG"),
        r"labels/e01.png: values 3 \(1 pixel\), 4 \(2 pixels\), 5 \(2 pixels\) .* of folder; "
        r".* 0-2, 255",
    ),
    "one value outside": (
        "labels",
        encoded(np.full((2, 3), 9, np.uint8), format="PNG"),
        r"labels/e01.png: value 9 \(6 pixels\) .* of folder; .* 0-2, 255",
    ),
    "RGB label": ("labels", encoded(PHOTO[:2, :3], format="PNG"), r"labels/e01.png: 8-bit RGB PNG; a label must be"),
    "16-bit label": ("labels", encoded(Image.new("I;16", (3, 2)), format="PNG"), r"labels/e01.png: 16-bit gray PNG"),
    "1-bit label": ("labels", encoded(Image.new("1", (3, 2)), format="PNG"), r"labels/e01.png: 1-bit gray PNG"),
    "JPEG as label": ("labels", encoded(LABEL, format="JPEG", quality=90), r"labels/e01.png: not a PNG file"),
    "label truncated": ("labels", encoded(LABEL, format="PNG")[:45], r"labels/e01.png: damaged PNG"),
    "label of four bytes": ("labels", b"\x89PNG", r"labels/e01.png: not a PNG file"),
    "empty label": ("labels", b"", r"labels/e01.png: not a PNG file"),
    "palette label damaged": ("labels", palette_with_broken_data(), r"labels/e01.png: damaged PNG"),
    "image truncated": ("images", encoded(PHOTO, format="PNG")[:400], r"images/e01.png: not a readable JPEG"),
    "JPEG truncated": ("images", JPEG[: len(JPEG) * 3 // 4], r"images/e01.png: not a readable JPEG"),
    "empty image": ("images", b"", r"images/e01.png: not a readable JPEG"),
    "not an image": ("images", b"<html>not found</html>", r"images/e01.png: not a readable JPEG"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_files_are_named(tmp_path, fault):
    part, content, message = FAULTS[fault]
    settings = config(folder(tmp_path, {"train": [LABEL] * 3}), batch=3)
    (tmp_path / "train" / part / "e01.png").write_bytes(content)
    split = registry.open_split(settings.data, "train")
    with pytest.raises(DataError, match=message):
        decode_example(split, 1)
    examples = iter(batching.eval_examples(registry.open_split(settings.data, "train")))
    assert next(examples)["index"] == 0
    with pytest.raises(tf.errors.OpError) as error:
        next(examples)
    with pytest.raises(DataError, match=message):
        raise batching.reading_error(registry.open_split(settings.data, "train"), [0, 1], error.value)


def test_training_names_the_file_of_the_failing_batch(tmp_path):
    settings = config(folder(tmp_path, {"train": [LABEL] * 4}), batch=2, steps=2)
    write(tmp_path / "train/labels/e02.png", np.full((2, 3), 77, np.uint8))
    iterator, step = iter(train_batches(settings)), 0
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        while True:
            next(iterator)
            step += 1
    indices = step_indices(settings, step)
    assert 2 in indices
    found = batching.reading_error(registry.open_split(settings.data, "train"), indices, error.value)
    assert isinstance(found, DataError) and "labels/e02.png: value 77 (6 pixels) " in str(found)


def test_deleted_file_is_named(tmp_path):
    settings = config(folder(tmp_path, {"val": [LABEL] * 2}))
    split = registry.open_split(settings.data, "val")
    (tmp_path / "val/labels/e01.png").unlink()
    with pytest.raises(DataError, match="labels/e01.png cannot be read: .*No such file"):
        decode_example(split, 1)


def test_reading_error_without_a_faulty_example_keeps_the_message(tmp_path):
    settings = config(folder(tmp_path, {"val": [LABEL]}))
    split = registry.open_split(settings.data, "val")
    assert str(batching.reading_error(split, [0], RuntimeError("disk on fire"))) == "reading val failed: disk on fire"
    assert str(batching.reading_error(split, [0], RuntimeError())) == "reading val failed: RuntimeError"


def test_damaged_palette_labels_raise_data_errors_only(tmp_path):
    source = folder(tmp_path, {"val": [np.zeros((30, 30), np.uint8)]})
    split = registry.open_split(source, "val")
    random = np.random.default_rng(1)
    whole = encoded(palette_image(random.integers(0, 3, (30, 30))), format="PNG")
    refused = 0
    for _ in range(150):
        stored = bytearray(whole)
        stored[random.integers(8, len(stored))] = random.integers(0, 256)
        (tmp_path / "val/labels/e00.png").write_bytes(stored)
        try:
            decode_example(split, 0)
        except DataError:
            refused += 1
    assert 50 < refused < 150


def test_labels_with_values_beyond_the_classes(tmp_path):
    source = folder(tmp_path, {"train": [LABEL]}, "sky\nground\n")
    with pytest.raises(tf.errors.OpError) as error:
        next(iter(batching.eval_examples(registry.open_split(source, "train"))))
    with pytest.raises(DataError, match=r"value 2 \(2 pixels\) .* of folder; .* 0-1, 255"):
        raise batching.reading_error(registry.open_split(source, "train"), [0], error.value)


def test_chosen_examples_and_placeholders(tmp_path):
    settings = config(folder(tmp_path, {"val": [np.full((index + 2, 3), index % 2, np.uint8) for index in range(4)]}))
    found = drain(batching.eval_examples(registry.open_split(settings.data, "val"), np.array([3, -1, 0])))
    assert [int(example["index"]) for example in found] == [3, -1, 0]
    assert [example["image"].shape for example in found] == [(5, 3, 3), (1, 1, 3), (2, 3, 3)]
    assert (found[1]["label"] == 255).all() and (found[0]["label"] == 1).all()


def test_unknown_data_set_is_reported_on_opening():
    with pytest.raises(DataError, match="Did you mean shapes"):
        registry.open_split(Data(name="shape"), "train")
