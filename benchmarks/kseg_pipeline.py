"""Run kseg's input pipeline for benchmarks.input_pipeline: the batches of kseg.train under a config, normalized.

PYTHON -m benchmarks.kseg_pipeline THREADS CONFIG [KEY=VALUE ...]
"""

import importlib.metadata
import sys
from collections.abc import Callable

from benchmarks import measured_process


def build(threads: int, name: str, overrides: list[str]) -> tuple[dict, Callable[[], int]]:
    """Return the description of the pipeline and a step that takes one batch and returns its number of images."""
    import tensorflow as tf

    from kseg import __version__
    from kseg import config as configs
    from kseg.datasets import registry
    from kseg.input_pipeline import batching
    from kseg.input_pipeline.normalization import normalize_batch

    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    config = configs.load(name, overrides)
    batches = iter(batching.train_batches(registry.open_split(config.data, config.data.train_split), config))

    # The training step normalizes images; the peer's pipeline does it.
    @tf.function(autograph=False)
    def network_input(batch: dict) -> tf.Tensor:
        return normalize_batch(
            batch["image"], batch["inside"], config.data.mean, config.data.std, config.augment.pad_color
        )

    def step() -> int:
        return len(network_input(next(batches)))

    first = next(batches)
    images = network_input(first)

    return {
        "versions": {"kseg": __version__, "tensorflow": tf.__version__, "numpy": importlib.metadata.version("numpy")},
        "image": [images.dtype.name, *images.shape],
        "label": list(first["label"].shape),
    }, step


if __name__ == "__main__":
    measured_process.serve(lambda: build(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
