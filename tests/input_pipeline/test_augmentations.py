"""Augmentation against OpenCV, results of MMSegmentation, and slow reference rules."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from kseg.config.sections import Augment
from kseg.images.resizing import fit_size
from kseg.input_pipeline import augmentations
from kseg.input_pipeline.augmentations import BRIGHTNESS, CONTRAST, CROP, HUE, ORDER, SATURATION
from tests.helpers.shared_files import FIXTURES, needs_fixtures
from tests.helpers.whole_images import augment, crop_window, resize_window

# Mean error in gray levels of saturation and hue against OpenCV's 8-bit HSV. OpenCV's vector code, for 32 pixels at a
# time, drops fractions as kseg does, but its scalar code for the remaining columns of a row rounds.
HSV_MEAN = 0.15
VECTOR = 32
# XLA rounds once where OpenCV rounds twice, which changes one value in a thousand.
COMPILED_MEAN = 0.002


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def tensor(image):
    return tf.constant(image, tf.float32)


def seeds(count):
    return tf.stack([tf.fill([count], 7), tf.range(count)], axis=1)


def for_each_seed(function, count):
    """Return the results of a function of a seed for many seeds; tf.data traces it once, and AutoGraph never."""
    traced = tf.autograph.experimental.do_not_convert(function)
    return list(tf.data.Dataset.from_tensor_slices(seeds(count)).map(traced).as_numpy_iterator())


@pytest.mark.parametrize("size", [(32, 40), (21, 26), (44, 55), (64, 80), (97, 33), (1, 1), (5, 200)])
def test_resizing_is_within_a_gray_level_of_opencv(size):
    image = noise(32, 40)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).astype(float)
    found = resize_window(tensor(image), size, (0, 0, *size)).numpy()
    assert found.shape == (*size, 3) and (found == np.round(found)).all()
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("window", [(0, 0, 20, 30), (24, 0, 20, 10), (3, 25, 41, 30), (43, 54, 1, 1), (10, 7, 1, 48)])
def test_window_equals_the_part_of_the_whole(window):
    image = tensor(noise(32, 40))
    top, left, height, width = window
    whole = resize_window(image, (44, 55), (0, 0, 44, 55)).numpy()
    part = resize_window(image, (44, 55), window).numpy()
    # Positions are float32, so values at a rounding boundary may differ.
    assert np.abs(part - whole[top : top + height, left : left + width]).max() <= 1
    assert np.mean(part != whole[top : top + height, left : left + width]) <= 0.01


def test_resizing_to_the_same_size_changes_nothing():
    image = noise(37, 53)
    assert (resize_window(tensor(image), (37, 53), (0, 0, 37, 53)).numpy() == image).all()


@pytest.mark.parametrize("length", [1, 2, 7, 360, 1024])
def test_nearest_positions_equal_opencv(length):
    source = np.arange(length, dtype=np.float32)[:, None]
    for target in {1, 2, 3, length // 2 + 1, length, length + 1, length * 3 // 2, 2 * length, 777, 1531}:
        expected = cv2.resize(source, (1, target), interpolation=cv2.INTER_NEAREST)[:, 0]
        found = augmentations.nearest_positions(tf.constant(length), tf.constant(target)).numpy()
        assert (found == expected).all(), (length, target)


@needs_fixtures
@pytest.mark.parametrize("name", ["30x21", "55x44", "80x64", "200x37"])
def test_resizing_equals_mmsegmentation(name):
    maps = np.load(FIXTURES / "mmseg" / "augmentation" / "aug.npz")
    image, label = maps["img_bgr"], maps["label"]
    width, height = map(int, name.split("x"))
    size = tuple(int(side) for side in fit_size(*label.shape, (height, width)))
    expected = maps[f"resize_{name}_img"]
    assert size == expected.shape[:2]
    assert np.abs(resize_window(tensor(image), size, (0, 0, *size)).numpy() - expected).max() <= 1
    rows, columns = (augmentations.nearest_positions(label.shape[axis], tf.constant(size[axis])) for axis in (0, 1))
    assert (label[rows.numpy()][:, columns.numpy()] == maps[f"resize_{name}_label"]).all()


def distorted(monkeypatch, image, draws):
    """Distort with chosen amounts, and skip all other steps."""

    def drawn(seed, purpose, low=0.0, high=1.0, shape=()):
        # Purposes from 16 on decide whether a step is applied.
        return tf.constant(float(purpose - 16 not in draws) if purpose >= 16 else draws.get(purpose, 0.0), tf.float32)

    monkeypatch.setattr(augmentations, "uniform", drawn)
    return augmentations.distort(tensor(image), tf.constant([0, 0])).numpy()


@needs_fixtures
@pytest.mark.parametrize(
    "name, draws, bound, mean",
    [
        ("brightness", {BRIGHTNESS: 17.3}, 0, 0),
        ("brightness_neg", {BRIGHTNESS: -29.6}, 0, 0),
        ("contrast", {CONTRAST: 0.73}, 0, 0),
        ("contrast_hi", {CONTRAST: 1.41}, 0, 0),
        ("saturation", {SATURATION: 1.31}, 1, HSV_MEAN),
        ("saturation_lo", {SATURATION: 0.55}, 1, HSV_MEAN),
        ("hue_plus", {HUE: 11}, 1, HSV_MEAN),
        ("hue_minus", {HUE: -18}, 1, HSV_MEAN),
        # A difference of one before the second HSV step may become three.
        ("photometric_mode1", {ORDER: 0.2, BRIGHTNESS: 12.5, CONTRAST: 1.2, SATURATION: 0.8, HUE: 7}, 3, HSV_MEAN),
        ("photometric_mode0", {ORDER: 0.7, BRIGHTNESS: -8.25, CONTRAST: 0.9, SATURATION: 1.35, HUE: -9}, 3, HSV_MEAN),
    ],
)
def test_photometric_steps_equal_mmsegmentation(monkeypatch, name, draws, bound, mean):
    maps = np.load(FIXTURES / "mmseg" / "augmentation" / "aug.npz")
    expected = maps[name][..., ::-1].astype(float)
    error = np.abs(distorted(monkeypatch, maps["img_bgr"][..., ::-1], draws) - expected)
    assert error.max() <= bound and error.mean() <= mean
    assert error[:, :VECTOR].max() <= 1 and error[:, :VECTOR].mean() <= COMPILED_MEAN
    # The step itself changes the image by more than the tolerance.
    assert np.abs(maps["img_bgr"][..., ::-1] - expected).mean() > 3


@pytest.mark.parametrize("factor, shift", [(0.5, -18), (0.83, -1), (1.0, 0), (1.3, 9), (1.5, 17)])
def test_saturation_and_hue_equal_opencv(factor, shift):
    # Wide enough for OpenCV's vector code only; includes grays and the edges of the hue hexagon.
    image = np.concatenate([noise(64, 128), noise(64, 128, 1) // 40 * 40, noise(64, 128, 2) % 7])
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    saturated, shifted = hsv.copy(), hsv.copy()
    saturated[..., 1] = np.minimum(hsv[..., 1].astype(np.float32) * np.float32(factor), 255)
    shifted[..., 0] = (hsv[..., 0].astype(int) + shift) % 180
    for found, expected in (
        (augmentations.saturate(tensor(image), factor), saturated),
        (augmentations.shift_hue(tensor(image), shift), shifted),
    ):
        error = np.abs(found.numpy() - cv2.cvtColor(expected, cv2.COLOR_HSV2RGB))
        assert error.max() <= 1 and error.mean() <= 0.02


@pytest.mark.parametrize("channels", [(0, 1, 2), (0, 0, 0)])
def test_hsv_equals_opencv(channels):
    image = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3, indexing="ij"), -1).astype(np.uint8).reshape(52, -1, 3)
    image = image[..., list(channels)]
    hue, saturation, value = (part.numpy() for part in augmentations.hue_saturation_value(tensor(image)))
    found = np.stack([hue % 180, saturation, value], -1)
    assert np.array_equal(found, cv2.cvtColor(image, cv2.COLOR_RGB2HSV))


def test_distorted_pixels_are_whole_numbers_of_a_byte():
    image = tensor(noise(16, 16))
    results = np.stack(for_each_seed(lambda seed: augmentations.distort(image, seed), 64))
    assert results.min() == 0 and results.max() == 255 and (results == np.round(results)).all()
    unchanged = np.mean([(result == image.numpy()).all() for result in results])
    # All four steps are skipped for one image in sixteen.
    assert 0 < unchanged < 0.25


def test_ranges_of_the_draws(monkeypatch):
    ranges = {}

    def drawn(seed, purpose, low=0.0, high=1.0, shape=()):
        ranges[purpose] = (low, high)
        return tf.constant(0.0)

    monkeypatch.setattr(augmentations, "uniform", drawn)
    augmentations.distort(tensor(noise(2, 2)), tf.constant([0, 0]))
    expected = {BRIGHTNESS: (-32, 32), CONTRAST: (0.5, 1.5), SATURATION: (0.5, 1.5), HUE: (-18, 18), ORDER: (0, 1)}
    assert {purpose: ranges[purpose] for purpose in expected} == expected


def accepted(label, corner, size, limit):
    """Return whether MMSegmentation accepts a crop."""
    window = label[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    values, counts = np.unique(window[window != 255], return_counts=True)
    return len(values) > 1 and counts.max() / counts.sum() < limit


@pytest.mark.parametrize("limit, tries", [(0.75, 10), (0.55, 3), (1.0, 10), (0.75, 0)])
def test_crops_follow_the_rule_of_mmsegmentation(limit, tries):
    config = Augment(crop=(9, 12), cat_max_ratio=limit, crop_tries=tries)
    label = np.zeros((30, 25), np.uint8)
    label[12:, 8:] = 1
    label[20:, :10] = 255
    label[:3, 20:] = 2
    used = tries if limit < 1 else 0

    def window_and_draws(seed):
        window = tf.stack(crop_window(tf.constant(label), seed, config))
        return window, augmentations.uniform(seed, CROP, shape=(used + 1, 2))

    windows, redrawn = [], 0
    for (top, left, height, width), draws in for_each_seed(window_and_draws, 150):
        windows.append((top, left, height, width))
        corners = [(int(row * (30 - 9 + 1)), int(column * (25 - 12 + 1))) for row, column in draws]
        good = [corner for corner in corners[:used] if accepted(label, corner, (9, 12), limit)]
        # The window after the last try is not tested.
        assert (top, left) == (good[0] if good else corners[used])
        assert (height, width) == (9, 12) and 0 <= top <= 21 and 0 <= left <= 13
        redrawn += (top, left) != corners[0]
    assert (redrawn > 10) == (used > 0)
    assert len(set(windows)) > 20


@pytest.mark.parametrize(
    "shape, expected", [((5, 40), (5, 12)), ((40, 7), (9, 7)), ((4, 4), (4, 4)), ((9, 12), (9, 12))]
)
def test_small_image_is_kept_completely(shape, expected):
    config = Augment(crop=(9, 12))
    label = tf.zeros(shape, tf.uint8)
    top, left, height, width = (int(value) for value in crop_window(label, tf.constant([1, 2]), config))
    assert (height, width) == expected
    assert 0 <= top <= shape[0] - height and 0 <= left <= shape[1] - width


def augmented(count, config, image, label):
    """Return one example augmented with many seeds by tf.data."""
    return for_each_seed(lambda seed: augment(tensor(image), tf.constant(label), seed, config), count)


def test_labels_match_their_image_and_have_no_new_values():
    # The image encodes its label: 0, 200, and 100 for ignored pixels.
    label = np.random.default_rng(3).choice([0, 7, 255], (6, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    image = np.select([label == 7, label == 255], [200, 100], 0)[..., None].repeat(3, 2)
    config = Augment(crop=(30, 40), scale_range=(1.0, 2.0), photometric=False)
    for image_out, label_out in augmented(30, config, image, label):
        assert label_out.dtype == np.uint8 and label_out.shape == image_out.shape[:2] == (30, 40)
        assert set(np.unique(label_out)) <= {0, 7, 255}
        shown = np.select([label_out == 7, label_out == 255], [200, 100], 0)
        # Edges are blended and up to half a pixel apart, but most pixels are inside their blocks.
        assert np.mean(np.abs(image_out[..., 0] - shown) <= 1) > 0.6


def test_result_depends_on_the_seed_only_compiled_or_not():
    image, label = noise(30, 40), np.random.default_rng(1).integers(0, 5, (30, 40)).astype(np.uint8)
    config = Augment(crop=(16, 20))
    results = augmented(6, config, image, label)
    for seed, (image_out, label_out) in zip(seeds(6), results):
        eager_image, eager_label = augment(tensor(image), tf.constant(label), seed, config)
        assert (eager_label.numpy() == label_out).all()
        # Compiled arithmetic may round values at a boundary differently.
        assert np.mean(eager_image.numpy() != image_out) < 0.01
    for first, second in zip(results, augmented(6, config, image, label)):
        assert (first[0] == second[0]).all() and (first[1] == second[1]).all()
    assert any((results[0][1] != label_out).any() for _, label_out in results[1:])


@pytest.mark.parametrize("flip, low, high", [(0.5, 0.4, 0.6), (0.0, 0, 0), (1.0, 1, 1)])
def test_frequency_of_flips(flip, low, high):
    label = np.tile(np.arange(8, dtype=np.uint8), (8, 1))
    image = label[..., None].repeat(3, 2)
    config = Augment(crop=(8, 8), scale_range=(1.0, 1.0), flip=flip, photometric=False)
    results = augmented(400, config, image, label)
    flipped = [bool(label_out[0, 0] == 7) for _, label_out in results]
    assert low <= np.mean(flipped) <= high
    for is_flipped, (image_out, label_out) in zip(flipped, results):
        assert (label_out == (label[:, ::-1] if is_flipped else label)).all() and (image_out[..., 0] == label_out).all()


@pytest.mark.parametrize("scale, unit", [((), (1000, 2000)), ((500, 1500), (500, 1000))])
def test_scales_are_uniform(scale, unit):
    config = Augment(scale=scale, scale_range=(0.5, 2.0))
    sizes = np.stack(
        for_each_seed(
            lambda seed: tf.stack(augmentations.scaled_size(tf.constant([1000, 2000, 3]), seed, config)), 1000
        )
    )
    factors = sizes[:, 0] / unit[0]
    assert 0.498 <= factors.min() < 0.52 and 1.98 < factors.max() <= 2.0
    assert np.quantile(factors, [0.25, 0.5, 0.75]) == pytest.approx([0.875, 1.25, 1.625], abs=0.1)
    assert np.abs(sizes[:, 1] - 2 * sizes[:, 0]).max() <= 2


def test_image_of_one_row_can_shrink():
    image, label = noise(1, 50), np.zeros((1, 50), np.uint8)
    for image_out, label_out in augmented(20, Augment(crop=(8, 8), scale_range=(0.2, 0.4)), image, label):
        assert image_out.shape[0] == label_out.shape[0] == 1 and np.isfinite(image_out).all()
