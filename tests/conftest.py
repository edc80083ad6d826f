"""Puts the tests' own helper modules on the path, from any test directory."""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# Where no bytecode is kept, each start of TensorFlow compiles its 2000 modules, 10 s of a processor's time; the tests
# start dozens of commands.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shapes_directory(tmp_path_factory):
    """The synthetic set, drawn once for all tests."""
    from kseg.builders import shapes

    directory = tmp_path_factory.mktemp("data with spaces") / "shapes"
    shapes.prepare(directory, "train")
    return directory


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


# These files take minutes: begun first, they leave the shorter ones to fill up what the processes have left.
LONGEST = ("test_train.py", "test_pipeline_end_to_end.py", "test_hosts_training.py", "test_models_contract.py",
           "test_end_to_end.py", "test_pipeline_kills.py", "test_train_faults.py", "test_loops.py",
           "test_replicas.py", "test_verify.py", "test_services.py", "test_readers.py", "test_precision.py",
           "test_counts.py", "test_export.py", "test_augmentations.py", "test_benchmark.py",
           "test_model_benchmarks.py", "test_pipeline_dask.py", "test_serving_server.py", "test_serving_guide.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
