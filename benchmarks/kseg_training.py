"""Run kseg's training step for benchmarks.training: forward pass, losses, gradients and update.

    PYTHON -m benchmarks.kseg_training THREADS HEAD HEIGHT WIDTH BATCH FORM

FORM is plain (as in `kseg.train`), xla (with train.jit_compile) or replicas (two virtual devices that share the batch).
Weights and the batch are random.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import measured_process

CLASSES, IGNORED = 19, 255
# Fraction of pixels without a class, similar to street scenes.
VOID = 0.1


def example(height: int, width: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return normalized float32 images (N, H, W, 3) and uint8 labels (N, H, W), the same for all systems."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, (batch, height, width), np.uint8)
    labels[random.random(labels.shape) < VOID] = IGNORED
    return random.normal(size=(batch, height, width, 3)).astype(np.float32), labels


def stepper(config, replicas: int, images: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    """Return a function that runs one step of `kseg.train` and returns the loss."""
    import tensorflow as tf

    from kseg.training import trainer
    from kseg.training.step import Steps

    strategy = trainer.prepare_strategy(config.train, replicas)
    with strategy.scope():
        model, optimizer, average = trainer.build_training(config, CLASSES, lambda line: None)
    steps = Steps(model, optimizer, config, strategy, average)
    batches = tf.data.Dataset.from_tensors({"image": images, "label": labels}).repeat()
    iterator = iter(strategy.experimental_distribute_dataset(batches))
    return lambda: float(steps.take(iterator, 1).losses[0, 0])


def build(threads: int, head: str, height: int, width: int, batch: int, form: str) -> tuple[dict, Callable[[], int]]:
    """Return the description of the step and the step, after a first one."""
    import keras
    import tensorflow as tf

    from kseg import __version__
    from kseg.config import Config
    from kseg.config.sections import Model, Train

    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    config = Config(model=Model(head=head), train=Train(global_batch=batch, jit_compile=form == "xla"))
    take = stepper(config, 2 if form == "replicas" else 1, *example(height, width, batch))
    begin = time.perf_counter()
    loss = take()

    def step() -> int:
        take()
        return 1

    return {
        "versions": {"kseg": __version__, "TensorFlow": tf.__version__, "Keras": keras.__version__},
        "loss": loss,
        "first_seconds": time.perf_counter() - begin,
    }, step


if __name__ == "__main__":
    measured_process.serve(lambda: build(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]))
