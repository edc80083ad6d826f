"""The restricted reader agrees with PyTorch, if that is installed."""

import sys

import numpy as np
import pytest

from kseg.weights import torch_files
from tests.helpers.shared_files import FIXTURES, needs_fixtures

CHECKPOINTS = sorted(FIXTURES.glob("**/model.pth"))


def assert_same(actual, expected):
    """Compare the reader's result with PyTorch's, recursively."""
    torch = sys.modules["torch"]
    if isinstance(expected, torch.Tensor):
        assert isinstance(actual, np.ndarray) and actual.shape == tuple(expected.shape)
        assert actual.dtype.name == str(expected.dtype).removeprefix("torch.")
        # PyTorch cannot convert bfloat16 to NumPy, but float64 represents all values exactly.
        actual, expected = actual.astype("float64"), expected.detach().to(torch.float64).numpy()
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected) and isinstance(actual, (list, tuple))
        for actual_item, expected_item in zip(actual, expected):
            assert_same(actual_item, expected_item)
    else:
        assert actual == expected


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed; the reader does without it")


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_itself_reads_the_same(tmp_path, torch, zipped):
    matrix = torch.arange(24.0).reshape(4, 6)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    value = {
        "meta": {"epoch": 3, "classes": ("road", "sky"), "size": matrix.shape, "lr": 0.1, "none": None},
        "state_dict": module.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "views": [matrix, matrix.T, matrix[1:3, ::2], matrix.expand(2, 4, 6), matrix[0, 0], torch.zeros(0, 3)],
        "kinds": [
            torch.arange(3).to(getattr(torch, name))
            for name in (
                "float64",
                "float32",
                "float16",
                "bfloat16",
                "int64",
                "int32",
                "int16",
                "int8",
                "uint8",
                "bool",
            )
        ],
    }
    path = tmp_path / "a.pth"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert_same(torch_files.read_torch_file(path), torch.load(path, weights_only=True))


@needs_fixtures
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}")
def test_pytorch_reads_the_reference_checkpoints_the_same(torch, path):
    assert_same(torch_files.read_torch_file(path), torch.load(path, weights_only=True))
