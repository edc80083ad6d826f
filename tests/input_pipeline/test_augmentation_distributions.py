"""The distribution of augmented examples equals that of the slow reference, and planted mistakes are detected.

Each check bounds a distance, which the program keeps and every planted mistake exceeds. All seeds are fixed.
"""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import Augment
from kseg.input_pipeline import augmentations, batching
from kseg.input_pipeline.augmentations import CROP, FLIP, SCALE
from tests.helpers import slow_augmentations
from tests.helpers.distributions import COUNT, distance, plant, samples
from tests.helpers.exhaustive import all_of, exhaustive
from tests.helpers.splits import network_inputs
from tests.helpers.whole_images import augment, crop_window

# Sizes.

SHAPES = [(1024, 2048), (512, 683), (500, 375), (333, 500)]
BOX = (512, 2048)


@functools.cache
def expected_sizes(shape):
    factors = np.random.default_rng(1).uniform(0.5, 2, COUNT)
    return np.array([slow_augmentations.new_size(shape, factor, BOX[::-1]) for factor in factors])


@functools.cache
def reachable_sizes(shape):
    """Return all sizes that a factor can give; the box changes only where a side times the factor is a whole number."""
    steps = np.unique(np.concatenate([np.arange(side // 2, 2 * side) / side for side in BOX]))
    # Midpoints represent the intervals between steps. At a step, the product may round either way.
    factors = np.concatenate([(steps[:-1] + steps[1:]) / 2, steps])
    return {slow_augmentations.new_size(shape, factor, BOX[::-1]) for factor in factors}


def sizes(shape, **changes):
    config = Augment(scale=BOX, **changes)
    return np.array(samples(lambda seed: augmentations.scaled_size(tf.constant([*shape, 3]), seed, config))).T


def size_faults(shape, found):
    """Return the distance of the distributions of heights, and the fraction of sizes that no factor gives."""
    allowed = reachable_sizes(shape)
    return (
        distance(found[:, 0], expected_sizes(shape)[:, 0]),
        np.mean([tuple(int(side) for side in size) not in allowed for size in found]),
    )


SIZE_BOUNDS = (0.05, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_distribution_of_sizes(shape):
    assert all(fault <= bound for fault, bound in zip(size_faults(shape, sizes(shape)), SIZE_BOUNDS))


@pytest.mark.parametrize("change", [{"scale_range": (0.5, 1.75)}, {"scale_range": (0.75, 2.0)}])
def test_wrong_range_of_factors_is_detected(change):
    assert size_faults(SHAPES[1], sizes(SHAPES[1], **change))[0] > 2 * SIZE_BOUNDS[0]


@exhaustive
def test_log_uniform_factors_are_detected(monkeypatch):
    plant(monkeypatch, SCALE, lambda draw, low, high: tf.exp(draw(np.log(low), np.log(high))))
    assert size_faults(SHAPES[1], sizes(SHAPES[1]))[0] > 2 * SIZE_BOUNDS[0]


@exhaustive
def test_truncated_instead_of_rounded_sizes_are_detected(monkeypatch):
    def truncated(height, width, box):
        height, width, box = (tf.cast(value, tf.float64) for value in (height, width, box))
        factor = tf.minimum(
            tf.reduce_max(box) / tf.maximum(height, width), tf.reduce_min(box) / tf.minimum(height, width)
        )
        return tuple(tf.cast(side * factor, tf.int32) for side in (height, width))

    monkeypatch.setattr(augmentations, "fit_size", truncated)
    assert size_faults(SHAPES[1], sizes(SHAPES[1]))[1] > 0.1


# Offsets and flips follow from the label, in which every pixel has a different id.

IDS = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
ROOM = (5, 7)


def placements(**changes):
    """Return the counts (rows, columns) of the crops' corners, and the fraction of flipped crops."""
    config = Augment(scale_range=(1.0, 1.0), crop=(8, 10), cat_max_ratio=1.0, photometric=False, **changes)
    image = tf.zeros((*IDS.shape, 3), tf.uint8)
    labels = samples(lambda seed: augment(image, tf.constant(IDS), seed, config)[1])
    flipped = labels[:, 0, 0] > labels[:, 0, 1]
    corner = np.where(flipped, labels[:, 0, -1], labels[:, 0, 0])
    counts = np.zeros(ROOM, int)
    np.add.at(counts, np.divmod(corner, IDS.shape[1]), 1)
    return counts, flipped.mean()


def unevenness(counts):
    """Return Pearson's chi-square statistic of equally likely corners, in standard deviations from its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


UNEVEN_BOUND, FLIP_BOUND = 4, 0.03


def test_distribution_of_offsets_and_flips():
    counts, flips = placements()
    reference = np.zeros(ROOM, int)
    random = np.random.default_rng(2)
    for _ in range(COUNT):
        reference[slow_augmentations.crop_corner(IDS, (8, 10), 1.0, 10, random)[0]] += 1
    assert unevenness(counts) < UNEVEN_BOUND and unevenness(reference) < UNEVEN_BOUND
    assert abs(flips - 0.5) < FLIP_BOUND


@exhaustive
@pytest.mark.parametrize(
    "change",
    [
        # The last row and column are never drawn, or too seldom.
        lambda draw, *_: draw(0, 1) * [4 / 5, 6 / 7],
        lambda draw, *_: tf.minimum(draw(0, 1) * [6 / 5, 8 / 7], 0.999),
    ],
)
def test_offsets_off_by_one_are_detected(monkeypatch, change):
    plant(monkeypatch, CROP, change)
    assert unevenness(placements()[0]) > 2 * UNEVEN_BOUND


@exhaustive
def test_wrong_flip_rate_is_detected():
    assert abs(placements(flip=0.4)[1] - 0.5) > 2 * FLIP_BOUND


@exhaustive
def test_flips_correlated_with_the_factor_are_detected(monkeypatch):
    original = augmentations.uniform
    monkeypatch.setattr(
        augmentations,
        "uniform",
        lambda seed, purpose, *rest, **more: original(seed, SCALE if purpose == FLIP else purpose, *rest, **more),
    )
    assert correlation_of_flips() > 0.5


def test_flips_are_independent_of_the_factor():
    assert correlation_of_flips() < 0.08


def correlation_of_flips():
    def drawn(seed):
        return augmentations.uniform(seed, SCALE), tf.cast(augmentations.uniform(seed, FLIP) < 0.5, tf.float32)

    return abs(np.corrcoef(*samples(drawn))[0, 1])


# Crops and the classes in them.


def uneven_label():
    """Return a label dominated by one class: one crop in 11 is acceptable, so that the number of tries matters."""
    label = np.zeros((24, 30), np.uint8)
    label[:11, :8] = np.random.default_rng(3).integers(1, 4, (11, 8))
    label[10:14, 20:] = 255
    return label


UNEVEN = uneven_label()
WINDOW = (8, 10)


def largest_fractions(corners):
    """Return the fraction of the largest class in each crop of the uneven label."""
    fractions = []
    for top, left in corners:
        window = UNEVEN[top : top + WINDOW[0], left : left + WINDOW[1]]
        counts = np.bincount(window[window != 255], minlength=4)
        fractions.append(counts.max() / counts.sum())
    return np.array(fractions)


def fraction_faults(**changes):
    """Return the error of the fraction of crops over the limit, and the distance of the largest fractions."""
    config = Augment(crop=WINDOW, **changes)
    corners = np.array(samples(lambda seed: crop_window(tf.constant(UNEVEN), seed, config)[:2], 6000)).T
    # A crop over the limit is used if eleven crops in a row are over it; the last one is not tested.
    expected = np.mean(all_fractions() >= 0.75) ** 11
    found = largest_fractions(corners)
    return abs(np.mean(found >= 0.75) - expected), distance(found, reference_fractions())


def all_fractions():
    return largest_fractions(np.ndindex(UNEVEN.shape[0] - WINDOW[0] + 1, UNEVEN.shape[1] - WINDOW[1] + 1))


@functools.cache
def reference_fractions():
    random = np.random.default_rng(4)
    drawn = [slow_augmentations.crop_corner(UNEVEN, WINDOW, 0.75, 10, random) for _ in range(3000)]
    bad = np.mean(all_fractions() >= 0.75)
    # The number of rejections has a geometric distribution, truncated at ten.
    rejected = np.bincount([count for _, count in drawn], minlength=11) / len(drawn)
    assert np.abs(rejected - np.array([bad**count * (1 - bad) for count in range(10)] + [bad**10])).max() < 0.03
    return largest_fractions([corner for corner, _ in drawn])


FRACTION_BOUNDS = (0.019, 0.045)


def test_distribution_of_the_largest_class():
    assert all(fault < bound for fault, bound in zip(fraction_faults(), FRACTION_BOUNDS))


@pytest.mark.parametrize(
    "changes",
    all_of(
        [{"cat_max_ratio": 0.9}],
        *[{"crop_tries": 9}, {"cat_max_ratio": 0.6}, {"crop_tries": 12}, {"cat_max_ratio": 1.0}],
    ),
)
def test_wrong_rule_for_crops_is_detected(changes):
    assert any(fault > bound for fault, bound in zip(fraction_faults(**changes), FRACTION_BOUNDS))


# The complete pipeline.


def scene():
    """Return a small image with soft colors, and a label with several classes and ignored pixels."""
    rows, columns = np.mgrid[:40, :60]
    image = 128 + 70 * np.stack([np.sin(rows / 5), np.cos(columns / 7), np.sin((rows + columns) / 9)], -1)
    label = ((rows // 13) + 3 * (columns // 22)).astype(np.uint8)
    label[30:, 50:] = 255
    return image.astype(np.uint8), label


CROP_SIZE = (32, 48)


def whole(config, count=1200):
    image, label = scene()
    settings = Config(augment=config)

    def example(seed):
        found, ids = augment(tf.constant(image), tf.constant(label), seed, config)
        padded, ids, inside = batching.finish_example(found, ids, tuple(range(256)), config)
        return network_inputs({"image": padded[None], "inside": inside[None]}, settings)[0], ids

    images, labels = samples(example, count)
    return images * np.float32(settings.data.std) + np.float32(settings.data.mean), labels


@functools.cache
def expected_whole(centered, count=1200):
    image, label = scene()
    random, mean, std = np.random.default_rng(6), Config().data.mean, Config().data.std
    found = []
    for _ in range(count):
        augmented, ids = slow_augmentations.augment(image[..., ::-1], label, random, (60, 40), CROP_SIZE)
        # Both systems pad the normalized image with 0.
        normalized = (augmented[..., ::-1] - np.array(mean)) / std
        found.append(slow_augmentations.pad(normalized, ids, CROP_SIZE, centered, 0))
    return np.array([padded for padded, _ in found]) * std + mean, np.array([ids for _, ids in found])


def whole_faults(config, centered):
    """Return distances of mean values, contrasts, histograms, labels, and the amount and position of padding."""
    found, labels = whole(config)
    expected, ids = expected_whole(centered)
    bins = np.arange(0, 257, 8)
    histograms = [np.histogram(values, bins)[0] / values.size for values in (found.round(), expected.round())]
    fractions = [np.bincount(values.ravel(), minlength=256) / values.size for values in (labels, ids)]
    corner = [(values[:, 0, 0] == 255).mean() for values in (labels, ids)]
    return {
        "mean": distance(found.mean((1, 2, 3)), expected.mean((1, 2, 3))),
        "deviation": distance(found.std((1, 2, 3)), expected.std((1, 2, 3))),
        "histogram": np.abs(histograms[0] - histograms[1]).sum() / 2,
        "labels": np.abs(fractions[0] - fractions[1]).sum() / 2,
        "padding": distance((labels == 255).mean((1, 2)), (ids == 255).mean((1, 2))),
        "corner": abs(corner[0] - corner[1]),
    }


WHOLE_BOUNDS = {"mean": 0.08, "deviation": 0.08, "histogram": 0.02, "labels": 0.03, "padding": 0.08, "corner": 0.05}
CORRECT = Augment(scale=(40, 60), crop=CROP_SIZE)


@pytest.mark.parametrize("pad", ["corner", "center"])
def test_distribution_of_the_complete_pipeline(pad):
    faults = whole_faults(dataclasses.replace(CORRECT, pad=pad), pad == "center")
    assert all(faults[name] < bound for name, bound in WHOLE_BOUNDS.items()), faults


@exhaustive
@pytest.mark.parametrize(
    "name, changes",
    [
        ("corner", {"pad": "center"}),
        ("histogram", {"pad_color": "black"}),
        ("padding", {"scale_range": (0.75, 2.0)}),
        ("deviation", {"photometric": False}),
        ("labels", {"scale_range": (1.0, 2.0)}),
    ],
)
def test_wrong_pipeline_is_detected(name, changes):
    assert whole_faults(dataclasses.replace(CORRECT, **changes), False)[name] > WHOLE_BOUNDS[name]


def test_labels_have_no_new_values():
    image, label = scene()
    _, labels = whole(CORRECT, 300)
    assert set(np.unique(labels)) <= set(np.unique(label)) | {255}
