"""Evaluations of a few images, made up: what kseg.evaluate writes, without a model."""

import json

import numpy as np

from kseg.evaluation import metrics, result_reading

CLASSES = ("sky", "road", "pole", "car")


def matrices(generator, images):
    """Return int64 (images, classes, classes) confusion matrices of images that hold about six classes of ten."""
    truth = generator.integers(0, 400, (images, 4)) * (generator.random((images, 4)) < 0.6)
    return predicted(generator, truth, np.full((images, 4), 0.8))


def predicted(generator, truth, shares):
    """Return matrices with these row sums, of which about `shares` are right and the rest of any class."""
    images, classes = truth.shape
    result = np.zeros((images, classes, classes), np.int64)
    for image in range(images):
        for row in range(classes):
            right = generator.binomial(truth[image, row], shares[image, row])
            result[image, row] = generator.multinomial(truth[image, row] - right, [1 / classes] * classes)
            result[image, row, row] += right
    return result


def write(directory, images, names=None, classes=CLASSES, changes=None):
    """Write what kseg.evaluate does of these matrices; `changes` are of metrics.json. Return metrics.json's path."""
    directory.mkdir(parents=True, exist_ok=True)
    names = names or [f"/data/val/{index}.png" for index in range(len(images))]
    figures = {"split": "val", "images": len(images), **metrics.summary(images.sum(0), classes),
               "provenance": {"dataset": "camvid"}} | (changes or {})
    plain = json.loads(json.dumps(figures), parse_constant=lambda name: None)
    (directory / "metrics.json").write_text(json.dumps(plain))
    np.savez_compressed(directory / "per_image.npz", names=np.array(names), classes=np.array(classes),
                        hits=np.diagonal(images, axis1=1, axis2=2), truth=images.sum(2), predicted=images.sum(1))
    return directory / "metrics.json"


def evaluation(images, classes=CLASSES):
    return result_reading.Evaluation(None, "camvid", "val", tuple(map(str, range(len(images)))), classes,
                                  np.diagonal(images, axis1=1, axis2=2), images.sum(2), images.sum(1))


def slow_scores(matrix):
    """Return what kseg.evaluation.metrics.summary says of a matrix, in the order of `result_reading.scores`."""
    figures = metrics.summary(matrix, CLASSES)
    return [row["iou"] for row in figures["classes"].values()] + [figures[name] for name in result_reading.MEANS]
