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
from kseg.weights.file_kinds import describe
from kseg.weights.stored_arrays import EXPANSION, MEBIBYTE, StoredArray, require_moderate
from kseg.weights.torch_pickles import (
    Dict,
    Global,
    Latin1,
    Machine,
    ScalarType,
    Set,
    StandIn,
    Storage,
    Tensor,
    is_count,
    shown,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Maximum size of a tensor that repeats elements by a stride of 0. Without it a tiny file could fill the memory.
MAX_REPEATED_ELEMENTS = 2**24
# NumPy has no arrays with more axes.
MAX_AXES = 64
# Levels of lists and dicts in each other; Python itself stops at about 300.
MAX_NESTING = 100
# Keys of dicts that are tuples.
MAX_KEY_ITEMS = 16
# Items of all lists and dicts, each as often as something is made of it.
MAX_ITEMS = 4_000_000

BYTE_ORDERS = {b"little": "<", b"big": ">"}
LEAVES = (type(None), bool, int, float, str, bytes, bytearray, np.generic)
# Local header of a zip entry: the signature, 22 bytes that the central directory repeats, and the lengths of the name
# and of the extra field. The data follows these two fields.
ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")
# Of a pickle that is compressed in its file.
MAX_EXPANDED_PICKLE = 16 * MEBIBYTE
# How often a large compressed storage is expanded; honest files have one tensor in each.
MAX_EXPANSIONS = 8
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Entries of a checkpoint that contain its weights.
STATE_ENTRIES = ("state_dict", "model", "model_state_dict", "network_weights")
# Entries that contain a second, averaged set of weights: mmengine's, and that of PyTorch's reference scripts.
EMA_ENTRIES = ("ema_state_dict", "model_ema")
# These store objects of their own beside the weights.
TRAINING_SYSTEMS = ("mmengine", "mmcv", "numpy")
TRAINING_ADVICE = (
    "; if you trust its author, PyTorch can save only the weights: "
    "torch.save({'state_dict': torch.load(OLD, weights_only=False)['state_dict']}, NEW)"
)

# Reads the elements of a storage. Every call reads them again, so they need not stay in memory.
Loader = Callable[[], np.ndarray]


def read_torch_file(path: str | Path) -> object:
    """Read a PyTorch checkpoint with tensors as NumPy arrays and mappings as dicts.

    Both formats of torch.save are supported: the zip file of PyTorch 1.6 and later, and the older stream
    (`_use_new_zipfile_serialization=False`). Objects of other classes outside of the weights become `StandIn`s.

    Returns:
        The saved object. Arrays are contiguous copies in C order with the tensor's shape and dtype (bfloat16 as
        ml_dtypes.bfloat16).

    Raises:
        WeightsError: The file is missing, damaged, of another kind, or its weights are not plain data.
    """
    contents, arrays = _open(path)
    require_moderate(path, sum(array.nbytes for array in arrays), os.path.getsize(path))
    return _with_arrays(contents, {})


def open_torch_file(path: str | Path) -> object:
    """Read a PyTorch checkpoint like `read_torch_file`, with a `StoredArray` for each tensor.

    Raises WeightsError as `read_torch_file` does, except for damaged elements of tensors.
    """
    return _open(path)[0]


def _open(path: str | Path) -> tuple[Any, list[StoredArray]]:
    try:
        with open(path, "rb") as file:
            root, loaders, storages = _read_container(file)
        plain = Plain(path, loaders, storages)
        contents = plain.root(root)
        return contents, plain.arrays
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # Damaged pickles and zip files raise nearly any exception.
        raise WeightsError(f"{path} is damaged or incomplete ({type(error).__name__}: {error})") from error


def _read_container(file: BinaryIO) -> tuple[Any, dict[str, Loader], dict[str, tuple[np.dtype, int]]]:
    """Return the pickle's value, the loaders of its storages by key, and their dtypes and lengths."""
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if head[257:262] == b"ustar":
        raise WeightsError("is a tar file, PyTorch's oldest format; load and save it again with a newer PyTorch")
    if head.startswith(b"\x80"):
        return _read_legacy(file)
    raise WeightsError(describe(head) or f"is not a PyTorch checkpoint: it starts with {head[:16]!r}")


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, Loader], dict[str, tuple[np.dtype, int]]]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        # The list of entries is at the end of a zip file.
        raise WeightsError(
            f"is incomplete or damaged: its {_size(file)} bytes start like a zip file but do not end "
            "like one; download it again"
        ) from None
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(
            f"is a zip file but not a PyTorch checkpoint: it has {len(pickles)} entries NAME/data.pkl "
            f"among {len(entries)}, such as {', '.join(name[:80] for name in [*entries][:3]) or 'none'}"
        )
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise WeightsError("is a TorchScript program; save the model's state_dict instead")
    _require_entries(file, archive)
    machine = Machine()
    program = entries[pickles[0]]
    if program.file_size > MAX_EXPANDED_PICKLE + EXPANSION * _size(file):
        raise WeightsError(f"is damaged or hostile: its pickle expands to {program.file_size} bytes")
    root = machine.run(io.BytesIO(archive.read(program)))
    # Older files lack the entry; they were written on little-endian machines.
    order = b"little"
    if f"{folder}byteorder" in entries:
        order = archive.open(f"{folder}byteorder").read(16).strip()
    if order not in BYTE_ORDERS:
        raise WeightsError(f"has byte order {order!r}; known: little, big")
    loaders = {}
    for key, (dtype, elements) in machine.storages.items():
        name = f"{folder}data/{key}"
        if name not in entries:
            raise WeightsError(f"is incomplete: it has no entry {shown(name)}")
        if entries[name].file_size != elements * dtype.itemsize:
            raise WeightsError(
                f"is damaged: {name} has {entries[name].file_size} bytes instead of {elements * dtype.itemsize}"
            )
        loaders[key] = ZipLoader(file, entries[name], dtype, BYTE_ORDERS[order])
    return root, loaders, machine.storages


