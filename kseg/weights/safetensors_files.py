"""Read .safetensors files: a JSON header with the place of each array, then the elements of all of them.

Source: the format's description in its own repository, huggingface/safetensors (README, "Format").
"""

import functools
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kseg.errors import WeightsError
from kseg.weights.stored_arrays import StoredArray

# The largest header that the format permits, bytes.
MAX_HEADER = 100_000_000
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
METADATA = "__metadata__"


def is_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file of `size` bytes that begins with `head` has the header of a .safetensors file."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read all arrays of a .safetensors file.

    Returns:
        The arrays by name, with their shapes and dtypes (bfloat16 as ml_dtypes.bfloat16).

    Raises:
        WeightsError: The file is missing or damaged, or its arrays overlap or leave gaps.
    """
    return {name: array.read() for name, array in open_safetensors(path).items()}


def open_safetensors(path: str | Path) -> dict[str, StoredArray]:
    """Read the header of a .safetensors file; raises WeightsError as `read_safetensors`."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise WeightsError(f"is damaged: its header has {length} bytes, the file {size}")
            entries = json.loads(file.read(length), object_pairs_hook=_unique)
            if not isinstance(entries, dict):
                raise WeightsError("is damaged: its header is not a JSON object")
            entries.pop(METADATA, None)
            places = {name: _place(name, entry) for name, entry in entries.items()}
            _require_gapless(places, size - 8 - length)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise WeightsError(f"{path} is damaged or not a .safetensors file ({type(error).__name__}: {error})") from None
    return {
        name: StoredArray(
            path, shape, dtype, functools.partial(_elements, path, 8 + length + start, end - start, dtype, shape)
        )
        for name, (dtype, shape, start, end) in places.items()
    }


def _elements(path: str | Path, offset: int, size: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    with open(path, "rb") as file:
        file.seek(offset)
        return np.frombuffer(bytearray(file.read(size)), dtype).reshape(shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise WeightsError("is damaged: its header repeats a name")
    return entries


def _place(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Return dtype, shape, first byte and end of an array from its entry in the header."""
    keys = ("dtype", "shape", "data_offsets")
    kind, shape, offsets = (entry.get(key) for key in keys) if isinstance(entry, dict) else (None,) * 3
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers) or len(offsets) != 2:
        raise WeightsError(f"is damaged: its header describes {name[:100]!r} wrongly")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise WeightsError(f"has elements of type {str(kind)[:20]} in {name[:100]!r}; readable: {', '.join(DTYPES)}")
    if math.prod(shape) * DTYPES[kind].itemsize != offsets[1] - offsets[0]:
        raise WeightsError(f"is damaged: {name[:100]!r} has shape {shape} but {offsets[1] - offsets[0]} bytes")
    return DTYPES[kind], tuple(shape), *offsets


def _require_gapless(places: dict[str, tuple], size: int) -> None:
    """Raise WeightsError unless the arrays fill all bytes behind the header, each byte once."""
    position = 0
    for name, (_, _, start, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if start != position:
            raise WeightsError(f"is damaged: {name[:100]!r} begins at byte {start} instead of {position}")
        position = end
    if position != size:
        raise WeightsError(f"is damaged or incomplete: its arrays have {position} bytes, the file holds {size}")
