"""Make up evaluations of a few images, in the files that kseg.evaluate writes, without a model."""

import json

import numpy as np

from kseg.evaluation import metrics, results

CLASSES = ("sky", "road", "pole", "car")


def random_matrices(generator, images):
    """Return int64 (images, 4, 4) confusion matrices; about 60% of the classes occur in an image."""
    labels = generator.integers(0, 400, (images, 4)) * (generator.random((images, 4)) < 0.6)
    return predicted_matrices(generator, labels, np.full((images, 4), 0.8))


def predicted_matrices(generator, labels, accuracy):
    """Return int64 (images, C, C) confusion matrices with given row sums and approximate accuracy.

    `labels` and `accuracy` are (images, C). Wrong pixels are spread evenly over the classes.
    """
    images, classes = labels.shape
    result = np.zeros((images, classes, classes), np.int64)
    for image in range(images):
        for row in range(classes):
            hits = generator.binomial(labels[image, row], accuracy[image, row])
            result[image, row] = generator.multinomial(labels[image, row] - hits, [1 / classes] * classes)
            result[image, row, row] += hits
    return result


def write(directory, matrices, names=None, classes=CLASSES, changes=None):
    """Write metrics.json, with some keys changed, and per_image.npz; return the path of metrics.json."""
    directory.mkdir(parents=True, exist_ok=True)
    names = names or [f"/data/val/{index}.png" for index in range(len(matrices))]
    scores = {
        "split": "val",
        "images": len(matrices),
        **metrics.summarize(matrices.sum(0), classes),
        "provenance": {"dataset": "camvid"},
    } | (changes or {})
    plain = json.loads(json.dumps(scores), parse_constant=lambda name: None)
    (directory / "metrics.json").write_text(json.dumps(plain))
    np.savez_compressed(
        directory / "per_image.npz",
        names=np.array(names),
        classes=np.array(classes),
        hits=np.diagonal(matrices, axis1=1, axis2=2),
        truth=matrices.sum(2),
        predicted=matrices.sum(1),
    )
    return directory / "metrics.json"


def evaluation(matrices, classes=CLASSES):
    return results.Evaluation(
        None,
        "camvid",
        "val",
        tuple(map(str, range(len(matrices)))),
        classes,
        np.diagonal(matrices, axis1=1, axis2=2),
        matrices.sum(2),
        matrices.sum(1),
    )


def summarized_scores(matrix):
    """Return the scores of `metrics.summarize` in the order of `metrics.ious_and_means`."""
    summary = metrics.summarize(matrix, CLASSES)
    return [row["iou"] for row in summary["classes"].values()] + [summary[name] for name in metrics.MEANS]
