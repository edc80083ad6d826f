"""One way of counting in TensorFlow, for counting.py: kseg's confusion matrix, that of its boundary bands, or Keras'.

    python kseg_counting.py MAPS confusion|counts|keras
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import measured_process


def counter(kind: str, classes: int):
    """Return what counts a label and a prediction (H, W), and what gives the matrix of all so far."""
    import keras
    import tensorflow as tf

    from kseg.evaluation import confusion, metrics

    if kind == "keras":
        metric = keras.metrics.MeanIoU(classes, ignore_class=255)
        return metric.update_state, lambda: np.asarray(metric.total_cm).astype(np.int64)
    count = {"confusion": confusion.confusion, "counts": confusion.banded_confusion}[kind]
    bands = () if kind == "confusion" else (len(metrics.BOUNDARY_WIDTHS) + 1,)
    total = tf.Variable(tf.zeros((*bands, classes, classes), tf.int64))
    return (lambda label, prediction: total.assign_add(count(label[None], prediction[None], classes)),
            lambda: total.numpy().reshape(-1, classes, classes).sum(0))


def build(path: Path, kind: str) -> tuple[dict, Callable[[], int]]:
    """Return what this way finds in all maps, and a function that counts one map more and returns 1."""
    import tensorflow as tf

    with np.load(path) as file:
        pairs = [(tf.constant(label), tf.constant(prediction.astype(np.int32)))
                 for label, prediction in zip(file["labels"], file["predictions"])]
        update, matrix = counter(kind, int(file["classes"]))
    compiled = tf.function(update, input_signature=[
        tf.TensorSpec((None, None), tf.uint8), tf.TensorSpec((None, None), tf.int32)])
    for pair in pairs:
        compiled(*pair)
    found = matrix()
    turn = iter(range(10 ** 9))

    def step() -> int:
        compiled(*pairs[next(turn) % len(pairs)])
        return 1

    return {"versions": {package: importlib.metadata.version(package) for package in ("tensorflow", "keras")},
            "hits": np.diag(found).tolist(), "truth": found.sum(1).tolist(), "predicted": found.sum(0).tolist()}, step


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    measured_process.serve(lambda: build(Path(sys.argv[1]), sys.argv[2]))
