"""The distribution of distorted colours against the slow reference's, and that planted mistakes would be seen.

Every check is a distance with a bound: the program stays below it, each mistake goes above. All seeds are fixed.
"""

import functools

import cv2
import numpy as np
import pytest
import tensorflow as tf

from kseg.input_pipeline import augmentations
from kseg.input_pipeline.augmentations import BRIGHTNESS, CONTRAST, HUE, ORDER, SATURATION
from tests.helpers import slow_augmentations
from tests.helpers.distributions import COUNT, constant, distance, plant, ranged, samples

# Grey, saturated and pale colours, bright and dark, so that every step shows and order does too.
COLOURS = np.array([[[110, 110, 110], [230, 40, 60], [40, 160, 90], [100, 90, 200], [250, 200, 150], [60, 70, 20],
                     [200, 180, 60], [130, 90, 110]]], np.uint8)


def distorted(count=2000):
    """Each channel of each colour after distortion, (samples, statistics)."""
    found = samples(lambda seed: augmentations.distort(tf.constant(COLOURS, tf.float32), seed), count)
    return found.reshape(count, -1).astype(float)


@functools.cache
def expected_colours(step):
    random = np.random.default_rng(5)
    # Wide enough for OpenCV's vector instructions, which round otherwise than its remaining columns.
    wide = np.tile(COLOURS[..., ::-1], (1, 4, 1))
    found = [step(wide, random)[:, :COLOURS.shape[1], ::-1] for _ in range(2 * COUNT)]
    return np.array(found, float).reshape(len(found), -1)


def largest_distance(found, expected):
    # One grey level is what roundings may differ by.
    return max(distance(*pair, slack=1) for pair in zip(found.T, expected.T))


COIN = 16
STEPS = {BRIGHTNESS: slow_augmentations.brightness, CONTRAST: slow_augmentations.contrast,
         SATURATION: slow_augmentations.saturation, HUE: slow_augmentations.hue}


def step_faults(monkeypatch, purpose):
    """With this step alone: how far its share of pictures is from a half, and its results' distance."""
    for other in STEPS.keys() - {purpose}:
        plant(monkeypatch, other + COIN, constant(1.0))
    found = distorted()
    changed = (found != COLOURS.ravel()).any(1)
    return abs(changed.mean() - 0.5), largest_distance(found[changed], expected_colours(STEPS[purpose]))


STEP_BOUNDS = (0.04, 0.08)


@pytest.mark.parametrize("purpose", STEPS)
def test_each_step_of_the_distortion(monkeypatch, purpose):
    assert all(fault < bound for fault, bound in zip(step_faults(monkeypatch, purpose), STEP_BOUNDS))


MISTAKES = {
    "brightness within 24": (BRIGHTNESS, 0, ranged(-24, 24)),
    "contrast to 1.25": (CONTRAST, 0, ranged(0.5, 1.25)),
    "saturation from 0.75": (SATURATION, 0, ranged(0.75, 1.5)),
    "hue within 9": (HUE, 0, ranged(-9, 9)),
    "hue only up": (HUE, 0, ranged(0, 18)),
    "brightness in 6 of 10": (BRIGHTNESS, COIN, ranged(-0.1, 0.9)),
    "contrast in 4 of 10": (CONTRAST, COIN, ranged(0.1, 1.1)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_step_is_seen(monkeypatch, name):
    purpose, coin, change = MISTAKES[name]
    plant(monkeypatch, purpose + coin, change)
    assert any(fault > bound for fault, bound in zip(step_faults(monkeypatch, purpose), STEP_BOUNDS))


COLOUR_BOUND = 0.05


def test_all_steps_together():
    assert largest_distance(distorted(), expected_colours(slow_augmentations.photometric)) < COLOUR_BOUND


def test_steps_that_happen_together_are_seen(monkeypatch):
    honest = augmentations.uniform
    monkeypatch.setattr(augmentations, "uniform", lambda seed, purpose, *rest, **more: honest(
        seed, BRIGHTNESS + COIN if purpose == CONTRAST + COIN else purpose, *rest, **more))
    assert largest_distance(distorted(), expected_colours(slow_augmentations.photometric)) > COLOUR_BOUND


def share_of_contrast_first(monkeypatch):
    """How often strong contrast comes before strong saturation, told from what is cut off between them."""
    for purpose, value in {BRIGHTNESS: 0, CONTRAST: 1.5, SATURATION: 1.5, HUE: 0}.items():
        plant(monkeypatch, purpose, constant(value))
        plant(monkeypatch, purpose + COIN, constant(0.0))
    wide = np.tile(COLOURS[..., ::-1], (1, 4, 1))
    saturated, first = (cv2.cvtColor(image, cv2.COLOR_BGR2HSV) for image in (
        wide, slow_augmentations.as_bytes(wide * 1.5)))
    for hsv in (saturated, first):
        hsv[..., 1] = slow_augmentations.as_bytes(hsv[..., 1] * 1.5)
    saturated, first = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[:, :COLOURS.shape[1]] for hsv in (saturated, first))
    last = slow_augmentations.as_bytes(saturated * 1.5)
    found = distorted(1000)
    # A hue step that shifts by 0 comes between and rounds once more.
    errors = np.array([np.abs(found - expected.ravel().astype(float)).mean(1) for expected in (first, last)])
    assert errors.min(0).max() < 1 and errors.max(0).min() > 4
    return np.mean(errors[0] < errors[1])


def test_contrast_comes_first_in_every_second_picture(monkeypatch):
    assert abs(share_of_contrast_first(monkeypatch) - 0.5) < 0.06


def test_another_share_of_contrast_first_is_seen(monkeypatch):
    plant(monkeypatch, ORDER, ranged(0.15, 1.15))
    assert abs(share_of_contrast_first(monkeypatch) - 0.5) > 0.06
