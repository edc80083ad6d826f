"""Share fixtures among all tests, and leave the process as each test found it."""

import gc
import logging
import os
import sys
from contextlib import nullcontext

# Where no bytecode is kept, each start of TensorFlow compiles its 2000 modules, 10 s of a processor's time; the tests
# start dozens of commands.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# TensorFlow uses oneDNN by default only on CPUs with instructions for neural networks. With the same kernels on every
# machine, rounding is the same too: it decides on which side of 0 a ReLU's input falls, and one such input moves the
# gradients of some parity fixtures by more than their tolerance.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# The operations of small networks are so short that a second thread costs more than it computes; and three processes
# of tests share two cores.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shapes_directory(tmp_path_factory):
    """The synthetic set, drawn once for all tests."""
    from kseg.datasets import shapes

    directory = tmp_path_factory.mktemp("data with spaces") / "shapes"
    shapes.prepare_shapes(directory, "train")
    return directory


@pytest.fixture(autouse=True, scope="module")
def resnet18_is_shallow(request):
    """Build only one block in each stage of resnet18 where its depth does not matter."""
    from tests.helpers import small_models

    place = request.node.nodeid
    shallow = place.startswith(small_models.SHALLOW) and not place.startswith(small_models.DEEP)
    with small_models.shallow_resnet18() if shallow else nullcontext():
        yield


@pytest.fixture(autouse=True, scope="module")
def small_graphs_run_unoptimized(request):
    """Optimize no graph where the graph is not what is tested; it would take a fifth of the time."""
    from tests.helpers import small_graphs

    if not request.node.nodeid.startswith(small_graphs.PLACES):
        yield
        return
    import tensorflow as tf

    # tf.data keeps, for the whole process, what is set before TensorFlow's first operation.
    tf.zeros(())
    small_graphs.set_optimized(False)
    yield
    small_graphs.set_optimized(True)


@pytest.fixture(autouse=True)
def determinism_ends_with_the_test():
    """What a test's training run sets for its process shall not change the tests that come after it."""
    yield
    if "tensorflow" in sys.modules:
        # TensorFlow has no public way back.
        from tensorflow.python.framework import config

        config.disable_op_determinism()


@pytest.fixture(autouse=True)
def log_levels_end_with_the_test():
    """A command that a test runs in this process shall not silence what later tests look for in the log."""
    loggers = [logging.getLogger(name) for name in (None, "absl", "serving", "tensorflow")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


# These files take minutes: started first, they leave the shorter ones to fill up what the processes have left.
LONGEST = (
    "commands/test_export.py",
    "pipeline/test_end_to_end.py",
    "commands/test_train.py",
    "training/test_several_hosts.py",
    "tests/test_end_to_end.py",
    "pipeline/test_kills.py",
    "tests/test_unchanged_files.py",
    "tests/test_docstring_examples.py",
    "models/test_other_backends.py",
    "models/test_models_contract.py",
    "commands/test_train_faults.py",
    "tests/test_unchanged_training.py",
    "training/test_loop.py",
    "training/test_replicas.py",
    "conversion/test_verification.py",
    "input_pipeline/test_data_service.py",
    "input_pipeline/test_batch_reader.py",
    "training/test_precision.py",
    "evaluation/test_counter.py",
    "input_pipeline/test_augmentations.py",
    "tests/test_extreme_sizes.py",
    "profiling/test_model_benchmark.py",
    "jobs/test_dask.py",
    "serving/test_server.py",
    "serving/test_guide.py",
    "exporting/test_formats.py",
)


def pytest_collection_modifyitems(items):
    def rank(item):
        path = item.path.as_posix()
        return next((index for index, name in enumerate(LONGEST) if path.endswith(name)), len(LONGEST))

    items.sort(key=rank)


def pytest_collection_finish(session):
    """Exempt what imports have created from garbage collection.

    A server collects all garbage whenever it closes a model, which takes a second among TensorFlow's objects.
    """
    gc.collect()
    gc.freeze()
    # Tracing creates so many objects that with the usual 700 a twentieth of the time goes into looking for garbage.
    gc.set_threshold(10_000)
