"""Run small graphs as they are traced, because optimizing one takes longer than running it a few times.

`make test-all` optimizes all graphs.
"""

import tensorflow as tf

from tests.helpers.exhaustive import ALL

# The packages whose tests are not about the graph. Tests of models, exports, inference and serving keep the optimizer,
# as do those that start a command of their own.
PACKAGES = ("datasets", "evaluation", "input_pipeline", "training")


def set_optimized(optimized):
    """Switch TensorFlow's graph optimizer for the functions that are called from now on."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not (optimized or ALL)})
