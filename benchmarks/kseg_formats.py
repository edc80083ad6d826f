"""Run one format of an export for benchmarks.formats and benchmarks.precisions, from an image to class ids.

    PYTHON -m benchmarks.kseg_formats THREADS FORMAT DIRECTORY IDS_FILE HEIGHT WIDTH

The ids of the image are written as a NumPy file.
"""

import importlib
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks import measured_process

# The distribution that runs a format.
RUNTIMES = {"savedmodel": "tensorflow", "onnx": "onnxruntime", "openvino": "openvino", "litert": "ai-edge-litert"}


def build(
    threads: int, form: str, directory: Path, ids_file: Path, size: tuple[int, int]
) -> tuple[dict, Callable[[], int]]:
    """Return the description of the format and a step that predicts one image."""
    image = drawn_image(size)
    load = load_saved_model if form == "savedmodel" else importlib.import_module(f"kseg.exporting.{form}_file").load
    begin = time.perf_counter()
    predict = load(directory, threads)
    loaded = time.perf_counter() - begin
    np.save(ids_file, predict(image))

    def step() -> int:
        predict(image)
        return 1

    return {"versions": {RUNTIMES[form]: metadata.version(RUNTIMES[form])}, "load_seconds": loaded}, step


def load_saved_model(directory: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs a SavedModel's signature predict_tensor with a number of threads."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # The signature belongs to the model, which has to stay in memory.
    model = tf.saved_model.load(str(directory))
    return lambda images: model.signatures["predict_tensor"](image=images)["class_map"].numpy()


def drawn_image(size: tuple[int, int]) -> np.ndarray:
    """Return an image of patches of random colors, uint8 (1, height, width, 3)."""
    height, width = size
    colors = np.random.default_rng(0).integers(0, 256, (height // 32 + 1, width // 32 + 1, 3))
    return colors.repeat(32, axis=0).repeat(32, axis=1)[None, :height, :width].astype(np.uint8)


if __name__ == "__main__":
    measured_process.serve(
        lambda: build(
            int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), (int(sys.argv[5]), int(sys.argv[6]))
        )
    )
