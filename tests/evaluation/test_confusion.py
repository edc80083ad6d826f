"""The confusion matrices and the boundary bands against loops over pixels."""

import functools
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kseg.evaluation import confusion
from tests.helpers import slow_metrics
from tests.helpers.exhaustive import exhaustive
from tests.helpers.running import ON_JAX, ROOT

# (N, H, W), with maps of one pixel and maps narrower than the widest band.
SHAPES = [(1, 1, 1), (3, 1, 20), (2, 20, 1), (2, 33, 47), (1, 60, 80), (5, 12, 13), (1, 2, 500)]
CLASSES = 5


def random_maps(seed, shape):
    """Return uint8 labels in blocks, some ignored, and int32 predictions that equal most of them."""
    random = np.random.default_rng(seed)
    count, height, width = shape
    blocks = random.choice([*range(CLASSES), 255], (count, -(-height // 7), -(-width // 11))).astype(np.uint8)
    labels = blocks.repeat(7, 1).repeat(11, 2)[:, :height, :width]
    noise = random.integers(0, CLASSES, shape)
    return labels, np.where((random.random(shape) < 0.6) & (labels != 255), labels, noise).astype(np.int32)


@functools.cache
def compiled_counts():
    return tf.function(
        functools.partial(confusion.banded_confusion, classes=CLASSES),
        input_signature=[tf.TensorSpec((None, None, None), tf.uint8), tf.TensorSpec((None, None, None), tf.int32)],
    )


@pytest.mark.parametrize(
    "label_type, prediction_type", [(np.uint8, np.uint8), (np.int32, np.int64), (np.uint8, np.int32)]
)
def test_confusion_against_a_loop(label_type, prediction_type):
    generator = np.random.default_rng(0)
    labels = generator.choice([0, 1, 2, 5, 255], (2, 13, 17)).astype(label_type)
    predictions = generator.integers(0, 6, (2, 13, 17)).astype(prediction_type)
    matrix = np.asarray(confusion.confusion(labels, predictions, 6))
    assert matrix.dtype == np.int64
    assert (matrix == slow_metrics.confusion(labels, predictions, 6)).all()


def test_many_classes_do_not_overflow_the_label_type():
    labels = np.array([199, 255, 0], np.uint8)
    matrix = np.asarray(confusion.confusion(labels, np.array([198, 3, 199], np.uint8), 200))
    assert matrix[199, 198] == matrix[0, 199] == 1 and matrix.sum() == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_bands_in_a_graph_of_unknown_size_against_loops(shape):
    labels, predictions = random_maps(sum(shape), shape)
    matrices = compiled_counts()(labels, predictions).numpy()
    assert matrices.dtype == np.int64
    np.testing.assert_array_equal(matrices, slow_metrics.banded_confusion(labels, predictions, CLASSES))
    np.testing.assert_array_equal(matrices.sum(0), confusion.confusion(labels, predictions, CLASSES))


def test_bands_are_the_same_eagerly_and_in_a_graph_of_known_size():
    labels, predictions = random_maps(7, (2, 40, 30))
    expected = slow_metrics.banded_confusion(labels, predictions, CLASSES)
    count = functools.partial(confusion.banded_confusion, classes=CLASSES)
    np.testing.assert_array_equal(count(labels, predictions), expected)
    np.testing.assert_array_equal(count(labels.astype(np.int32), predictions.astype(np.uint8)), expected)
    for height in (40, None):
        fixed = tf.function(
            count, input_signature=[tf.TensorSpec((2, height, 30), tf.uint8), tf.TensorSpec((2, height, 30), tf.int32)]
        )
        np.testing.assert_array_equal(fixed(labels, predictions), expected)


@exhaustive
def test_bands_on_jax(tmp_path):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    labels, predictions = random_maps(3, (2, 33, 47))
    np.savez(tmp_path / "maps.npz", labels=labels, predictions=predictions)
    program = (
        "import sys, numpy as np, keras; from kseg.evaluation import confusion; maps = np.load(sys.argv[1]); "
        f"found = confusion.banded_confusion(maps['labels'], maps['predictions'], {CLASSES}); "
        "print(keras.backend.backend()); np.save(sys.argv[2], np.asarray(found))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "maps.npz", tmp_path / "found.npy"],
        text=True,
        capture_output=True,
        env=os.environ | ON_JAX,
        cwd=ROOT,
    )
    assert process.returncode == 0 and process.stdout.split() == ["jax"], process.stderr
    np.testing.assert_array_equal(
        np.load(tmp_path / "found.npy"), slow_metrics.banded_confusion(labels, predictions, CLASSES)
    )


@pytest.mark.parametrize(
    "height, width, radii",
    [
        # The diagonals are 500, 600 and 1000 pixels; 2.5 pixels round to 2, and so do 1.5.
        (300, 400, [1, 1, 2, 5, 10]),
        (360, 480, [1, 2, 3, 6, 12]),
        (600, 800, [1, 2, 5, 10, 20]),
        # The radii are 2.86, 5.72, 11.45, 22.90 and 45.79 before rounding.
        (1024, 2048, [3, 6, 11, 23, 46]),
    ],
)
def test_bands_along_a_straight_edge(height, width, radii):
    labels = np.zeros((1, height, width), np.uint8)
    labels[:, :, width // 2 :] = 255
    # The columns next to the edge have distance 1.
    distances = np.concatenate([np.arange(width // 2, 0, -1), np.arange(1, width // 2 + 1)])
    expected = sum(distances > radius for radius in radii)
    bands = np.asarray(
        tf.function(confusion.boundary_bands, input_signature=[tf.TensorSpec((None, None, None), tf.uint8)])(labels)
    )
    assert bands.dtype == np.int32 and (bands == expected).all()
    assert (np.asarray(confusion.boundary_bands(labels.transpose(0, 2, 1))) == expected[:, None]).all()


def test_bands_are_squares_around_a_corner_and_stop_at_the_frame():
    # The bands are 1, 1, 2, 5 and 10 pixels wide around a single pixel, 4 pixels from the frame.
    labels = np.zeros((1, 300, 400), np.int32)
    labels[0, 4, 200] = 3
    bands = np.asarray(confusion.boundary_bands(labels))[0]
    rows, columns = np.mgrid[:300, :400]
    # The four neighbors of the pixel lie at its edges too; all other pixels are measured from these five.
    down, right = abs(rows - 4), abs(columns - 200)
    distance = 1 + np.minimum(np.maximum(np.maximum(down - 1, 0), right), np.maximum(down, np.maximum(right - 1, 0)))
    assert (bands == sum(distance > radius for radius in (1, 1, 2, 5, 10))).all()
    assert (bands == 0).sum() == 5 and (bands[-1] == 5).all() and (bands[:, 0] == 5).all()


@pytest.mark.parametrize(
    "label, prediction",
    [
        (5, 0),
        (-1, 0),
        (254, 4),
        (256, 1),
        (2**31 - 1, 1),
        (-(2**31), 1),
        (0, 5),
        (4, 5),
        (1, -1),
        (0, -1),
        (2, 2**31 - 1),
        (3, -(2**31)),
    ],
)
def test_ids_outside_the_classes_are_not_counted(label, prediction):
    labels, predictions = np.full((1, 6, 8), 2, np.int32), np.full((1, 6, 8), 3, np.int32)
    labels[0, 2, 3], predictions[0, 2, 3] = label, prediction
    for matrix in (
        confusion.confusion(labels, predictions, 5),
        np.sum(confusion.banded_confusion(labels, predictions, 5), 0),
    ):
        matrix = np.asarray(matrix)
        assert matrix[2, 3] == 47 and matrix.sum() == 47


def test_64_bit_ids_outside_the_classes_are_not_counted():
    labels, predictions = np.array([[[0, 1, 2**32]]]), np.array([[[0, 2**32 + 1, 0]]])
    matrix = np.asarray(confusion.banded_confusion(labels, predictions, 2)).sum(0)
    assert matrix.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("label, prediction", [((1, 4, 6), (1, 4, 1)), ((1, 4, 6), (1, 6, 4)), ((1, 4, 6), (4, 6))])
def test_maps_of_different_shapes_are_refused(label, prediction):
    for count in (confusion.confusion, confusion.banded_confusion):
        with pytest.raises(ValueError, match=r"\(1, 4, 6\) and"):
            count(np.zeros(label, np.uint8), np.zeros(prediction, np.uint8), 3)


def test_the_ignored_label_cannot_be_a_class():
    labels = np.array([[[254, 255, 0]]], np.uint8)
    assert np.asarray(confusion.banded_confusion(labels, labels, 255)).sum((0, 1)).nonzero()[0].tolist() == [0, 254]
    with pytest.raises(ValueError, match="at most 255 classes, got 256"):
        confusion.confusion(labels, labels, 256)


def test_the_sum_does_not_depend_on_the_batches():
    labels, predictions = random_maps(11, (6, 24, 31))
    whole = np.asarray(compiled_counts()(labels, predictions))
    for sizes in ([1] * 6, [2, 4], [5, 1], [3, 2, 1]):
        ends = np.cumsum(sizes)
        parts = [
            np.asarray(compiled_counts()(labels[end - size : end], predictions[end - size : end]))
            for size, end in zip(sizes, ends)
        ]
        np.testing.assert_array_equal(np.sum(parts, 0), whole)
