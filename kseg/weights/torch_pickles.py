"""Read the pickle inside a PyTorch checkpoint without running code from it.

A pickle is a program. The names that it may call are an explicit table, and all of them are bound to functions that
only build data. Tensors become descriptions; their elements are stored elsewhere in the checkpoint.
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

# Training systems store objects of their own in unfinished checkpoints, but not in published ones.
TRAINING_SYSTEMS = ("mmengine", "mmcv", "numpy")
TRAINING_ADVICE = (". It seems to contain a training history; if you trust its author, PyTorch can save only the "
                   "weights: torch.save({'state_dict': torch.load(OLD, weights_only=False)['state_dict']}, NEW)")


class Storage(NamedTuple):
    """A range of a stored array in elements, which is read after the pickle."""

    key: str
    start: int
    length: int


class Tensor(NamedTuple):
    """A tensor as the pickle describes it. `torch_files` checks all fields before it uses them."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class Global:
    """An allowed name. A pickle may call it but neither inspect nor change it."""

    __slots__ = ("name", "build")

    def __init__(self, name: str, build: Callable[..., Any]):
        self.name, self.build = name, build

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise WeightsError(f"is refused: it tries to change {self.name}")


class ScalarType:
    """The dtype of a NumPy scalar, which NumPy pickles with its byte order as state."""

    __slots__ = ("kind", "order")

    def __init__(self, kind: Any, *_: Any):
        if kind not in SCALAR_KINDS:
            raise WeightsError(f"contains a NumPy scalar of type {kind!r}; readable: {', '.join(sorted(SCALAR_KINDS))}")
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|"):
            raise WeightsError(f"contains a NumPy scalar with byte order {state[1]!r}; known: <, >, |")
        self.order = state[1]


def _scalar(scalar_type: Any, data: Any) -> np.generic:
    if not isinstance(scalar_type, ScalarType) or not isinstance(data, bytes):
        raise WeightsError("contains a NumPy scalar that is not a plain number")
    return np.frombuffer(data, scalar_type.order + scalar_type.kind, count=1)[0]


def _latin1(text: Any, encoding: Any) -> bytes:
    # Pickle protocol 2 writes bytes this way. A checkpoint needs no other codec.
    if encoding != "latin1":
        raise WeightsError(f"encodes text as {encoding!r}; only latin1 is allowed")
    return text.encode("latin1")


def _not_callable(*_: Any) -> None:
    raise WeightsError("calls a storage type, which only names an element type")


# The functions ignore requires_grad, backward hooks and metadata.
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
    """An unpickler that allows only the names in ALLOWED and records the storages of the pickle."""

    def __init__(self, file: BinaryIO):
        # Files written by Python 2 contain byte strings, which PyTorch also reads as UTF-8.
        super().__init__(file, encoding="utf-8")
        _refuse_large_memo(file)
        self.storages: dict[str, tuple[np.dtype, int]] = {}

    def find_class(self, module: str, name: str) -> Global:
        if (module, name) not in ALLOWED:
            raise WeightsError(f"is refused: it asks for {module}.{name}; only tensors and plain values are allowed"
                               + (TRAINING_ADVICE if module.split(".")[0] in TRAINING_SYSTEMS else ""))
        return Global(name, ALLOWED[module, name])

    def persistent_load(self, identifier: Any) -> Storage:
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
            raise WeightsError(f"refers to something other than a storage: {str(identifier)[:80]}")
        _, kind, key, _, elements = identifier[:5]
        if not isinstance(kind, Global) or kind.name not in STORAGE_DTYPES:
            raise WeightsError(f"has a storage of unknown type; known: {', '.join(STORAGE_DTYPES)}")
        if not isinstance(key, str) or not is_count(elements):
            raise WeightsError(f"describes a storage by {str((key, elements))[:80]} instead of a name and a length")
        declared = (STORAGE_DTYPES[kind.name], elements)
        if self.storages.setdefault(key, declared) != declared:
            raise WeightsError(f"describes storage {key} inconsistently: {self.storages[key]} and {declared}")
        if len(identifier) == 5 or identifier[5] is None:
            return Storage(key, 0, elements)
        _, start, length = identifier[5]
        if not is_count(start) or not is_count(length) or start + length > elements:
            raise WeightsError(f"has a view from {start} of length {length} on storage {key} of {elements} elements")
        return Storage(key, start, length)


def _refuse_large_memo(file: BinaryIO) -> None:
    # pickle allocates memory up to any memo index, so a single wrong bit could request all memory. Writers count up.
    start = file.tell()
    for position, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > position:
            raise WeightsError(f"is damaged: its pickle uses memo index {argument} after {position} operations")
    file.seek(start)


def is_count(value: Any) -> bool:
    """Return whether a value is a nonnegative integer and not a bool."""
    return type(value) is int and value >= 0
