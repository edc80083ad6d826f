"""Stripes must equal the whole map, and windows a slow loop over them, for images of any size.

Pixels with non-finite scores must be counted, and memory must not grow with the height of an image.
"""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import Data, Evaluate, Model
from kseg.errors import DataError
from kseg.inference import prediction, sliding_window, tiling
from kseg.models.layers import resize
from tests.helpers.exhaustive import all_of

# This normalization changes no values, so a model's input is the image itself.
PLAIN = Data(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def position_model(stride=4):
    """Return a model whose logits depend on the position in the window, so that all windows differ."""
    images = keras.Input((None, None, 3))
    pooled = keras.layers.AveragePooling2D(stride, padding="same")(images)
    across = keras.layers.Lambda(lambda x: x + tf.cumsum(tf.ones_like(x), axis=2) - 2 * tf.cumsum(x, axis=1))(pooled)
    return keras.Model(images, {"main": across})


def slow_slide(model, inputs, window, stride):
    """Return the scores of MMSegmentation's sliding windows, processed one at a time."""
    (batch, height, width), (crop_height, crop_width) = inputs.shape[:3], window
    total, count = np.zeros((batch, height, width, 3)), np.zeros((height, width, 1))
    for row in range(max(height - crop_height + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - crop_width + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(row * stride[0] + crop_height, height), min(column * stride[1] + crop_width, width)
            top, left = max(bottom - crop_height, 0), max(right - crop_width, 0)
            part = model(inputs[:, top:bottom, left:right])["main"]
            total[:, top:bottom, left:right] += tf.image.resize(part, (bottom - top, right - left)).numpy()
            count[top:bottom, left:right] += 1
    assert count.min() >= 1
    return total / count


def compiled(function, model, settings, dtype=tf.float32):
    """Return a function of kseg.inference.prediction, compiled once for all sizes."""

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 3), dtype), tf.TensorSpec((2,), tf.int32)], autograph=False
    )
    def call(inputs, size):
        return function(model, inputs, (size[0], size[1]), prediction.protocol_of(settings))

    return call


def certain(scores, tolerance=1e-3):
    """Return where the two best scores differ by more than a tolerance."""
    best = np.sort(scores, axis=-1)
    return best[..., -1] - best[..., -2] > tolerance


def join_stripes(rows, cuts):
    """Return the whole map, joined from stripes that begin and end at `cuts`."""
    return np.concatenate([rows.take(first, last) for first, last in zip(cuts, cuts[1:])], axis=1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "source, target",
    [
        ((7, 5), (53, 41)),
        ((13, 18), (97, 141)),
        ((97, 97), (769, 769)),
        ((33, 29), (8, 11)),
        ((9, 9), (9, 9)),
        ((9, 9), (9, 31)),
        ((9, 9), (31, 9)),
        ((1, 1), (17, 3)),
        ((17, 3), (1, 1)),
        ((6, 1), (1, 6)),
    ],
)
def test_stripes_equal_the_whole_map_bit_for_bit(source, target, align_corners):
    generator = np.random.default_rng(0)
    maps = tf.constant(generator.normal(size=(2, *source, 3)), tf.float32)
    expected = resize(maps, target, align_corners).numpy()
    rows = tiling.resized_rows(tiling.rows_in_memory(maps), target, align_corners)
    for _ in range(5):
        cuts = sorted({0, target[0], *(int(cut) for cut in generator.integers(0, target[0], 3))})
        assert np.array_equal(join_stripes(rows, cuts), expected)
    # The source of a resize may itself be resized row by row.
    twice = tiling.resized_rows(rows, (23, 37), align_corners)
    assert np.array_equal(join_stripes(twice, [0, 1, 9, 23]), resize(expected, (23, 37), align_corners))


@pytest.mark.parametrize("length, target", [(5, 41), (18, 18), (33, 8), (1, 17), (17, 1)])
def test_rows_are_complete_once_their_source_rows_are(length, target):
    source = tiling.rows_in_memory(tf.zeros((1, length, 1, 1)))
    for complete in range(length + 1):
        # A row that changes when a later source row changes is not complete.
        changed = np.zeros((1, length, 1, 1), np.float32)
        changed[:, complete:] = 1
        independent = np.flatnonzero(resize(changed, (target, 1)).numpy().ravel() == 0).size
        count = int(tiling.complete_rows(source, tf.constant(target), False, tf.constant(complete)))
        # A row whose upper neighbor has weight 0 may be counted as incomplete.
        assert count <= independent and (complete < length or count == target)
        assert count >= independent - target / length


