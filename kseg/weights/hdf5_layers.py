"""Open the layers of an HDF5 weight file, first in a process that a damaged file may stop.

HDF5's library crashes on some damaged files, and on others it does not come to an end.
"""

import contextlib
import functools
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py

from kseg.errors import WeightsError
from kseg.weights import hdf5_members
from kseg.weights.stored_arrays import StoredArray

# Errors of h5py for damaged files and for files with another layout.
ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, MemoryError)

# Limits of the trial: seconds of a processor at the start and per byte, and memory beside the arrays, bytes. They are
# ten times what a sound file needs.
START_SECONDS, SECONDS_PER_BYTE, MORE_BYTES = 5, 2e-8, 1 << 30
TRIAL = """\
import sys
sys.path.insert(0, sys.argv[1])
from kseg.weights import hdf5_layers
print(hdf5_layers.fault(sys.argv[2]), end="")
"""


def open_layers(path: str | Path, layers_of: Callable[[h5py.File], dict]) -> dict:
    """Open the layers of a file with `numbered_layers` or `grouped_layers`.

    Args:
        path: The file.
        layers_of: Describes the layers of the open file.

    Returns:
        What `layers_of` returns.

    Raises:
        WeightsError: The file is missing, damaged or of another kind, or it stops a process that reads it.
    """
    if not Path(path).exists():
        raise WeightsError(f"{path} does not exist")
    status = Path(path).stat()
    _try_in_process(str(path), status.st_size, status.st_mtime_ns)
    try:
        with h5py.File(path, "r") as file:
            return layers_of(file)
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from None
    except ERRORS as error:
        raise WeightsError(f"{path} {_describe(error)}") from error


@functools.lru_cache(maxsize=8)
def _try_in_process(path: str, size: int, modified: int) -> None:
    """Raise WeightsError if a process of its own cannot read a file; a file of this size and time is tried once."""
    # Isolated from the working directory, whose files could have the names of modules.
    trial = subprocess.run(
        [sys.executable, "-P", "-c", TRIAL, str(Path(__file__).resolve().parents[2]), path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    if trial.returncode == -signal.SIGXCPU:
        raise WeightsError(f"{path} is damaged: HDF5 does not come to an end reading it")
    if trial.returncode < 0:
        raise WeightsError(f"{path} is damaged: HDF5 crashes reading it (signal {-trial.returncode})")
    if trial.returncode or trial.stdout:
        raise WeightsError(f"{path} {trial.stdout or 'cannot be read: ' + trial.stderr.strip()[-300:]}")


def fault(path: str) -> str:
    """Open all layers of a file under limits on time and memory, and return what is wrong with it, or "".

    This process ends by a signal if the library crashes or exceeds the time.
    """
    size = Path(path).stat().st_size
    seconds = math.ceil(START_SECONDS + size * SECONDS_PER_BYTE)
    # An administrator may have set a lower limit already, which cannot be raised; only Linux tells the memory in use.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MORE_BYTES + 3 * size,) * 2)
    # A crash is told by its signal and needs no file with the process' memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with h5py.File(path, "r") as file:
            (numbered_layers if "layers" in file else grouped_layers)(file)
    except WeightsError as error:
        return str(error)
    except ERRORS as error:
        return _describe(error)
    return ""


def _address_space() -> int:
    """Return the bytes that this process has reserved: with many cores, NumPy reserves gigabytes at its import."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def numbered_layers(file: h5py.File) -> dict[str, list[StoredArray]]:
    """Return {layer name: weights in Keras' order} of a file of Keras 3, which numbers them."""
    layers, root = {}, hdf5_members.group(file, "layers")
    bound = hdf5_members.Bound(file)
    for name in root:
        variables = hdf5_members.group(hdf5_members.group(root, name), "vars")
        if len(variables):
            layers[hdf5_members.text(variables, "name")] = [
                hdf5_members.floats(variables, str(index), bound) for index in range(len(variables))
            ]
    return layers


def grouped_layers(file: h5py.File) -> dict[str, dict[str, StoredArray]]:
    """Return {layer name: {weight name ("kernel", "moving_mean", ...): array}} of a file of Keras before version 3."""
    layers, bound = {}, hdf5_members.Bound(file)
    root = hdf5_members.group(file, "model_weights") if "model_weights" in file.keys() else file
    for name in hdf5_members.texts(root, "layer_names"):
        group = hdf5_members.group(root, name)
        # A weight's name is a path such as conv1_conv/kernel:0.
        weights = {
            weight.rpartition("/")[2].partition(":")[0]: hdf5_members.floats(group, weight, bound)
            for weight in hdf5_members.texts(group, "weight_names")
        }
        if weights:
            layers[name] = weights
    return layers


def _describe(error: Exception) -> str:
    return f"is damaged or not a Keras weights file ({type(error).__name__}: {error})"
