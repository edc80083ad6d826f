"""Training, check and prediction must see Pillow's upright pixels of every file, or refuse it.

KSEG_DRAWN_FILES sets the number of files: KSEG_DRAWN_FILES=5000 python -m pytest tests/images/test_every_kind.py
"""

import collections
import io
import os
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kseg.datasets import diagnosis
from kseg.datasets.registry import DATASETS
from kseg.errors import DataError
from kseg.images import decoding, image_files
from tests.helpers import drawn_files

COUNT = int(os.environ.get("KSEG_DRAWN_FILES", 250))
REFUSALS = (DataError, tf.errors.OpError)


def pillow_pixels(data, indices=False):
    """Return the upright RGB pixels, or the values of a label, as Pillow reads them; None if it cannot."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            deep = image.mode.startswith("I")
            image = ImageOps.exif_transpose(image)
            if indices:
                return np.asarray(image) if image.mode in ("L", "P") else None
            if deep:
                gray = np.rint(np.asarray(image).astype(float) / 257).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=2)
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def outcome(read, *arguments):
    try:
        return np.asarray(read(*arguments))
    except REFUSALS:
        return None


@tf.function(
    input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec((2,), tf.int32), tf.TensorSpec((4,), tf.int32)],
    autograph=False,
)
def read_window(data, size, window):
    return decoding.decode_window(data, size, tf.unstack(window), True)


@tf.function(
    input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec((2,), tf.int32), tf.TensorSpec((4,), tf.int32)],
    autograph=False,
)
def read_window_elsewhere(data, size, window):
    return decoding.decode_window(data, size, tf.unstack(window), False)


read_whole = tf.function(
    lambda data: decoding.read_image(data, (), True), autograph=False, input_signature=[tf.TensorSpec((), tf.string)]
)
read_label = tf.function(
    lambda data: decoding.decode_label(data, in_python=True),
    autograph=False,
    input_signature=[tf.TensorSpec((), tf.string)],
)


def random_window(random, size):
    (top, bottom), (left, right) = (sorted(random.integers(0, side + 1, 2)) for side in size)
    return (
        tf.constant([top, left, max(bottom, top + 1), max(right, left + 1)], tf.int32)
        if (top < size[0] and left < size[1])
        else tf.constant([0, 0, *size], tf.int32)
    )


def test_images_have_one_reading(tmp_path):
    random, counts, wrong = np.random.default_rng(41), collections.Counter(), []
    path = tmp_path / "drawn"
    for number in range(COUNT):
        kind, data = drawn_files.image_file(random)
        is_damaged = bool(random.random() < 0.25)
        if is_damaged:
            data = drawn_files.damaged(random, data)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = pillow_pixels(data)
            encoded = tf.constant(np.array(data, object))
            readings = {
                "evaluation": outcome(read_whole, encoded),
                "check": outcome(diagnosis.read_image, str(path), encoded),
                "prediction": outcome(image_files.read_image, path),
            }
            expected = dict.fromkeys(readings, truth)
            if truth is not None:
                size = tf.constant(truth.shape[:2])
                window = random_window(random, truth.shape[:2])
                top, left, bottom, right = window.numpy()
                for name, read in (("training", read_window), ("service", read_window_elsewhere)):
                    readings[name] = outcome(read, encoded, size, window)
                    expected[name] = truth[top:bottom, left:right]
        two_headers = kind.startswith("two headers") and not is_damaged
        for name, reading in readings.items():
            if reading is None:
                # A sound file is refused only for its two headers, or in another process.
                right = is_damaged or two_headers or name == "service" or truth is None
                counts[name, "refused"] += 1
            else:
                right = not two_headers and expected[name] is not None and np.array_equal(reading, expected[name])
                counts[name, "read"] += 1
            if not right:
                (tmp_path / f"wrong-{number}").write_bytes(data)
                wrong.append(
                    (
                        number,
                        name,
                        kind,
                        "damaged" if is_damaged else "whole",
                        "refused" if reading is None else "other pixels",
                        "Pillow cannot read it" if truth is None else "",
                    )
                )
    print(COUNT, "files:", dict(counts))
    assert not wrong, wrong[:20]


def test_labels_have_one_reading(tmp_path):
    random, counts, wrong = np.random.default_rng(42), collections.Counter(), []
    for number in range(COUNT):
        kind, data = drawn_files.label_file(random)
        is_damaged = bool(random.random() < 0.25)
        if is_damaged:
            data = drawn_files.damaged(random, data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = pillow_pixels(data, indices=True)
            encoded = tf.constant(np.array(data, object))
            readings = {
                "training": outcome(read_label, encoded),
                "check": outcome(diagnosis.read_label, DATASETS["camvid"], "label", encoded),
            }
        usable = truth is not None and data[25:26] != b"\x00" or data[24:26] == b"\x08\x00"
        refused = "headers 2" in kind or not usable
        for name, reading in readings.items():
            counts[name, "refused" if reading is None else "read"] += 1
            if reading is None:
                right = refused or is_damaged
            else:
                # A label may be damaged outside of its header and values, which Pillow refuses.
                right = is_damaged and truth is None or not refused and np.array_equal(reading, truth)
            if not right:
                (tmp_path / f"wrong-{number}").write_bytes(data)
                wrong.append(
                    (
                        number,
                        name,
                        kind,
                        "damaged" if is_damaged else "whole",
                        "refused" if reading is None else "other values",
                    )
                )
    print(COUNT, "files:", dict(counts))
    assert not wrong, wrong[:20]


def test_a_label_cut_off_anywhere_in_its_header_is_refused():
    whole = drawn_files.png(np.random.default_rng(0), drawn_files.PALETTE, 4, label=True)
    for length in range(60):
        with pytest.raises(DataError, match="label"):
            diagnosis.read_label(DATASETS["camvid"], "label", tf.constant(np.array(whole[:length], object)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_without_compression_is_the_same_by_path_and_by_content(tmp_path, orientation):
    pixels = drawn_files.smooth(np.random.default_rng(0), 20, 7)
    data = drawn_files.saved(pixels, "TIFF", exif=drawn_files.pillow_exif(orientation))
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(image_files.read_image(tmp_path / "a.tif"), pillow_pixels(data))
    assert image_files.read_image(tmp_path / "a.tif").shape == ((7, 20, 3) if orientation > 4 else (20, 7, 3))