@pytest.mark.parametrize("stripe", all_of([1, tiling.STRIPE], 700))
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("resize_logits", ["once", "twice"])
def test_classes_of_whole_images_for_any_stripe(monkeypatch, stripe, align_corners, resize_logits):
    monkeypatch.setattr(tiling, "STRIPE", stripe)
    model = position_model()
    settings = Config(
        data=PLAIN, model=Model(align_corners=align_corners), evaluate=Evaluate(resize_logits=resize_logits)
    )
    checked = compiled(prediction.predict_checked, model, settings, tf.uint8)
    logits = compiled(prediction.predict_scores, model, settings)
    for shape, size in (((2, 37, 53), (37, 53)), ((1, 37, 53), (61, 20)), ((1, 1, 1), (1, 1)), ((1, 20, 30), (7, 90))):
        images = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
        expected = model(images.astype(np.float32))["main"]
        if resize_logits == "twice":
            expected = resize(expected, shape[1:], align_corners)
        expected = resize(expected, size, align_corners).numpy()
        assert np.array_equal(logits(images.astype(np.float32), size), expected)
        ids, non_finite = checked(images, size)
        assert ids.dtype == non_finite.dtype == tf.int32
        assert np.array_equal(ids, expected.argmax(-1)) and np.array_equal(non_finite, [0] * len(images))


@pytest.mark.parametrize("pixels, stripe", all_of([(900, 500)], (sliding_window.PIXELS_PER_CALL, tiling.STRIPE)))
@pytest.mark.parametrize(
    "window, stride",
    all_of(
        [((16, 24), (16, 24)), ((10, 31), (3, 29)), ((1, 1), (1, 1))],
        ((16, 16), (11, 11)),
        ((40, 16), (1, 16)),
        ((64, 64), (43, 43)),
    ),
)
def test_windows_equal_a_slow_loop_in_one_graph(monkeypatch, window, stride, pixels, stripe):
    monkeypatch.setattr(sliding_window, "PIXELS_PER_CALL", pixels)
    monkeypatch.setattr(tiling, "STRIPE", stripe)
    model, settings = position_model(), Config(data=PLAIN, evaluate=Evaluate(window=window, stride=stride))
    logits = compiled(prediction.predict_scores, model, settings)
    checked = compiled(prediction.predict_checked, model, settings, tf.uint8)
    generator = np.random.default_rng(0)
    # The images are smaller than, as large as and larger than the windows on one side and on both.
    shapes = (
        ((1, 3, 5),)
        if window == (1, 1)
        else ((1, 37, 53), (2, 16, 24), (1, 9, 40), (1, 40, 9), (1, 1, 1), (1, 65, 107))
    )
    for shape in shapes:
        images = generator.integers(0, 5, size=(*shape, 3)).astype(np.uint8)
        expected = slow_slide(model, images.astype(np.float32), window, stride)
        assert np.allclose(logits(images.astype(np.float32), shape[1:]), expected, atol=1e-4, rtol=1e-5)
        ids, non_finite = checked(images, shape[1:])
        where = certain(expected)
        assert np.array_equal(ids[where], expected.argmax(-1)[where]) and not np.any(non_finite)


@pytest.mark.parametrize("stripe", [1, 999])
def test_window_scores_are_resized_to_the_labels_size(monkeypatch, stripe):
    monkeypatch.setattr(tiling, "STRIPE", stripe)
    model, images = position_model(), np.random.default_rng(1).integers(0, 9, (1, 50, 30, 3)).astype(np.uint8)
    slow = slow_slide(model, images.astype(np.float32), (16, 16), (11, 11))
    for resize_logits in ("once", "twice"):
        settings = Config(data=PLAIN, evaluate=Evaluate(window=(16, 16), stride=(11, 11), resize_logits=resize_logits))
        logits = compiled(prediction.predict_scores, model, settings)
        for size in ((83, 44), (17, 70), (1, 1)):
            expected = tf.image.resize(slow, size).numpy()
            found = logits(images.astype(np.float32), size)
            assert np.allclose(found, expected, atol=1e-4, rtol=1e-5)


def test_classes_of_several_scales_for_any_stripe(monkeypatch):
    model, images = position_model(), np.random.default_rng(1).integers(0, 9, (2, 50, 30, 3)).astype(np.uint8)
    settings = Config(data=PLAIN, evaluate=Evaluate(scales=(0.5, 1.25), flip=True, window=(16, 16), stride=(11, 11)))
    whole = compiled(prediction.predict_scores, model, settings, tf.uint8)(images, (50, 30)).numpy()
    monkeypatch.setattr(tiling, "STRIPE", 500)
    ids, non_finite = compiled(prediction.predict_checked, model, settings, tf.uint8)(images, (50, 30))
    assert np.array_equal(ids, whole.argmax(-1)) and np.array_equal(non_finite, [0, 0])


def broken_model(number):
    """Return a model whose logits are the colors, with a non-finite second logit where red is 255."""
    images = keras.Input((None, None, 3))
    broken = keras.layers.Lambda(lambda x: tf.where((x[..., :1] == 255) & [False, True, False], number, x))(images)
    return keras.Model(images, {"main": broken})


