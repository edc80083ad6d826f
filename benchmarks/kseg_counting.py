"""Count pixels in TensorFlow for benchmarks.counting: kseg's confusion matrix, boundary bands, or Keras' metric.

PYTHON -m benchmarks.kseg_counting MAPS confusion|counts|keras
"""

import importlib.metadata
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import measured_process


def counter(kind: str, classes: int) -> tuple[Callable, Callable]:
    """Return a function that counts a label and a prediction (H, W), and one that returns the total matrix."""
    import keras
    import tensorflow as tf

    from kseg.evaluation import confusion, metrics

    if kind == "keras":
        metric = keras.metrics.MeanIoU(classes, ignore_class=255)
        return metric.update_state, lambda: np.asarray(metric.total_cm).astype(np.int64)
    count = {"confusion": confusion.confusion, "counts": confusion.banded_confusion}[kind]
    bands = () if kind == "confusion" else (len(metrics.BOUNDARY_WIDTHS) + 1,)
    total = tf.Variable(tf.zeros((*bands, classes, classes), tf.int64))
    return (
        lambda label, prediction: total.assign_add(count(label[None], prediction[None], classes)),
        lambda: total.numpy().reshape(-1, classes, classes).sum(0),
    )


def build(path: Path, kind: str) -> tuple[dict, Callable[[], int]]:
    """Return the description with the counts of all maps, and a step that counts one map."""
    import tensorflow as tf

    with np.load(path) as file:
        pairs = [
            (tf.constant(label), tf.constant(prediction.astype(np.int32)))
            for label, prediction in zip(file["labels"], file["predictions"])
        ]
        update, matrix = counter(kind, int(file["classes"]))
    compiled = tf.function(
        update, input_signature=[tf.TensorSpec((None, None), tf.uint8), tf.TensorSpec((None, None), tf.int32)]
    )
    for pair in pairs:
        compiled(*pair)
    total = matrix()
    endless = itertools.cycle(pairs)

    def step() -> int:
        compiled(*next(endless))
        return 1

    return {
        "versions": {package: importlib.metadata.version(package) for package in ("tensorflow", "keras")},
        "hits": np.diag(total).tolist(),
        "truth": total.sum(1).tolist(),
        "predicted": total.sum(0).tolist(),
    }, step


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    measured_process.serve(lambda: build(Path(sys.argv[1]), sys.argv[2]))
