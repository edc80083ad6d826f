"""Run one of kseg's heads for benchmarks.heads: a compiled model with random weights, from an image to class ids.

PYTHON -m benchmarks.kseg_heads THREADS HEAD HEIGHT WIDTH
"""

import sys
from collections.abc import Callable

import numpy as np

from benchmarks import measured_process

CLASSES = 19


def build(threads: int, head: str, height: int, width: int) -> tuple[dict, Callable[[], int]]:
    """Return the description of the model and a step that predicts one image."""
    import keras
    import tensorflow as tf

    from kseg import __version__, models
    from kseg.config import Config
    from kseg.config.sections import Model
    from kseg.inference import prediction
    from kseg.models.macs import count_macs

    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    config = Config(model=Model(head=head))
    model = models.build(config.model, CLASSES)
    main = models.main_only(model)
    predict = prediction.predictor(model, prediction.protocol_of(config))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

    def step() -> int:
        predict(image)
        return 1

    return {
        "versions": {"kseg": __version__, "TensorFlow": tf.__version__, "Keras": keras.__version__},
        "parameters": sum(int(np.prod(weight.shape)) for weight in main.trainable_weights),
        "multiply_adds": count_macs(main, (1, height, width, 3)),
        "ids": list(predict(image).shape),
    }, step


if __name__ == "__main__":
    measured_process.serve(lambda: build(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
