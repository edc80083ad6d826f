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
