"""Augment decoded images whose labels are class ids."""

import tensorflow as tf

from kseg.input_pipeline import augmentations

# The label table maps every value to itself.
IDS = tuple(range(256))


def reader(image):
    """Return a function that returns a window (top, left, bottom, right) of an image (H, W, 3)."""
    return lambda window: image[window[0] : window[2], window[1] : window[3]]


def augment(image, label, seed, config):
    return augmentations.augment(reader(image), label, tf.constant(IDS, tf.uint8), seed, config)


def crop_window(label, seed, config):
    return augmentations.crop(label, tuple(label.shape), tf.constant(IDS, tf.uint8), seed, config)[0]


def resize_window(image, size, window):
    return augmentations.resize_window(reader(image), tf.shape(image)[:2], size, window)
