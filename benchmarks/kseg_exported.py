"""Run the signature predict_tensor of an export for benchmarks.precisions, from an image to class ids.

    PYTHON -m benchmarks.kseg_exported DIRECTORY THREADS HEIGHT WIDTH
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import measured_process


def build(directory: Path, threads: int, height: int, width: int) -> tuple[dict, Callable[[], int]]:
    """Return the description of the export and a step that predicts one image."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    model = tf.saved_model.load(str(directory))
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8))

    def step() -> int:
        model.signatures["predict_tensor"](image=image)["class_map"].numpy()
        return 1

    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return {"versions": {"TensorFlow": tf.__version__}, "bytes": size}, step


if __name__ == "__main__":
    measured_process.serve(lambda: build(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
