"""The distribution of augmented examples against the slow reference's, and that planted mistakes would be seen.

Every check is a distance with a bound: the program stays below it, each mistake goes above. All seeds are fixed.
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
from tests.helpers.whole_images import augment, crop_window

# Sizes.

PICTURES = [(1024, 2048), (512, 683), (500, 375), (333, 500)]
BOX = (512, 2048)


@functools.cache
def expected_sizes(shape):
    factors = np.random.default_rng(1).uniform(0.5, 2, COUNT)
    return np.array([slow_augmentations.new_size(shape, factor, BOX[::-1]) for factor in factors])


@functools.cache
def reachable_sizes(shape):
    """Every size that some factor gives; a box changes only where one of its sides, times the factor, is whole."""
    steps = np.unique(np.concatenate([np.arange(side // 2, 2 * side) / side for side in BOX]))
    # The first middle is one between two steps; at a step itself both readings of the product are allowed.
    factors = np.concatenate([(steps[:-1] + steps[1:]) / 2, steps])
    return {slow_augmentations.new_size(shape, factor, BOX[::-1]) for factor in factors}


def sizes(shape, **changes):
    config = Augment(scale=BOX, **changes)
    return np.array(samples(lambda seed: augmentations.scaled_size(tf.constant([*shape, 3]), seed, config))).T


def size_faults(shape, found):
    """The distance of the heights' distributions, and the share of sizes that no factor gives."""
    allowed = reachable_sizes(shape)
    return (distance(found[:, 0], expected_sizes(shape)[:, 0]),
            np.mean([tuple(int(side) for side in size) not in allowed for size in found]))


SIZE_BOUNDS = (0.05, 0.0)


@pytest.mark.parametrize("shape", PICTURES)
def test_sizes(shape):
    assert all(fault <= bound for fault, bound in zip(size_faults(shape, sizes(shape)), SIZE_BOUNDS))


@pytest.mark.parametrize("change", [{"scale_range": (0.5, 1.75)}, {"scale_range": (0.75, 2.0)}])
def test_another_range_of_factors_is_seen(change):
    assert size_faults(PICTURES[1], sizes(PICTURES[1], **change))[0] > 2 * SIZE_BOUNDS[0]


def test_factors_uniform_in_their_logarithm_are_seen(monkeypatch):
    plant(monkeypatch, SCALE, lambda draw, low, high: tf.exp(draw(np.log(low), np.log(high))))
    assert size_faults(PICTURES[1], sizes(PICTURES[1]))[0] > 2 * SIZE_BOUNDS[0]


def test_sizes_cut_off_instead_of_rounded_are_seen(monkeypatch):
    def cut(height, width, box):
        height, width, box = (tf.cast(value, tf.float64) for value in (height, width, box))
        factor = tf.minimum(tf.reduce_max(box) / tf.maximum(height, width),
                            tf.reduce_min(box) / tf.minimum(height, width))
        return tuple(tf.cast(side * factor, tf.int32) for side in (height, width))

    monkeypatch.setattr(augmentations, "fit_size", cut)
    assert size_faults(PICTURES[1], sizes(PICTURES[1]))[1] > 0.1


# Offsets and flips, told from the label: every pixel has its own id.

IDS = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
ROOM = (5, 7)


def placements(**changes):
    """Counts (rows, columns) of the crops' corners, and the share of flipped ones."""
    config = Augment(scale_range=(1.0, 1.0), crop=(8, 10), cat_max_ratio=1.0, photometric=False, **changes)
    image = tf.zeros((*IDS.shape, 3), tf.uint8)
    labels = samples(lambda seed: augment(image, tf.constant(IDS), seed, config)[1])
    flipped = labels[:, 0, 0] > labels[:, 0, 1]
    corner = np.where(flipped, labels[:, 0, -1], labels[:, 0, 0])
    counts = np.zeros(ROOM, int)
    np.add.at(counts, np.divmod(corner, IDS.shape[1]), 1)
    return counts, flipped.mean()


