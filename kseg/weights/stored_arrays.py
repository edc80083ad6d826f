"""Describe arrays inside of weight files by name and shape, so that their elements are read only once they fit."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kseg.errors import WeightsError

MEBIBYTE = 2**20
# Without a model that tells what is needed, the arrays of a file may together have this many bytes, and this many times
# the size of the file: a few hundred bytes can describe gigabytes.
FREE_BYTES = 64 * MEBIBYTE
EXPANSION = 4


class StoredArray:
    """An array in a file: its shape and dtype are known, its elements are read by `read`."""

    __slots__ = ("path", "shape", "dtype", "_load")

    def __init__(self, path: str | Path, shape: tuple[int, ...], dtype: np.dtype, load: Callable[[], np.ndarray]):
        """Describe an array.

        Args:
            path: The file, for messages.
            shape: The array's shape.
            dtype: The array's dtype.
            load: Reads the array; it may raise anything if the file is damaged.
        """
        self.path, self.shape, self.dtype, self._load = path, tuple(shape), np.dtype(dtype), load

    @property
    def nbytes(self) -> int:
        """Return the number of bytes of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    def read(self) -> np.ndarray:
        """Return the elements as an array of this shape and dtype; raises WeightsError if the file is damaged."""
        try:
            array = self._load()
        except WeightsError as error:
            text = str(error)
            raise WeightsError(text if text.startswith(str(self.path)) else f"{self.path} {text}") from None
        except MemoryError:
            raise WeightsError(
                f"{self.path} has an array of shape {self.shape}, for which the memory is too small"
            ) from None
        except Exception as error:  # Damaged files raise nearly any exception.
            raise WeightsError(f"{self.path} is damaged ({type(error).__name__}: {error})") from error
        if array.shape != self.shape or array.dtype != self.dtype:
            raise WeightsError(
                f"{self.path} is damaged: an array has shape {array.shape} and type {array.dtype} "
                f"instead of {self.shape} and {self.dtype}"
            )
        return array

    def changed(
        self,
        change: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...] | None = None,
        dtype: type | None = None,
    ) -> "StoredArray":
        """Return the array that `change` will make of this one once it is read.

        Args:
            change: Maps the array as it is read.
            shape: The resulting shape; None if it stays the same.
            dtype: The resulting dtype; None if it stays the same.
        """
        return StoredArray(
            self.path,
            self.shape if shape is None else shape,
            self.dtype if dtype is None else dtype,
            lambda: change(self.read()),
        )

    def transposed(self, axes: Sequence[int]) -> "StoredArray":
        """Return the array with its axes in another order, as np.transpose has it."""
        return self.changed(lambda array: np.transpose(array, axes), tuple(self.shape[axis] for axis in axes))


def read_all(path: str | Path, arrays: Mapping[str, StoredArray]) -> dict[str, np.ndarray]:
    """Read arrays for which no model tells what is needed.

    Args:
        path: The file that they come from.
        arrays: The arrays by name.

    Raises:
        WeightsError: The file is damaged, or too small for arrays of so many bytes.
    """
    require_moderate(path, sum(array.nbytes for array in arrays.values()), Path(path).stat().st_size)
    return {name: array.read() for name, array in arrays.items()}


def require_moderate(path: str | Path, total: int, size: int) -> None:
    """Raise WeightsError if a file's arrays have many more bytes than the file itself.

    Args:
        path: The file.
        total: Bytes of all arrays that are about to be read.
        size: Bytes of the file.
    """
    if total > FREE_BYTES + EXPANSION * size:
        raise WeightsError(f"{path} is damaged or hostile: its {size} bytes describe arrays of {total} bytes")
