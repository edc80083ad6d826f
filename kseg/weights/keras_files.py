"""Weight files that Keras writes: our own, and those of keras.applications."""

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np

from kseg.errors import WeightsError, WorkdirError
from kseg.system.atomic_files import write_bytes
from kseg.weights.names import keras_to_torchvision

# What h5py raises for damaged files and for files that are laid out otherwise.
DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError)

# keras.applications' batch normalisation adds this to the variance, ours 1e-5 (Keras 3, ResNet50).
APPLICATIONS_EPSILON = 1.001e-5
EPSILON = 1e-5

# What the files of Keras 3 number: the variables of a layer, by how many there are.
NUMBERED = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}


def read_layers(path: str | Path) -> dict[str, list[np.ndarray]]:
    """Return each layer's weights, in Keras' order and layout, of a `.weights.h5` file by the layer's name.

    Raises WeightsError where the file is missing, damaged or no such file.
    """
    return _read(path, _numbered_layers)


def read_applications(path: str | Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return (torchvision's names and layouts, notes) of a weight file of keras.applications' ResNet50 or ResNet101.

    Both layouts are read, the groups of layers in the published `.h5` files and the `.weights.h5` of Keras 3. The
    biases of the convolutions, which our networks lack, are taken off the moving means of the norms behind them, and
    the other epsilon is added to the moving variances, which changes no output.
    Raises WeightsError where the file is missing, damaged or has other layers.
    """
    stored = _read(path, _applications_layers)
    unknown = sorted(name for name in stored if not keras_to_torchvision(name))
    if unknown or not stored:
        raise WeightsError(f"{path} is no weight file of keras.applications' ResNet50 or ResNet101: it has "
                           + (f"{len(unknown)} layers of other names, {', '.join(unknown[:3])}" if unknown
                              else "no layers of weights"))
    state: dict[str, np.ndarray] = {}
    for layer, values in stored.items():
        module = keras_to_torchvision(layer)
        if "kernel" in values:
            kernel = values["kernel"]
            state[f"{module}.weight"] = kernel.transpose((3, 2, 0, 1) if kernel.ndim == 4 else (1, 0))
            if kernel.ndim == 2 and "bias" in values:
                state[f"{module}.bias"] = values["bias"]
        else:
            bias = stored.get(f"{layer.removesuffix('_bn')}_conv", {}).get("bias", 0)
            state |= {f"{module}.weight": values["gamma"], f"{module}.bias": values["beta"],
                      f"{module}.running_mean": values["moving_mean"] - bias,
                      f"{module}.running_var": values["moving_variance"] + np.float32(APPLICATIONS_EPSILON - EPSILON)}
    return state, ["names of keras.applications were translated, biases folded into the norms; its ImageNet weights "
                   "expect init.channels=BGR, and model.stem=7x7 with model.stride_on=1x1"]


def _read(path: str | Path, layers: Callable[[h5py.File], dict]) -> dict:
    try:
        with h5py.File(path, "r") as file:
            return layers(file)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except DAMAGE as error:
        raise WeightsError(f"{path} is damaged or no Keras weights file ({type(error).__name__}: {error})") from error


def _numbered_layers(file: h5py.File) -> dict[str, list[np.ndarray]]:
    stored = {}
    for layer in file["layers"].values():
        variables = layer["vars"]
        if len(variables):
            stored[variables.attrs["name"]] = [variables[str(index)][()] for index in range(len(variables))]
    return stored


def _applications_layers(file: h5py.File) -> dict[str, dict[str, np.ndarray]]:
    """Return the weights of each layer by Keras' names for them ("kernel", "moving_mean", ...)."""
    if "layers" in file:
        stored = {name: dict(zip(NUMBERED.get(len(values), ()), values, strict=True))
                  for name, values in _numbered_layers(file).items()}
    else:
        stored = _grouped_layers(file.get("model_weights", file))
    kinds = [set(kinds) for kinds in NUMBERED.values()]
    for name, weights in stored.items():
        if weights.keys() not in kinds or "kernel" in weights and weights["kernel"].ndim not in (2, 4):
            raise ValueError(f"layer {name} has {', '.join(weights)}")
    return stored


def _grouped_layers(root: h5py.Group) -> dict[str, dict[str, np.ndarray]]:
    stored = {}
    for name in root.attrs["layer_names"]:
        group = root[_text(name)]
        # A weight's name is a path, such as conv1_conv/kernel:0.
        weights = {_text(weight).rpartition("/")[2].partition(":")[0]: group[_text(weight)][()]
                   for weight in group.attrs["weight_names"]}
        if weights:
            stored[_text(name)] = weights
    return stored


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


class WeightsInMemory(io.BytesIO):
    """A .weights.h5 file that HDF5 writes to memory: where it cannot write, a later file of it crashes the process."""

    def __str__(self) -> str:
        # Keras asks for a name with this ending.
        return "memory.weights.h5"


def save_weights(model: keras.Model, path: Path, report: Callable[[str], None] = print) -> None:
    """Write a .weights.h5 file atomically; raises WorkdirError where the disk is full or cannot be written."""
    content = WeightsInMemory()
    model.save_weights(content)
    try:
        write_bytes(path, content.getbuffer(), report)
    except OSError as error:
        raise WorkdirError(f"cannot write {path}: {error.strerror}") from None
