"""Run small graphs as they are traced, because optimizing one takes longer than running it a few times.

`make test-all` optimizes all graphs.
"""

import tensorflow as tf

from tests.helpers.exhaustive import ALL

# The tests that are not about the graph. Those of kernels, exports, inference and serving keep the optimizer, as do
# those that start a command of their own.
PLACES = (
    "tests/commands/test_convert",
    "tests/commands/test_train",
    "tests/datasets/",
    "tests/evaluation/",
    "tests/input_pipeline/",
    "tests/models/test_models_contract.py",
    "tests/pipeline/",
    "tests/training/",
    "tests/test_docstring_examples.py",
    "tests/test_extreme_sizes.py",
    "tests/test_first_model.py",
)


def set_optimized(optimized):
    """Switch TensorFlow's graph optimizer for the functions that are called from now on."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not (optimized or ALL)})
