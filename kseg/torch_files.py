"""PyTorch checkpoint files as numpy arrays, read without PyTorch and without running anything that a file says.

A checkpoint is a pickle beside raw storages. A pickle is a program, so the names it may call are an explicit table
here, each bound to a function of this file that only builds data.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from kseg.errors import WeightsError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# A stride of 0 repeats one stored number at will; without a limit a tiny file could fill the memory.
LARGEST_REPEATING_TENSOR = 2**24

STORAGE_DTYPES = {f"{name}Storage": np.dtype(dtype) for name, dtype in (
    ("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", ml_dtypes.bfloat16),
    ("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool"))}
SCALAR_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
BYTE_ORDERS = {b"little": "<", b"big": ">"}
LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, np.generic)


class Storage(NamedTuple):
    """A stretch of a stored array, counted in elements; its numbers are read after the pickle."""

    key: str
    start: int
    length: int


class Tensor(NamedTuple):
    """What the pickle says of a tensor. Nothing here is trusted before `_array` has checked it."""

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
            raise WeightsError(f"is refused: it asks for {module}.{name}; only tensors and plain values are read")
        return Global(name, ALLOWED[module, name])

    def persistent_load(self, identifier: Any) -> Storage:
        if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
            raise WeightsError(f"refers to something other than a storage: {str(identifier)[:80]}")
        _, kind, key, _, elements = identifier[:5]
        if not isinstance(kind, Global) or kind.name not in STORAGE_DTYPES:
            raise WeightsError(f"has a storage of unknown type; known: {', '.join(STORAGE_DTYPES)}")
        if not isinstance(key, str) or not _is_count(elements):
            raise WeightsError(f"describes a storage by {str((key, elements))[:80]}, not by a name and a length")
        declared = (STORAGE_DTYPES[kind.name], elements)
        if self.storages.setdefault(key, declared) != declared:
            raise WeightsError(f"describes storage {key} in two ways: {self.storages[key]} and {declared}")
        if len(identifier) == 5 or identifier[5] is None:
            return Storage(key, 0, elements)
        _, start, length = identifier[5]
        if not _is_count(start) or not _is_count(length) or start + length > elements:
            raise WeightsError(f"has a view from {start} of length {length} on storage {key} of {elements} elements")
        return Storage(key, start, length)


def _refuse_large_memo(file: BinaryIO) -> None:
    # pickle makes room for any memo index at once, so that one wrong bit could take all memory. Writers count upwards.
    start = file.tell()
    for position, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > position:
            raise WeightsError(f"is damaged: its pickle uses memo index {argument} after {position} operations")
    file.seek(start)


def read(path: str | Path) -> object:
    """Return what a PyTorch checkpoint file holds, tensors as numpy arrays and every mapping as a plain dict.

    Arrays are contiguous copies in C order with the tensor's shape and dtype (bfloat16 as ml_dtypes.bfloat16). Both
    containers are read: the zip file of PyTorch 1.6 and later, and the stream before it.
    Raises WeightsError where the file is missing, damaged, of another kind, or asks for anything but plain data.
    Source: the layout that torch.save writes, both with and without `_use_new_zipfile_serialization`.
    """
    try:
        with open(path, "rb") as file:
            root, arrays = _read_container(file)
            return _plain(root, arrays, {})
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # Broken pickles and zips raise nearly every exception there is; none is our bug.
        raise WeightsError(f"{path} is damaged or incomplete ({type(error).__name__}: {error})") from error


def _read_container(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the unpickled object with placeholders for tensors, and the stored arrays by key."""
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if head[257:262] == b"ustar":
        raise WeightsError("is a tar file, PyTorch's oldest format; load and save it again with a newer PyTorch")
    if head.startswith(b"\x80"):
        return _read_legacy(file)
    raise WeightsError(f"is no PyTorch checkpoint: it starts with {head[:16]!r}")


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    archive = zipfile.ZipFile(file)
    names = set(archive.namelist())
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"is a zip file but no PyTorch checkpoint: it has {len(pickles)} entries NAME/data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise WeightsError("is a TorchScript program; save the model's state_dict instead")
    unpickler = Unpickler(io.BytesIO(archive.read(pickles[0])))
    root = unpickler.load()
    # Files from before the entry existed were written on little-endian machines.
    order = archive.read(f"{folder}byteorder").strip() if f"{folder}byteorder" in names else b"little"
    if order not in BYTE_ORDERS:
        raise WeightsError(f"has byte order {order!r}; known: little, big")
    arrays = {}
    for key, (dtype, elements) in unpickler.storages.items():
        name = f"{folder}data/{key}"
        if name not in names:
            raise WeightsError(f"is incomplete: it has no entry {name}")
        if (size := archive.getinfo(name).file_size) != elements * dtype.itemsize:
            raise WeightsError(f"is damaged: {name} has {size} bytes instead of {elements * dtype.itemsize}")
        arrays[key] = _flat(archive.read(name), dtype, BYTE_ORDERS[order])
    return root, arrays


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, np.ndarray]]:
    if Unpickler(file).load() != LEGACY_MAGIC:
        raise WeightsError("is a pickle but no PyTorch checkpoint: PyTorch's magic number is missing")
    protocol = Unpickler(file).load()
    if protocol != LEGACY_PROTOCOL:
        raise WeightsError(f"has protocol {protocol!r}; known: {LEGACY_PROTOCOL}")
    Unpickler(file).load()  # The writer's word sizes; they do not bear on the storages, which have fixed ones.
    unpickler = Unpickler(file)
    root = unpickler.load()
    arrays = {}
    for key in Unpickler(file).load():
        if key not in unpickler.storages:
            raise WeightsError(f"is damaged: it stores {key!r}, which no tensor uses")
        dtype, elements = unpickler.storages[key]
        stored = int.from_bytes(_exactly(file, 8), "little", signed=True)
        if stored != elements:
            raise WeightsError(f"is damaged: storage {key} has {stored} elements instead of {elements}")
        arrays[key] = _flat(_exactly(file, elements * dtype.itemsize), dtype, "<")
    if absent := unpickler.storages.keys() - arrays.keys():
        raise WeightsError(f"is incomplete: {len(absent)} storages are absent, {min(absent)!r} among them")
    return root, arrays