def unevenness(counts):
    """Pearson's chi-square of equally likely corners, less its mean, in its deviations."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


UNEVEN_BOUND, FLIP_BOUND = 4, 0.03


def test_offsets_and_flips():
    counts, flips = placements()
    reference = np.zeros(ROOM, int)
    random = np.random.default_rng(2)
    for _ in range(COUNT):
        reference[slow_augmentations.crop_corner(IDS, (8, 10), 1.0, 10, random)[0]] += 1
    assert unevenness(counts) < UNEVEN_BOUND and unevenness(reference) < UNEVEN_BOUND
    assert abs(flips - 0.5) < FLIP_BOUND


@pytest.mark.parametrize("change", [
    # The last row and column are never reached, or too seldom.
    lambda draw, *_: draw(0, 1) * [4 / 5, 6 / 7], lambda draw, *_: tf.minimum(draw(0, 1) * [6 / 5, 8 / 7], 0.999)])
def test_offsets_off_by_one_are_seen(monkeypatch, change):
    plant(monkeypatch, CROP, change)
    assert unevenness(placements()[0]) > 2 * UNEVEN_BOUND


def test_another_flip_rate_is_seen():
    assert abs(placements(flip=0.4)[1] - 0.5) > 2 * FLIP_BOUND


def test_flips_that_go_with_the_factor_are_seen(monkeypatch):
    honest = augmentations.uniform
    monkeypatch.setattr(augmentations, "uniform", lambda seed, purpose, *rest, **more: honest(
        seed, SCALE if purpose == FLIP else purpose, *rest, **more))
    assert correlation_of_flips() > 0.5


def test_flips_are_independent_of_the_factor():
    assert correlation_of_flips() < 0.08


def correlation_of_flips():
    def drawn(seed):
        return augmentations.uniform(seed, SCALE), tf.cast(augmentations.uniform(seed, FLIP) < 0.5, tf.float32)

    return abs(np.corrcoef(*samples(drawn))[0, 1])


# Crops by their classes.

def uneven_label():
    """One class in most places: about one crop of 11 is acceptable, where tries count most."""
    label = np.zeros((24, 30), np.uint8)
    label[:11, :8] = np.random.default_rng(3).integers(1, 4, (11, 8))
    label[10:14, 20:] = 255
    return label


UNEVEN = uneven_label()
WINDOW = (8, 10)


def largest_shares(corners):
    """The largest class's share in each crop of the uneven label."""
    shares = []
    for top, left in corners:
        window = UNEVEN[top:top + WINDOW[0], left:left + WINDOW[1]]
        counts = np.bincount(window[window != 255], minlength=4)
        shares.append(counts.max() / counts.sum())
    return np.array(shares)


def share_faults(**changes):
    """How far the share of crops over the limit is from what it must be, and the shares' own distance."""
    config = Augment(crop=WINDOW, **changes)
    corners = np.array(samples(lambda seed: crop_window(tf.constant(UNEVEN), seed, config)[:2], 6000)).T
    every = largest_shares(np.ndindex(UNEVEN.shape[0] - WINDOW[0] + 1, UNEVEN.shape[1] - WINDOW[1] + 1))
    # Eleven crops in a row are over it, the last of which is taken as it is.
    expected = np.mean(every >= 0.75) ** 11
    found = largest_shares(corners)
    return abs(np.mean(found >= 0.75) - expected), distance(found, reference_shares())


@functools.cache
def reference_shares():
    random = np.random.default_rng(4)
    drawn = [slow_augmentations.crop_corner(UNEVEN, WINDOW, 0.75, 10, random) for _ in range(3000)]
    every = largest_shares(np.ndindex(UNEVEN.shape[0] - WINDOW[0] + 1, UNEVEN.shape[1] - WINDOW[1] + 1))
    bad = np.mean(every >= 0.75)
    # Rejections have a geometric distribution, cut off at ten.
    rejected = np.bincount([count for _, count in drawn], minlength=11) / len(drawn)
    assert np.abs(rejected - np.array([bad**count * (1 - bad) for count in range(10)] + [bad**10])).max() < 0.03
    return largest_shares([corner for corner, _ in drawn])


