"""Write a small dataset of images of many sizes, build a model for it, and count both by plain loops."""

import keras
import numpy as np

from kseg.config import Config, sections
from kseg.config.sections import Evaluate, Model
from kseg.inference.prediction import predictor, protocol_of
from tests.helpers import small_sets
from tests.helpers.small_training import small_network

CLASSES = 3
SETTINGS = {
    "whole": Evaluate(),
    "resized": Evaluate(resize=(48, 80)),
    "windows": Evaluate(window=(32, 40), stride=(20, 24)),
    "several scales": Evaluate(scales=(0.5, 1.25), flip=True),
}


def write(directory, count):
    """Write a split "val" of `count` images of different sizes; the third image has no labeled pixels."""
    generator = np.random.default_rng(7)
    for index in range(count):
        size = tuple(int(side) for side in generator.integers(20, 70, 2))
        label = generator.choice([0, 1, 1, 255], (size[0] // 5 + 1, size[1] // 5 + 1)).repeat(5, 0).repeat(5, 1)
        label = label[: size[0], : size[1]]
        if index == 2:
            label[:] = 255
        image = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
        small_sets.example(directory, "val", f"e{index:02d}", label, image)
    (directory / "classes.txt").write_text("sky\nground\nnever\n")


def config(directory, evaluate):
    return Config(
        data=sections.Data(name="folder", directory=str(directory)),
        evaluate=evaluate,
        model=Model(head="fcn", backbone="resnet18", width=4, channels=8, auxiliary_channels=0),
    )


def model(settings):
    """Build a network of three layers whose predicted classes vary from pixel to pixel."""
    keras.utils.set_random_seed(5)
    tiny = small_network(settings.model, CLASSES)
    layer = tiny.get_layer("last")
    kernel, bias = layer.get_weights()
    layer.set_weights([np.random.default_rng(1).normal(0, 20, kernel.shape), bias])
    return tiny


def slow_counts(model, settings, images, labels):
    """Count pixel by pixel; return the confusion matrix (C, C) and hits, labels and predictions (N, C)."""
    predict = predictor(model, protocol_of(settings))
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    tables = np.zeros((3, len(images), CLASSES), np.int64)
    for index, (image, label_map) in enumerate(zip(images, labels)):
        for label, prediction in zip(label_map.ravel(), predict(image).ravel()):
            if label != 255:
                matrix[label, prediction] += 1
                tables[0, index, label] += label == prediction
                tables[1, index, label] += 1
                tables[2, index, prediction] += 1
    return matrix, *tables