def _exactly(file: BinaryIO, count: int) -> bytes:
    # Asked before reading, because a damaged length could demand more memory than there is.
    left = os.fstat(file.fileno()).st_size - file.tell()
    if left < count:
        raise WeightsError(f"is incomplete: it ends {count - left} bytes too early")
    return file.read(count)


def _flat(data: bytes, dtype: np.dtype, order: str) -> np.ndarray:
    # Whole numbers carry the bytes, since bfloat16 knows no foreign byte order and a bool other than 0 and 1 is none.
    words = np.frombuffer(data, f"{order}u{dtype.itemsize}").astype(f"=u{dtype.itemsize}", copy=False)
    return words != 0 if dtype == bool else words.view(dtype)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _array(tensor: Tensor, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return a tensor's own copy, after making sure that it lies within its storage."""
    storage, offset, size, stride = tensor
    counts = all(_is_count(number) for number in (offset, *size, *stride))
    if not isinstance(storage, Storage) or len(size) != len(stride) or not counts:
        raise WeightsError(f"is damaged: it has a tensor of offset {offset}, size {size}, stride {stride}")
    values = arrays[storage.key][storage.start:storage.start + storage.length]
    elements = math.prod(size)
    if elements == 0:
        return np.zeros(size, values.dtype)
    last = offset + sum((count - 1) * step for count, step in zip(size, stride))
    if last >= len(values) or elements > max(len(values), LARGEST_REPEATING_TENSOR):
        raise WeightsError(f"is damaged: a tensor of offset {offset}, size {size}, stride {stride} does not fit its"
                           f" storage of {len(values)} elements")
    # Along an axis of one the step is never taken, and a file may hold any number there.
    steps = [step * values.itemsize if count > 1 else 0 for count, step in zip(size, stride)]
    return np.array(np.lib.stride_tricks.as_strided(values[offset:], size, steps), order="C", copy=True)


def _plain(value: Any, arrays: dict[str, np.ndarray], done: dict[int, Any]) -> Any:
    """Return `value` with arrays for tensors; `done` keeps shared and circular containers shared."""
    if isinstance(value, LEAVES):
        return value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Tensor):
        done[id(value)] = _array(value, arrays)
    elif isinstance(value, Storage):
        done[id(value)] = _array(Tensor(value, 0, (value.length,), (1,)), arrays)
    elif isinstance(value, dict):
        copy = done[id(value)] = {}
        copy.update((_plain(key, arrays, done), _plain(item, arrays, done)) for key, item in dict.items(value))
    elif isinstance(value, list):
        copy = done[id(value)] = []
        copy.extend(_plain(item, arrays, done) for item in value)
    elif isinstance(value, (tuple, set)):
        done[id(value)] = type(value)(_plain(item, arrays, done) for item in value)
    else:
        raise WeightsError(f"holds {getattr(value, 'name', type(value).__name__)} as a value, which is no plain data")
    return done[id(value)]
