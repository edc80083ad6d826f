"""The distribution of distorted colors equals that of the slow reference, and planted mistakes are detected.

Each check bounds a distance, which the program keeps and every planted mistake exceeds. All seeds are fixed.
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
from tests.helpers.exhaustive import all_of, exhaustive

# Gray, saturated and pale colors, bright and dark, which reveal every step and the order of the steps.
COLORS = np.array(
    [
        [
            [110, 110, 110],
            [230, 40, 60],
            [40, 160, 90],
            [100, 90, 200],
            [250, 200, 150],
            [60, 70, 20],
            [200, 180, 60],
            [130, 90, 110],
        ]
    ],
    np.uint8,
)


def distorted(count=2000):
    """Return the channels of all colors after distortion, (samples, channels)."""
    found = samples(lambda seed: augmentations.distort(tf.constant(COLORS, tf.float32), seed), count)
    return found.reshape(count, -1).astype(float)


@functools.cache
def expected_colors(step):
    random = np.random.default_rng(5)
    # Wide enough for OpenCV's vector code, which rounds differently from its code for the remaining columns.
    wide = np.tile(COLORS[..., ::-1], (1, 4, 1))
    found = [step(wide, random)[:, : COLORS.shape[1], ::-1] for _ in range(2 * COUNT)]
    return np.array(found, float).reshape(len(found), -1)


def largest_distance(found, expected):
    # Rounding may differ by one gray level.
    return max(distance(*pair, slack=1) for pair in zip(found.T, expected.T))


COIN = 16
STEPS = {
    BRIGHTNESS: slow_augmentations.brightness,
    CONTRAST: slow_augmentations.contrast,
    SATURATION: slow_augmentations.saturation,
    HUE: slow_augmentations.hue,
}


def step_faults(monkeypatch, purpose):
    """Return the error of the frequency of a step applied alone, and the distance of its results."""
    for other in STEPS.keys() - {purpose}:
        plant(monkeypatch, other + COIN, constant(1.0))
    found = distorted()
    changed = (found != COLORS.ravel()).any(1)
    return abs(changed.mean() - 0.5), largest_distance(found[changed], expected_colors(STEPS[purpose]))


STEP_BOUNDS = (0.04, 0.08)


@pytest.mark.parametrize("purpose", STEPS)
def test_distribution_of_each_step(monkeypatch, purpose):
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


@pytest.mark.parametrize("name", all_of(list(MISTAKES)[:1], *list(MISTAKES)[1:]))
def test_mistake_in_a_step_is_detected(monkeypatch, name):
    purpose, coin, change = MISTAKES[name]
    plant(monkeypatch, purpose + coin, change)
    assert any(fault > bound for fault, bound in zip(step_faults(monkeypatch, purpose), STEP_BOUNDS))


COLOR_BOUND = 0.05


def test_distribution_of_all_steps_together():
    assert largest_distance(distorted(), expected_colors(slow_augmentations.photometric)) < COLOR_BOUND


@exhaustive
def test_dependent_steps_are_detected(monkeypatch):
    original = augmentations.uniform
    monkeypatch.setattr(
        augmentations,
        "uniform",
        lambda seed, purpose, *rest, **more: original(
            seed, BRIGHTNESS + COIN if purpose == CONTRAST + COIN else purpose, *rest, **more
        ),
    )
    assert largest_distance(distorted(), expected_colors(slow_augmentations.photometric)) > COLOR_BOUND


def frequency_of_contrast_first(monkeypatch):
    """Return how often strong contrast precedes strong saturation, detected by the clipping between them."""
    for purpose, value in {BRIGHTNESS: 0, CONTRAST: 1.5, SATURATION: 1.5, HUE: 0}.items():
        plant(monkeypatch, purpose, constant(value))
        plant(monkeypatch, purpose + COIN, constant(0.0))
    wide = np.tile(COLORS[..., ::-1], (1, 4, 1))
    saturated, first = (
        cv2.cvtColor(image, cv2.COLOR_BGR2HSV) for image in (wide, slow_augmentations.as_bytes(wide * 1.5))
    )
    for hsv in (saturated, first):
        hsv[..., 1] = slow_augmentations.as_bytes(hsv[..., 1] * 1.5)
    saturated, first = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[:, : COLORS.shape[1]] for hsv in (saturated, first))
    last = slow_augmentations.as_bytes(saturated * 1.5)
    found = distorted(1000)
    # A hue step with a shift of 0 comes in between and rounds once more.
    errors = np.array([np.abs(found - expected.ravel().astype(float)).mean(1) for expected in (first, last)])
    assert errors.min(0).max() < 1 and errors.max(0).min() > 4
    return np.mean(errors[0] < errors[1])


def test_contrast_comes_first_for_half_of_the_images(monkeypatch):
    assert abs(frequency_of_contrast_first(monkeypatch) - 0.5) < 0.06


@exhaustive
def test_wrong_frequency_of_contrast_first_is_detected(monkeypatch):
    plant(monkeypatch, ORDER, ranged(0.15, 1.15))
    assert abs(frequency_of_contrast_first(monkeypatch) - 0.5) > 0.06
