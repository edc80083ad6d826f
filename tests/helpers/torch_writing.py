"""Writer of PyTorch's zip and legacy files without PyTorch, following the layout of torch.save."""

import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock

import pytest

from kseg.weights.torch_pickles import STORAGE_DTYPES


class Stored:
    """A storage of torch.save.

    It has a flat array, a PyTorch type and a key; legacy files may add a view (key, start, length).
    """

    def __init__(self, array, kind="FloatStorage", key="0", view=None, declared=None):
        self.array, self.kind, self.key, self.view = array, kind, key, view
        self.declared = len(array) if declared is None else declared


class FakeTensor:
    def __init__(self, stored, offset, size, stride, function="_rebuild_tensor_v2"):
        self.arguments = (stored, offset, size, stride)
        self.function = function

    def __reduce__(self):
        extra = () if self.function == "_rebuild_tensor" else (False, OrderedDict())
        return getattr(sys.modules["torch._utils"], self.function), (*self.arguments, *extra)


class FakeParameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, (self.tensor, True, OrderedDict())


class FakePickler(pickle.Pickler):
    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.legacy, self.seen = legacy, {}

    def persistent_id(self, value):
        if not isinstance(value, Stored):
            return None
        self.seen[value.key] = value
        identifier = ("storage", getattr(sys.modules["torch"], value.kind), value.key, "cpu", value.declared)
        return identifier + (value.view,) if self.legacy else identifier


@contextlib.contextmanager
def fake_torch():
    """Install stand-ins for PyTorch's names, so that pickle can write references to them."""
    torch, functions = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in (*STORAGE_DTYPES, "QInt8Storage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):

        def function():
            raise AssertionError("pickle writes only the function's name")

        function.__module__, function.__name__, function.__qualname__ = "torch._utils", name, name
        setattr(functions, name, function)
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": functions}):
        yield


def write_zip(path, value, byteorder="little"):
    with fake_torch(), zipfile.ZipFile(path, "w") as archive:
        buffer = io.BytesIO()
        pickler = FakePickler(buffer, legacy=False)
        pickler.dump(value)
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/version", "3\n")
        for key, stored in pickler.seen.items():
            array = stored.array.byteswap() if byteorder == "big" else stored.array
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy(path, value):
    with fake_torch(), open(path, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(header, file, protocol=2)
        pickler = FakePickler(file, legacy=True)
        pickler.dump(value)
        pickle.dump(sorted(pickler.seen), file, protocol=2)
        for key in sorted(pickler.seen):
            array = pickler.seen[key].array
            file.write(struct.pack("<q", len(array)) + array.tobytes())
    return path


both_containers = pytest.mark.parametrize("write", [write_zip, write_legacy])