@pytest.mark.parametrize(
    "evaluation",
    [
        Evaluate(),
        Evaluate(resize_logits="once"),
        Evaluate(window=(16, 16), stride=(11, 11)),
        Evaluate(window=(99, 99), stride=(99, 99)),
        Evaluate(flip=True, average="logits"),
    ],
)
def test_pixels_with_non_finite_scores_are_counted(monkeypatch, evaluation):
    monkeypatch.setattr(tiling, "STRIPE", 500)
    images = np.random.default_rng(0).integers(0, 200, (3, 40, 25, 3)).astype(np.uint8)
    images[0, 10:30, 5:9, 0] = 255
    images[2, 39, 24, 0] = 255
    expected = images.argmax(-1)
    settings = Config(data=PLAIN, evaluate=evaluation)
    number = tf.Variable(0.0)
    # One graph serves all numbers.
    predict = compiled(prediction.predict_checked, broken_model(number), settings, tf.uint8)
    for value in (np.nan, np.inf, -np.inf):
        number.assign(value)
        ids, non_finite = predict(images, (40, 25))
        # With a flip the position in the flipped image is counted, and no other one.
        assert np.array_equal(non_finite, [80, 0, 1]), value
        finite = images[..., 0] < 255
        assert np.array_equal(ids[finite], expected[finite])


def test_non_finite_score_spreads_only_to_interpolated_pixels():
    images = np.zeros((1, 12, 12, 3), np.uint8)
    images[0, 5, 5, 0] = 255
    model, settings = broken_model(np.nan), Config(data=PLAIN)
    whole = resize(model(images.astype(np.float32))["main"], (24, 24)).numpy()
    expected = (~np.isfinite(whole)).any(-1).sum()
    _, non_finite = compiled(prediction.predict_checked, model, settings, tf.uint8)(images, (24, 24))
    assert expected == 16 and np.array_equal(non_finite, [expected])


def test_predictor_rejects_non_finite_scores():
    image = np.zeros((12, 12, 3), np.uint8)
    predict = prediction.predictor(broken_model(np.nan), prediction.protocol_of(Config(data=PLAIN)))
    assert predict(image).shape == (12, 12)
    image[5, 5:7, 0] = 255
    with pytest.raises(DataError, match="2 of 144 pixels"):
        predict(image)


@pytest.mark.parametrize(
    "evaluation, fits, over",
    [
        (Evaluate(), (8192, 8192), (8192, 8193)),
        (Evaluate(scales=(0.5, 2.0)), (4096, 4096), (4096, 4097)),
        (Evaluate(scales=(0.5, 2.0), scale_of="input"), (4096, 4096), (4096, 4097)),
        (Evaluate(resize=(9000, 9000), scales=(0.5, 1.0), scale_of="input"), (7000, 100_000), (100, 100)),
        (Evaluate(resize=(512, 2048)), (100_000, 100_000), None),
        (Evaluate(window=(769, 769), stride=(513, 513)), (100_000, 100_000), None),
    ],
)
def test_too_large_image_is_rejected(evaluation, fits, over):
    prediction.require_size(*fits, evaluation)
    if over:
        with pytest.raises(DataError, match=rf"{over[1]} x {over[0]} .*evaluate\.window=769,769 evaluate\.stride=513"):
            prediction.require_size(*over, evaluation)


def test_predictor_rejects_too_large_image(monkeypatch):
    monkeypatch.setattr(prediction, "MAX_WHOLE_PIXELS", 100)
    model = position_model()
    with pytest.raises(DataError, match="11 x 10"):
        prediction.predictor(model, prediction.protocol_of(Config()))(np.zeros((10, 11, 3), np.uint8))
    slide = Config(evaluate=Evaluate(window=(8, 8), stride=(8, 8)))
    assert prediction.predictor(model, prediction.protocol_of(slide))(np.zeros((10, 11, 3), np.uint8)).shape == (10, 11)


# The program prints the growth of the process in MiB from a small image to a large one.
MEMORY = """
    import resource, sys
    import keras
    import numpy as np
    from kseg.config import Config
    from kseg.config.sections import Evaluate
    from kseg.inference import prediction

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    images = keras.Input((None, None, 3))
    logits = keras.layers.Conv2D(32, 1)(keras.layers.AveragePooling2D(8, padding="same")(images))
    model = keras.Model(images, {"main": logits})
    settings = Config(evaluate=Evaluate(window=(64, 64), stride=(43, 43)) if sys.argv[1] == "windows" else Evaluate())
    predict = prediction.predictor(model, prediction.protocol_of(settings))
    predict(np.zeros((256, 256, 3), np.uint8))
    before = peak()
    assert predict(np.zeros((16384, 256, 3), np.uint8)).shape == (16384, 256)
    print(peak() - before)
"""


@pytest.mark.parametrize("protocol", all_of(["windows"], "whole"))
def test_full_size_scores_are_never_in_memory_as_a_whole(protocol):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(MEMORY), protocol], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # The scores would take 512 MiB; the normalized image takes 48 MiB, and the ids take 16 MiB.
    assert int(result.stdout.split()[-1]) < 256
