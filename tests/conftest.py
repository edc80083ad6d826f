"""Puts the tests' own helper modules on the path, from any test directory."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shapes_directory(tmp_path_factory):
    """The synthetic set, drawn once for all tests."""
    from kseg.builders import shapes

    directory = tmp_path_factory.mktemp("data with spaces") / "shapes"
    shapes.prepare(directory, "train")
    return directory


# These files take minutes: begun first, they leave the shorter ones to fill up what the processes have left.
LONGEST = ("test_train.py", "test_end_to_end.py", "test_models_contract.py", "test_verify.py", "test_services.py",
           "test_readers.py", "test_precision.py", "test_augmentations.py", "test_benchmark.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
