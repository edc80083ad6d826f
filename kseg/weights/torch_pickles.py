"""The pickle inside a PyTorch checkpoint, read without running anything that it says.

A pickle is a program, so the names it may call are an explicit table here, each bound to a function of this file that
only builds data. Tensors become descriptions, whose numbers lie elsewhere in the checkpoint.
"""

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from kseg.errors import WeightsError

STORAGE_DTYPES = {f"{name}Storage": np.dtype(dtype) for name, dtype in (
    ("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", ml_dtypes.bfloat16),
    ("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool"))}
SCALAR_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}

# Training systems keep records of theirs in unfinished checkpoints, which those they publish lack.
TRAINING_SYSTEMS = ("mmengine", "mmcv", "numpy")
TRAINING_ADVICE = (". It seems to hold records of its training; if you trust who wrote it, PyTorch can save the "
                   "weights alone: torch.save({'state_dict': torch.load(OLD, weights_only=False)['state_dict']}, NEW)")


class Storage(NamedTuple):
    """A stretch of a stored array, counted in elements; its numbers are read after the pickle."""

    key: str
    start: int
    length: int


class Tensor(NamedTuple):
    """What the pickle says of a tensor. Nothing here is trusted before `torch_files` has checked it."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class Global:
    """An allowed name. A pickle may call it, but neither look into it nor change it."""

    __slots__ = ("name", "build")

    def __init__(self, name: str, build: Callable[..., Any]):
        self.name, self.build = name, build

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise WeightsError(f"is refused: it tries to change {self.name}")


class ScalarType:
    """The dtype of a numpy scalar; numpy pickles its byte order as state."""

    __slots__ = ("kind", "order")

    def __init__(self, kind: Any, *_: Any):
        if kind not in SCALAR_KINDS:
            raise WeightsError(f"holds a numpy scalar of type {kind!r}; readable: {', '.join(sorted(SCALAR_KINDS))}")
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|"):
            raise WeightsError(f"holds a numpy scalar of byte order {state[1]!r}; known: <, >, |")
        self.order = state[1]


def _scalar(scalar_type: Any, data: Any) -> np.generic:
    if not isinstance(scalar_type, ScalarType) or not isinstance(data, bytes):
        raise WeightsError("holds a numpy scalar that is not a plain number")
    return np.frombuffer(data, scalar_type.order + scalar_type.kind, count=1)[0]


def _latin1(text: Any, encoding: Any) -> bytes:
    # This is how protocol 2 spells bytes; any other codec has no business in a checkpoint.
    if encoding != "latin1":
        raise WeightsError(f"encodes text as {encoding!r}; only latin1 is allowed")
    return text.encode("latin1")


def _not_callable(*_: Any) -> None:
    raise WeightsError("calls a storage type, which only names a type of number")


# The arguments left out are requires_grad, backward hooks and metadata, which numbers do not need.
ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): ScalarType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    **{("torch", name): _not_callable for name in STORAGE_DTYPES},
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: Tensor(*arguments[:4]),
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


class Unpickler(pickle.Unpickler):
    """A pickle reader that knows the allowed names alone and notes the storages that the pickle speaks of."""

    def __init__(self, file: BinaryIO):
        # Files that Python 2 wrote hold byte strings; PyTorch reads them as UTF-8 as well.
        super().__init__(file, encoding="utf-8")
        _refuse_large_memo(file)
        self.storages: dict[str, tuple[np.dtype, int]] = {}

    def find_class(self, module: str, name: str) -> Global:
        if (module, name) not in ALLOWED:
            raise WeightsError(f"is refused: it asks for {module}.{name}; only tensors and plain values are read"
                               + (TRAINING_ADVICE if module.split(".")[0] in TRAINING_SYSTEMS else ""))
        return Global(name, ALLOWED[module, name])

    def persistent_load(self, identifier: Any) -> Storage:
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
            raise WeightsError(f"refers to something other than a storage: {str(identifier)[:80]}")
        _, kind, key, _, elements = identifier[:5]
        if not isinstance(kind, Global) or kind.name not in STORAGE_DTYPES:
            raise WeightsError(f"has a storage of unknown type; known: {', '.join(STORAGE_DTYPES)}")
        if not isinstance(key, str) or not is_count(elements):
            raise WeightsError(f"describes a storage by {str((key, elements))[:80]}, not by a name and a length")
        declared = (STORAGE_DTYPES[kind.name], elements)
        if self.storages.setdefault(key, declared) != declared:
            raise WeightsError(f"describes storage {key} in two ways: {self.storages[key]} and {declared}")
        if len(identifier) == 5 or identifier[5] is None:
            return Storage(key, 0, elements)
        _, start, length = identifier[5]
        if not is_count(start) or not is_count(length) or start + length > elements:
            raise WeightsError(f"has a view from {start} of length {length} on storage {key} of {elements} elements")
        return Storage(key, start, length)


def _refuse_large_memo(file: BinaryIO) -> None:
    # pickle makes room for any memo index at once, so that one wrong bit could take all memory. Writers count upwards.
    start = file.tell()
    for position, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > position:
            raise WeightsError(f"is damaged: its pickle uses memo index {argument} after {position} operations")
    file.seek(start)


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number of at least 0, and no bool."""
    return type(value) is int and value >= 0
