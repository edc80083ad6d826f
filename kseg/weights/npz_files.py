"""Describe the arrays of .npz files, which are zip files with an array in each entry."""

import functools
import zipfile
from pathlib import Path

import numpy as np

from kseg.errors import WeightsError
from kseg.weights.stored_arrays import StoredArray, require_moderate

# Version of an array's format -> reader of its header. Version 3 is for dtypes with fields.
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_npz(path: str | Path) -> dict[str, StoredArray]:
    """Read the headers of all arrays of an .npz file.

    Returns:
        The arrays by name. They keep the file open.

    Raises:
        WeightsError: The file is missing or damaged, or an array consists of Python objects.
    """
    try:
        archive = zipfile.ZipFile(path)
        entries = archive.infolist()
        require_moderate(path, sum(entry.file_size for entry in entries), Path(path).stat().st_size)
        return {entry.filename.removesuffix(".npy"): _stored(path, archive, entry) for entry in entries}
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except WeightsError:
        raise
    except Exception as error:  # NumPy also passes on errors of zipfile, zlib and struct.
        raise WeightsError(f"{path} is damaged or not an .npz file ({type(error).__name__}: {error})") from error


def _stored(path: str | Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> StoredArray:
    with archive.open(entry) as file:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} has Python objects, which are not read (allow_pickle=False)")
    stored = StoredArray(path, shape, dtype, functools.partial(_read, archive, entry))
    if min(shape, default=0) < 0 or start + stored.nbytes > entry.file_size:
        raise ValueError(f"{entry.filename} has shape {shape} but {entry.file_size} bytes")
    return stored


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