SHARE_BOUNDS = (0.019, 0.045)


def test_crops_and_their_largest_shares():
    assert all(fault < bound for fault, bound in zip(share_faults(), SHARE_BOUNDS))


@pytest.mark.parametrize("changes", [
    {"cat_max_ratio": 0.9}, {"cat_max_ratio": 0.6}, {"crop_tries": 9}, {"crop_tries": 12}, {"cat_max_ratio": 1.0}])
def test_another_rule_for_crops_is_seen(changes):
    assert any(fault > bound for fault, bound in zip(share_faults(**changes), SHARE_BOUNDS))


# The whole pipeline.

def scene():
    """A small picture with soft colours and a label with several classes and ignored pixels."""
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
        return batching.finish_example(found, ids, IDS, config, settings.data.mean, settings.data.std)

    pictures, labels = samples(example, count)
    return pictures * np.float32(settings.data.std) + np.float32(settings.data.mean), labels


@functools.cache
def expected_whole(centred, count=1200):
    image, label = scene()
    random, mean, std = np.random.default_rng(6), Config().data.mean, Config().data.std
    found = []
    for _ in range(count):
        picture, ids = slow_augmentations.augment(image[..., ::-1], label, random, (60, 40), CROP_SIZE)
        # Both systems pad the normalised picture with 0.
        normal = (picture[..., ::-1] - np.array(mean)) / std
        found.append(slow_augmentations.pad(normal, ids, CROP_SIZE, centred, 0))
    return np.array([picture for picture, _ in found]) * std + mean, np.array([ids for _, ids in found])


def whole_faults(config, centred):
    """Distances: mean values, contrasts within pictures, all values' histograms, labels, padding where and how much."""
    found, labels = whole(config)
    truth, ids = expected_whole(centred)
    bins = np.arange(0, 257, 8)
    histograms = [np.histogram(values, bins)[0] / values.size for values in (found.round(), truth.round())]
    shares = [np.bincount(values.ravel(), minlength=256) / values.size for values in (labels, ids)]
    corner = [(values[:, 0, 0] == 255).mean() for values in (labels, ids)]
    return {"mean": distance(found.mean((1, 2, 3)), truth.mean((1, 2, 3))),
            "deviation": distance(found.std((1, 2, 3)), truth.std((1, 2, 3))),
            "histogram": np.abs(histograms[0] - histograms[1]).sum() / 2,
            "labels": np.abs(shares[0] - shares[1]).sum() / 2,
            "padding": distance((labels == 255).mean((1, 2)), (ids == 255).mean((1, 2))),
            "corner": abs(corner[0] - corner[1])}


WHOLE_BOUNDS = {"mean": 0.08, "deviation": 0.08, "histogram": 0.02, "labels": 0.03, "padding": 0.08, "corner": 0.05}
HONEST = Augment(scale=(40, 60), crop=CROP_SIZE)


@pytest.mark.parametrize("pad", ["corner", "center"])
def test_the_whole_pipeline(pad):
    faults = whole_faults(dataclasses.replace(HONEST, pad=pad), pad == "center")
    assert all(faults[name] < bound for name, bound in WHOLE_BOUNDS.items()), faults


@pytest.mark.parametrize("name, changes", [
    ("corner", {"pad": "center"}), ("histogram", {"pad_color": "black"}), ("padding", {"scale_range": (0.75, 2.0)}),
    ("deviation", {"photometric": False}), ("labels", {"scale_range": (1.0, 2.0)})])
def test_another_pipeline_is_seen(name, changes):
    assert whole_faults(dataclasses.replace(HONEST, **changes), False)[name] > WHOLE_BOUNDS[name]


def test_no_label_value_is_invented():
    image, label = scene()
    _, labels = whole(HONEST, 300)
    assert set(np.unique(labels)) <= set(np.unique(label)) | {255}
