"""PyTorch checkpoint files as numpy arrays, read without PyTorch and without running anything that a file says.

A checkpoint is a pickle, which `torch_pickles` reads, beside raw storages. The storages stay where they are: each is
mapped into memory when a tensor is copied out of it, so that a file is never held twice.
"""

import functools
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kseg.errors import WeightsError
from kseg.weights.torch_pickles import Storage, Tensor, Unpickler, is_count

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# A stride of 0 repeats one stored number at will; without a limit a tiny file could fill the memory.
LARGEST_REPEATING_TENSOR = 2**24

BYTE_ORDERS = {b"little": "<", b"big": ">"}
LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, np.generic)
# Of a zip entry's local header: its signature, what the central directory says as well, and the lengths of the name
# and the extra field, after which the data begins.
ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")

# What gives the numbers of a storage, each time anew, so that they need not stay in memory.
Loader = Callable[[], np.ndarray]


def read(path: str | Path) -> object:
    """Return what a PyTorch checkpoint file holds, tensors as numpy arrays and every mapping as a plain dict.

    Arrays are contiguous copies in C order with the tensor's shape and dtype (bfloat16 as ml_dtypes.bfloat16). Both
    containers are read: the zip file of PyTorch 1.6 and later, and the stream before it.
    Raises WeightsError where the file is missing, damaged, of another kind, or asks for anything but plain data.
    Source: the layout that torch.save writes, both with and without `_use_new_zipfile_serialization`.
    """
    try:
        with open(path, "rb") as file:
            root, loaders = _read_container(file)
            return _plain(root, loaders, {})
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # Broken pickles and zips raise nearly every exception there is; none is our bug.
        raise WeightsError(f"{path} is damaged or incomplete ({type(error).__name__}: {error})") from error


def _read_container(file: BinaryIO) -> tuple[Any, dict[str, Loader]]:
    """Return the unpickled object with placeholders for tensors, and what loads its storages, by key."""
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if head[257:262] == b"ustar":
        raise WeightsError("is a tar file, PyTorch's oldest format; load and save it again with a newer PyTorch")
    if head.startswith(b"\x80"):
        return _read_legacy(file)
    if not head:
        raise WeightsError("is empty: it has 0 bytes")
    raise WeightsError(f"is no PyTorch checkpoint: it starts with {head[:16]!r}")


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, Loader]]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        # The list of a zip file's entries is its end.
        raise WeightsError(f"is incomplete or damaged: its {_size(file)} bytes start as a zip file but do not end as "
                           "one; fetch it again") from None
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
    loaders = {}
    for key, (dtype, elements) in unpickler.storages.items():
        name = f"{folder}data/{key}"
        if name not in names:
            raise WeightsError(f"is incomplete: it has no entry {name}")
        entry = archive.getinfo(name)
        if entry.file_size != elements * dtype.itemsize:
            raise WeightsError(f"is damaged: {name} has {entry.file_size} bytes instead of {elements * dtype.itemsize}")
        loaders[key] = _zip_loader(file, archive, entry, dtype, BYTE_ORDERS[order])
    return root, loaders


