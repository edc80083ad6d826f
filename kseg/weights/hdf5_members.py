"""Read groups, names and places of floating-point arrays of HDF5 files, and nothing that leads out of the file.

HDF5 itself follows links to other files, takes elements from external files and from virtual datasets, and expands a
few bytes to gigabytes. Elements are read from their places in the file without its library.
"""

import functools
import itertools
import math
import os

import h5py
import numpy as np

from kseg.errors import WeightsError
from kseg.weights.stored_arrays import StoredArray, require_moderate

FLOATS = (
    h5py.h5t.IEEE_F16LE,
    h5py.h5t.IEEE_F16BE,
    h5py.h5t.IEEE_F32LE,
    h5py.h5t.IEEE_F32BE,
    h5py.h5t.IEEE_F64LE,
    h5py.h5t.IEEE_F64BE,
)
# In one attribute; keras.applications' ResNet101 has 345 layers.
MAX_NAMES = 2000


class Bound:
    """The bytes that a file's arrays may have together."""

    def __init__(self, file: h5py.File):
        self.path, self.total = file.filename, 0
        self.size = os.path.getsize(self.path)

    def add(self, count: int) -> None:
        """Add the bytes of an array; raises WeightsError if a file of this size cannot have so many."""
        self.total += count
        require_moderate("", self.total, self.size)


def group(parent: h5py.Group, path: str) -> h5py.Group:
    """Return a group inside the file; raises WeightsError if it is missing or something else."""
    found = _member(parent, path)
    if not isinstance(found, h5py.Group):
        raise WeightsError(f"is damaged: {path} is not a group")
    return found


def floats(parent: h5py.Group, path: str, bound: Bound) -> StoredArray:
    """Find an array of floating-point numbers.

    Args:
        parent: The group in which it lies.
        path: Its path from the group, such as "kernel:0".
        bound: The bytes that are left.

    Raises:
        WeightsError: It is missing, has other values, or is not stored as plain elements in this file.
    """
    found = _member(parent, path)
    if not isinstance(found, h5py.Dataset):
        raise WeightsError(f"is damaged: {path} is not an array")
    if found.external or found.is_virtual:
        raise WeightsError(f"is refused: the elements of {found.name} lie in other files or datasets")
    if found.shape is None or not any(found.id.get_type() == kind for kind in FLOATS):
        content = "no elements" if found.shape is None else f"elements of type {found.dtype}"
        raise WeightsError(f"has {content} in {found.name}; weights must be floating-point numbers")
    if found.id.get_create_plist().get_nfilters():
        raise WeightsError(
            f"has compressed or filtered elements in {found.name}; `h5repack -f NONE OLD NEW`, one of "
            "HDF5's tools, writes a file with plain ones"
        )
    bytes_needed = math.prod(found.shape) * found.dtype.itemsize
    bound.add(max(bytes_needed, math.prod(found.chunks or ()) * found.dtype.itemsize))
    if bytes_needed and not found.id.get_storage_size():
        raise WeightsError(f"is incomplete: {found.name} has a shape, {found.shape}, but no elements")
    if found.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        # The few elements lie among the names, at a place that HDF5 does not tell.
        return StoredArray(bound.path, found.shape, found.dtype, functools.partial(np.copy, found[()]))
    pieces = _pieces(found) if bytes_needed else {}
    shape = found.chunks or found.shape
    if any(offset < 0 or offset + math.prod(shape) * found.dtype.itemsize > bound.size for offset in pieces.values()):
        raise WeightsError(f"is damaged: elements of {found.name} lie outside of the file")
    return StoredArray(
        bound.path,
        found.shape,
        found.dtype,
        functools.partial(_read, bound.path, found.shape, found.dtype, shape, pieces),
    )


def _pieces(found: h5py.Dataset) -> dict[tuple[int, ...], int]:
    """Return {index of the first element: position in the file} of the pieces that have a dataset's elements."""
    if not found.chunks:
        return {(0,) * found.ndim: found.id.get_offset()}
    pieces: dict[tuple[int, ...], int] = {}
    found.id.chunk_iter(lambda chunk: pieces.update({chunk.chunk_offset: chunk.byte_offset}))
    starts = [range(0, length, step) for length, step in zip(found.shape, found.chunks)]
    # Every chunk of a file takes bytes there, so that this comparison of numbers bounds the list that follows it.
    if len(pieces) != math.prod(map(len, starts)) or pieces.keys() != set(itertools.product(*starts)):
        raise WeightsError(f"is incomplete: {found.name} has {len(pieces)} of {math.prod(map(len, starts))} chunks")
    return pieces


def _read(
    path: str, shape: tuple[int, ...], dtype: np.dtype, piece_shape: tuple[int, ...], pieces: dict[tuple[int, ...], int]
) -> np.ndarray:
    array = np.empty(shape, dtype)
    with open(path, "rb") as file:
        for start, offset in pieces.items():
            file.seek(offset)
            piece = np.fromfile(file, dtype, math.prod(piece_shape)).reshape(piece_shape)
            # The last chunks may extend beyond the array.
            part = array[(*map(slice, start, np.add(start, piece_shape)), ...)]
            part[...] = piece[tuple(map(slice, part.shape))]
    return array


def text(parent: h5py.Group, name: str) -> str:
    """Return an attribute that is one text; raises WeightsError if it is something else."""
    value = parent.attrs[name] if _attribute_bytes(parent, name, ()) else ""
    return value.decode() if isinstance(value, bytes) else str(value)


def texts(parent: h5py.Group, name: str) -> list[str]:
    """Return an attribute that is a list of texts; raises WeightsError if it is something else."""
    if not _attribute_bytes(parent, name, None):
        return []
    return [value.decode() if isinstance(value, bytes) else str(value) for value in parent.attrs[name]]


def _attribute_bytes(parent: h5py.Group, name: str, shape: tuple | None) -> int:
    """Return the bytes of an attribute, 0 for an empty list; raises WeightsError unless it consists of texts."""
    attribute = parent.attrs.get_id(name)
    if (
        h5py.check_string_dtype(attribute.dtype) is None
        and attribute.dtype.kind not in "SU"
        and math.prod(attribute.shape or (0,))
    ):
        raise WeightsError(f"is damaged: its attribute {name} is of type {attribute.dtype} and not a text")
    if attribute.shape is None or shape is not None and attribute.shape != shape:
        raise WeightsError(f"is damaged: its attribute {name} has shape {attribute.shape}")
    count = math.prod(attribute.shape)
    if count > MAX_NAMES:
        raise WeightsError(f"is refused: its attribute {name} has {count} texts, more than {MAX_NAMES}")
    return count * attribute.dtype.itemsize


def _member(parent: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    for part in path.split("/"):
        link = parent.get(part, getlink=True) if isinstance(parent, h5py.Group) and part else None
        if link is None:
            raise WeightsError(f"is damaged or not a Keras weights file: it has no {path}")
        if not isinstance(link, h5py.HardLink):
            raise WeightsError(f"is refused: {path} is a link to another place ({type(link).__name__})")
        parent = parent[part]
    return parent