def _require_entries(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Raise WeightsError for entries that overlap, or expand to many times the size of the file."""
    if unknown := {entry.compress_type for entry in archive.infolist()} - {*COMPRESSIONS}:
        raise WeightsError(f"has entries of compression {min(unknown)}; readable: none (0) and deflate (8)")
    size = _size(file)
    stored, expanded = (
        sum(entry.file_size for entry in archive.infolist() if entry.compress_type == kind) for kind in COMPRESSIONS
    )
    if stored > size:
        raise WeightsError(
            f"is damaged or hostile: its uncompressed entries have {stored} bytes, more than the file's {size}"
        )
    require_moderate("", expanded, size)


class ZipLoader:
    """Reads a storage from a zip entry, whose checksum it verifies once."""

    def __init__(self, file: BinaryIO, entry: zipfile.ZipInfo, dtype: np.dtype, order: str):
        file.seek(entry.header_offset)
        signature, *lengths = ZIP_LOCAL_HEADER.unpack(file.read(ZIP_LOCAL_HEADER.size))
        self.path, self.entry, self.dtype, self.order = file.name, entry, dtype, order
        self.offset = entry.header_offset + ZIP_LOCAL_HEADER.size + sum(lengths)
        self.stored = entry.compress_type == zipfile.ZIP_STORED
        if (
            signature != b"PK\x03\x04"
            or entry.flag_bits & 1
            or self.offset + entry.compress_size > _size(file)
            or self.stored
            and entry.compress_size != entry.file_size
        ):
            raise WeightsError(f"is damaged: its entry {entry.filename} lies outside the file or is encrypted")
        self.verified, self.expansions = False, 0

    def __call__(self) -> np.ndarray:
        data = _mapped(self.path, self.offset, self.entry.compress_size)
        if not self.stored:
            # PyTorch does not compress, but other tools that repack a file do.
            self.expansions += 1
            if self.expansions > MAX_EXPANSIONS and self.entry.file_size > MEBIBYTE:
                raise WeightsError(
                    f"is damaged or hostile: {self.expansions} tensors share the compressed entry "
                    f"{self.entry.filename}; save it without compression"
                )
            data = np.frombuffer(
                zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.entry.file_size + 1), np.uint8
            )
        if len(data) != self.entry.file_size or not self.verified and zlib.crc32(data) != self.entry.CRC:
            raise WeightsError(f"is damaged: the checksum of its entry {self.entry.filename} is wrong")
        self.verified = True
        return _decode(data, self.dtype, self.order)


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, Loader], dict[str, tuple[np.dtype, int]]]:
    magic = Machine().run(file)
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise WeightsError("is a pickle but not a PyTorch checkpoint: PyTorch's magic number is missing")
    protocol = Machine().run(file)
    if type(protocol) is not int or protocol != LEGACY_PROTOCOL:
        raise WeightsError(f"has protocol {shown(protocol)}; known: {LEGACY_PROTOCOL}")
    # The writer's word sizes come next. They do not matter, because storages have fixed element sizes.
    Machine().run(file)
    machine = Machine()
    root, keys = machine.run(file), Machine().run(file)
    loaders = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in machine.storages:
            raise WeightsError(f"is damaged: it has a storage {shown(key)}, which no tensor uses")
        dtype, elements = machine.storages[key]
        stored = int.from_bytes(file.read(_require_bytes(file, 8)), "little", signed=True)
        if stored != elements:
            raise WeightsError(f"is damaged: storage {shown(key)} has {stored} elements instead of {elements}")
        size, offset = _require_bytes(file, elements * dtype.itemsize), file.tell()
        loaders[key] = functools.partial(_load, file.name, offset, size, dtype, "<")
        file.seek(offset + size)
    if absent := machine.storages.keys() - loaders.keys():
        raise WeightsError(f"is incomplete: {len(absent)} storages are missing, such as {shown(min(absent))}")
    return root, loaders, machine.storages


def _require_bytes(file: BinaryIO, count: int) -> int:
    """Return `count` if the file has that many bytes left; a damaged length could request all memory."""
    remaining = _size(file) - file.tell()
    if remaining < count:
        raise WeightsError(f"is incomplete: at least {count - remaining} bytes are missing at its end")
    return count


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _mapped(path: str, offset: int, size: int) -> np.ndarray:
    # Operating systems refuse to map zero bytes.
    return np.memmap(path, np.uint8, "r", offset, (size,)) if size else np.zeros(0, np.uint8)


def _load(path: str, offset: int, size: int, dtype: np.dtype, order: str) -> np.ndarray:
    return _decode(_mapped(path, offset, size), dtype, order)


def _decode(data: np.ndarray, dtype: np.dtype, order: str) -> np.ndarray:
    # Integers carry the bytes, because bfloat16 has no foreign byte order and bools may have other values than 0 and 1.
    words = np.frombuffer(data, f"{order}u{dtype.itemsize}").astype(f"=u{dtype.itemsize}", copy=False)
    return words != 0 if dtype == bool else words.view(dtype)


def _read_tensor(load: Loader, tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor that is known to lie within its storage."""
    storage, offset, size, stride = tensor
    values = load()[storage.start : storage.start + storage.length]
    if math.prod(size) == 0:
        return np.zeros(size, values.dtype)
    # The stride of an axis of length one is unused, and files have arbitrary numbers there.
    steps = [step * values.itemsize if count > 1 else 0 for count, step in zip(size, stride)]
    return np.array(np.lib.stride_tricks.as_strided(values[offset:], size, steps), order="C", copy=True)


class Plain:
    """Makes plain data of a pickle's value: dicts, lists, and a `StoredArray` for each tensor."""

    def __init__(self, path: str | Path, loaders: dict[str, Loader], storages: dict[str, tuple[np.dtype, int]]):
        self.path, self.loaders, self.storages = path, loaders, storages
        self.arrays: list[StoredArray] = []
        # Keeps shared and circular references, and visits everything once.
        self.done: dict[int, Any] = {}
        self.items = self.copied = 0

    def root(self, value: Any) -> Any:
        """Return the plain data of a whole checkpoint, whose weights must be plain."""
        if isinstance(value, (StandIn, Global, ScalarType)):
            raise WeightsError(getattr(value, "problem", "") or _refusal("it", value))
        contents = self.plain(value)
        for entry in (*STATE_ENTRIES, *EMA_ENTRIES) if isinstance(contents, dict) else ():
            if isinstance(contents.get(entry), StandIn):
                raise WeightsError(_refusal(f"its {entry!r}", contents[entry]))
        return contents

    def plain(self, value: Any, level: int = 0) -> Any:
        """Return a value's plain data; raises WeightsError if it is nested or repeated too much."""
        if isinstance(value, (*LEAVES, StandIn)):
            return value
        if id(value) in self.done:
            return self.done[id(value)]
        if level > MAX_NESTING:
            raise WeightsError(f"is damaged or hostile: its values are nested more than {MAX_NESTING} levels deep")
        if isinstance(value, Dict):
            result = self.done[id(value)] = {}
            for pairs in (_pairs(value.source), value.pairs):
                self._count(len(pairs))
                for pair in pairs:
                    key, item = _pair(pair)
                    result[self._key(key)] = self.plain(item, level + 1)
            return result
        if isinstance(value, list):
            result = self.done[id(value)] = []
            self._count(len(value))
            result.extend(self.plain(item, level + 1) for item in value)
            return result
        result = self.done[id(value)] = self._immutable(value, level)
        return result

    def _immutable(self, value: Any, level: int) -> Any:
        if isinstance(value, Tensor):
            return self._array(value)
        if isinstance(value, Storage):
            return self._array(Tensor(value, 0, (value.length,), (1,)))
        if isinstance(value, Latin1):
            self.copied += len(value.text)
            require_moderate("", self.copied, os.path.getsize(self.path))
            return value.text.encode("latin1")
        if isinstance(value, Set):
            items = [item for part in value.parts for item in _items(part)]
            self._count(len(items))
            return (frozenset if value.frozen else set)(map(self._key, items))
        if type(value) is tuple:
            self._count(len(value))
            return tuple([self.plain(item, level + 1) for item in value])
        return StandIn(str(value) if isinstance(value, Global) else type(value).__name__)

    def _count(self, items: int) -> None:
        self.items += items
        if self.items > MAX_ITEMS:
            raise WeightsError(f"is damaged or hostile: its lists and dicts have more than {MAX_ITEMS} items")

    def _key(self, value: Any) -> Any:
        """Return a key or an item of a set, of which the hash takes little time."""
        if isinstance(value, LEAVES) and not isinstance(value, bytearray):
            return value
        if isinstance(value, Latin1):
            return self.plain(value)
        if type(value) is tuple:
            if len(value) > MAX_KEY_ITEMS or not all(isinstance(item, LEAVES) for item in value):
                raise WeightsError(
                    f"is damaged or hostile: a tuple of {len(value)} values is a key; keys are names, "
                    "numbers, or short tuples of these"
                )
            return value
        # Optimizers of old PyTorch versions have parameters as keys.
        return StandIn(shown(value))

    def _array(self, tensor: Tensor) -> StoredArray:
        """Return a description of a tensor, after checking that it lies within its storage."""
        storage, offset, size, stride = tensor
        if isinstance(storage, StandIn):
            raise WeightsError(f"has a tensor in {storage.name}, which is not a storage")
        shapes = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= MAX_AXES
        if not isinstance(storage, Storage) or not shapes or not all(map(is_count, (offset, *size, *stride))):
            raise WeightsError("is damaged: it has a tensor whose offset, size or stride are not numbers")
        elements = math.prod(size)
        last = offset + sum((count - 1) * step for count, step in zip(size, stride))
        if elements and (last >= storage.length or elements > max(storage.length, MAX_REPEATED_ELEMENTS)):
            text = f"a tensor of offset {offset}, size {size}, stride {stride}"[:400]
            raise WeightsError(f"is damaged: {text} does not fit its storage of {storage.length} elements")
        dtype, _ = self.storages[storage.key]
        array = StoredArray(self.path, size, dtype, functools.partial(_read_tensor, self.loaders[storage.key], tensor))
        self.arrays.append(array)
        return array


def _pairs(source: Any) -> Any:
    """Return the pairs with which a dict was made."""
    if isinstance(source, Dict):
        if source.source:
            raise WeightsError("is damaged: it makes a dict of a dict of a dict")
        return source.pairs
    return _items(source)


def _pair(pair: Any) -> Any:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise WeightsError("is damaged: it makes a dict of something other than pairs")
    return pair


def _items(items: Any) -> Any:
    if not isinstance(items, (list, tuple)):
        raise WeightsError(f"is damaged: it makes a collection of {shown(items)}")
    return items


def _refusal(place: str, value: Any) -> str:
    name = str(value) if isinstance(value, Global) else value.name if isinstance(value, StandIn) else "numpy.dtype"
    if isinstance(value, Global):
        return f"is refused: {place} is {value.name} as a value, and not weights"
    advice = TRAINING_ADVICE if name.split(".")[0] in TRAINING_SYSTEMS else ""
    return (
        f"is refused: {place} is an object of {name}, which needs its code, instead of weights; only tensors and "
        f"plain values are read there{advice}"
    )


def _with_arrays(value: Any, done: dict[int, Any]) -> Any:
    """Return plain data with arrays in place of their descriptions."""
    if isinstance(value, LEAVES) or id(value) in done:
        return done.get(id(value), value)
    if isinstance(value, StoredArray):
        done[id(value)] = value.read()
    elif isinstance(value, dict):
        copy = done[id(value)] = {}
        copy.update((key, _with_arrays(item, done)) for key, item in value.items())
    elif isinstance(value, list):
        copy = done[id(value)] = []
        copy.extend(_with_arrays(item, done) for item in value)
    elif type(value) is tuple:
        done[id(value)] = tuple([_with_arrays(item, done) for item in value])
    else:
        return value
    return done[id(value)]
