"""Skip passes of TensorFlow's graph optimizer that take seconds before the first step and save nothing after it."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

# On a CPU, steps took the same time and memory without these, and their results kept all bits. The arithmetic passes
# cost as much time, but without them sums are added up in another order.
SKIPPED_PASSES = (
    "function_optimization",
    "implementation_selector",
    "layout_optimizer",
    "loop_optimization",
    "remapping",
    "shape_optimization",
)


def unneeded(strategy: tf.distribute.Strategy) -> bool:
    """Return whether a single replica on a CPU trains, whose step these passes do not speed up.

    On GPUs they choose the layout of images and fuse operations; several replicas have not been measured.
    """
    return strategy.num_replicas_in_sync == 1 and not tf.config.list_logical_devices("GPU")


@contextlib.contextmanager
def skip_passes() -> Iterator[None]:
    """Skip the passes for functions that are called within the context.

    All calls of a function have to agree: TensorFlow prepares a function anew for other settings.
    """
    options = tf.config.optimizer
    # A pass that nobody has set is on.
    before = {name: options.get_experimental_options().get(name, True) for name in SKIPPED_PASSES}
    options.set_experimental_options(dict.fromkeys(SKIPPED_PASSES, False))
    try:
        yield
    finally:
        options.set_experimental_options(before)
