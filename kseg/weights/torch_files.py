"""Read PyTorch checkpoints as NumPy arrays, without PyTorch and without running code from the file.

A checkpoint consists of a pickle, which `torch_pickles` reads, and raw storages. A storage is mapped into memory only
while a tensor is copied from it, so the content of a file is never in memory twice.
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
# Maximum size of a tensor that repeats elements by a stride of 0. Without it a tiny file could fill the memory.
MAX_REPEATED_ELEMENTS = 2**24

BYTE_ORDERS = {b"little": "<", b"big": ">"}
LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, np.generic)
# Local header of a zip entry: the signature, 22 bytes that the central directory repeats, and the lengths of the name
# and of the extra field. The data follows these two fields.
ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")

# Reads the elements of a storage. Every call reads them again, so they need not stay in memory.
Loader = Callable[[], np.ndarray]


def read_torch_file(path: str | Path) -> object:
    """Read a PyTorch checkpoint with tensors as NumPy arrays and mappings as dicts.

    Both formats of torch.save are supported: the zip file of PyTorch 1.6 and later, and the older stream
    (`_use_new_zipfile_serialization=False`).

    Returns:
        The saved object. Arrays are contiguous copies in C order with the tensor's shape and dtype (bfloat16 as
        ml_dtypes.bfloat16).

    Raises:
        WeightsError: The file is missing, damaged, of another kind, or has anything but plain data.
    """
    try:
        with open(path, "rb") as file:
            root, loaders = _read_container(file)
            return _plain(root, loaders, {})
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # Damaged pickles and zip files raise nearly any exception.
        raise WeightsError(f"{path} is damaged or incomplete ({type(error).__name__}: {error})") from error


def _read_container(file: BinaryIO) -> tuple[Any, dict[str, Loader]]:
    """Return the unpickled object with placeholders for tensors, and the loaders of its storages by key."""
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if head[257:262] == b"ustar":
        raise WeightsError("is a tar file, PyTorch's oldest format; load and save it again with a newer PyTorch")
    if head.startswith(b"\x80"):
        return _read_legacy(file)
    if not head:
        raise WeightsError("is empty (0 bytes)")
    raise WeightsError(f"is not a PyTorch checkpoint: it starts with {head[:16]!r}")


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, Loader]]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        # The list of entries is at the end of a zip file.
        raise WeightsError(f"is incomplete or damaged: its {_size(file)} bytes start like a zip file but do not end "
                           "like one; download it again") from None
    names = set(archive.namelist())
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"is a zip file but not a PyTorch checkpoint: it has {len(pickles)} entries NAME/data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise WeightsError("is a TorchScript program; save the model's state_dict instead")
    unpickler = Unpickler(io.BytesIO(archive.read(pickles[0])))
    root = unpickler.load()
    # Older files lack the entry; they were written on little-endian machines.
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
        # PyTorch does not compress, but other tools that repack a file do. zipfile verifies the checksum.
        return lambda: _decode(np.frombuffer(archive.read(entry), np.uint8), dtype, order)
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
        raise WeightsError("is a pickle but not a PyTorch checkpoint: PyTorch's magic number is missing")
    protocol = Unpickler(file).load()
    if protocol != LEGACY_PROTOCOL:
        raise WeightsError(f"has protocol {protocol!r}; known: {LEGACY_PROTOCOL}")
    # The writer's word sizes come next. They do not matter, because storages have fixed element sizes.
    Unpickler(file).load()
    unpickler = Unpickler(file)
    root = unpickler.load()
    loaders = {}
    for key in Unpickler(file).load():
        if key not in unpickler.storages:
            raise WeightsError(f"is damaged: it has a storage {key!r}, which no tensor uses")
        dtype, elements = unpickler.storages[key]
        stored = int.from_bytes(file.read(_require_bytes(file, 8)), "little", signed=True)
        if stored != elements:
            raise WeightsError(f"is damaged: storage {key} has {stored} elements instead of {elements}")
        size, offset = _require_bytes(file, elements * dtype.itemsize), file.tell()
        loaders[key] = functools.partial(_load, file, offset, size, dtype, "<")
        file.seek(offset + size)
    if absent := unpickler.storages.keys() - loaders.keys():
        raise WeightsError(f"is incomplete: {len(absent)} storages are missing, such as {min(absent)!r}")
    return root, loaders


def _require_bytes(file: BinaryIO, count: int) -> int:
    """Return `count` if the file has that many bytes left; a damaged length could request all memory."""
    remaining = _size(file) - file.tell()
    if remaining < count:
        raise WeightsError(f"is incomplete: at least {count - remaining} bytes are missing at its end")
    return count


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _mapped(file: BinaryIO, offset: int, size: int) -> np.ndarray:
    # Operating systems refuse to map zero bytes.
    return np.memmap(file, np.uint8, "r", offset, (size,)) if size else np.zeros(0, np.uint8)


def _load(file: BinaryIO, offset: int, size: int, dtype: np.dtype, order: str) -> np.ndarray:
    return _decode(_mapped(file, offset, size), dtype, order)


def _decode(data: np.ndarray, dtype: np.dtype, order: str) -> np.ndarray:
    # Integers carry the bytes, because bfloat16 has no foreign byte order and bools may have other values than 0 and 1.
    words = np.frombuffer(data, f"{order}u{dtype.itemsize}").astype(f"=u{dtype.itemsize}", copy=False)
    return words != 0 if dtype == bool else words.view(dtype)


def _array(tensor: Tensor, loaders: dict[str, Loader]) -> np.ndarray:
    """Return a copy of a tensor, after checking that it lies within its storage."""
    storage, offset, size, stride = tensor
    valid = all(is_count(number) for number in (offset, *size, *stride))
    if not isinstance(storage, Storage) or len(size) != len(stride) or not valid:
        raise WeightsError(f"is damaged: it has a tensor of offset {offset}, size {size}, stride {stride}")
    values = loaders[storage.key]()[storage.start:storage.start + storage.length]
    elements = math.prod(size)
    if elements == 0:
        return np.zeros(size, values.dtype)
    last = offset + sum((count - 1) * step for count, step in zip(size, stride))
    if last >= len(values) or elements > max(len(values), MAX_REPEATED_ELEMENTS):
        raise WeightsError(f"is damaged: a tensor of offset {offset}, size {size}, stride {stride} does not fit its"
                           f" storage of {len(values)} elements")
    # The stride of an axis of length one is unused, and files have arbitrary numbers there.
    steps = [step * values.itemsize if count > 1 else 0 for count, step in zip(size, stride)]
    return np.array(np.lib.stride_tricks.as_strided(values[offset:], size, steps), order="C", copy=True)


def _plain(value: Any, loaders: dict[str, Loader], done: dict[int, Any]) -> Any:
    """Return a value with arrays for tensors; `done` preserves shared and circular references."""
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
        name = getattr(value, "name", type(value).__name__)
        raise WeightsError(f"contains {name} as a value, which is not plain data")
    return done[id(value)]