def _zip_loader(file: BinaryIO, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, dtype: np.dtype,
                order: str) -> Loader:
    if entry.compress_type != zipfile.ZIP_STORED:
        # PyTorch compresses nothing, but a file that was packed anew may be; zipfile checks its checksum.
        return lambda: _numbers(np.frombuffer(archive.read(entry), np.uint8), dtype, order)
    file.seek(entry.header_offset)
    signature, *lengths = ZIP_LOCAL_HEADER.unpack(file.read(ZIP_LOCAL_HEADER.size))
    offset = entry.header_offset + ZIP_LOCAL_HEADER.size + sum(lengths)
    if signature != b"PK\x03\x04" or entry.flag_bits & 1 or offset + entry.file_size > _size(file):
        raise WeightsError(f"is damaged: its entry {entry.filename} lies outside the file or is encrypted")
    if zlib.crc32(_mapped(file, offset, entry.file_size)) != entry.CRC:
        raise WeightsError(f"is damaged: the checksum of its entry {entry.filename} is wrong")
    return functools.partial(_load, file, offset, entry.file_size, dtype, order)


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, Loader]]:
    if Unpickler(file).load() != LEGACY_MAGIC:
        raise WeightsError("is a pickle but no PyTorch checkpoint: PyTorch's magic number is missing")
    protocol = Unpickler(file).load()
    if protocol != LEGACY_PROTOCOL:
        raise WeightsError(f"has protocol {protocol!r}; known: {LEGACY_PROTOCOL}")
    Unpickler(file).load()  # The writer's word sizes; they do not bear on the storages, which have fixed ones.
    unpickler = Unpickler(file)
    root = unpickler.load()
    loaders = {}
    for key in Unpickler(file).load():
        if key not in unpickler.storages:
            raise WeightsError(f"is damaged: it stores {key!r}, which no tensor uses")
        dtype, elements = unpickler.storages[key]
        stored = int.from_bytes(file.read(_left(file, 8)), "little", signed=True)
        if stored != elements:
            raise WeightsError(f"is damaged: storage {key} has {stored} elements instead of {elements}")
        size, offset = _left(file, elements * dtype.itemsize), file.tell()
        loaders[key] = functools.partial(_load, file, offset, size, dtype, "<")
        file.seek(offset + size)
    if absent := unpickler.storages.keys() - loaders.keys():
        raise WeightsError(f"is incomplete: {len(absent)} storages are absent, {min(absent)!r} among them")
    return root, loaders


def _left(file: BinaryIO, count: int) -> int:
    """Return `count`, after making sure that so many bytes are left; a damaged length could demand all memory."""
    left = _size(file) - file.tell()
    if left < count:
        raise WeightsError(f"is incomplete: it ends at least {count - left} bytes too early")
    return count


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _mapped(file: BinaryIO, offset: int, size: int) -> np.ndarray:
    # A mapping of no bytes is an error to the operating system.
    return np.memmap(file, np.uint8, "r", offset, (size,)) if size else np.zeros(0, np.uint8)


def _load(file: BinaryIO, offset: int, size: int, dtype: np.dtype, order: str) -> np.ndarray:
    return _numbers(_mapped(file, offset, size), dtype, order)


def _numbers(data: np.ndarray, dtype: np.dtype, order: str) -> np.ndarray:
    # Whole numbers carry the bytes, since bfloat16 knows no foreign byte order and a bool other than 0 and 1 is none.
    words = np.frombuffer(data, f"{order}u{dtype.itemsize}").astype(f"=u{dtype.itemsize}", copy=False)
    return words != 0 if dtype == bool else words.view(dtype)


def _array(tensor: Tensor, loaders: dict[str, Loader]) -> np.ndarray:
    """Return a tensor's own copy, after making sure that it lies within its storage."""
    storage, offset, size, stride = tensor
    counts = all(is_count(number) for number in (offset, *size, *stride))
    if not isinstance(storage, Storage) or len(size) != len(stride) or not counts:
        raise WeightsError(f"is damaged: it has a tensor of offset {offset}, size {size}, stride {stride}")
    values = loaders[storage.key]()[storage.start:storage.start + storage.length]
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


def _plain(value: Any, loaders: dict[str, Loader], done: dict[int, Any]) -> Any:
    """Return `value` with arrays for tensors; `done` keeps shared and circular containers shared."""
    if isinstance(value, LEAVES):
        return value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Tensor):
        done[id(value)] = _array(value, loaders)
    elif isinstance(value, Storage):
        done[id(value)] = _array(Tensor(value, 0, (value.length,), (1,)), loaders)
    elif isinstance(value, dict):
        copy = done[id(value)] = {}
        copy.update((_plain(key, loaders, done), _plain(item, loaders, done)) for key, item in dict.items(value))
    elif isinstance(value, list):
        copy = done[id(value)] = []
        copy.extend(_plain(item, loaders, done) for item in value)
    elif isinstance(value, (tuple, set)):
        done[id(value)] = type(value)(_plain(item, loaders, done) for item in value)
    else:
        raise WeightsError(f"holds {getattr(value, 'name', type(value).__name__)} as a value, which is no plain data")
    return done[id(value)]
