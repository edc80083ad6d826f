"""Read and write Keras weight files: kseg's `.weights.h5` files and those of keras.applications."""

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np

from kseg.errors import WeightsError, WorkdirError
from kseg.system.atomic_files import write_bytes
from kseg.weights import hdf5_layers
from kseg.weights.names import keras_to_torchvision
from kseg.weights.stored_arrays import StoredArray

# Epsilon of the batch normalization in keras.applications' ResNet50 (Keras 3), and in kseg.
APPLICATIONS_EPSILON = 1.001e-5
EPSILON = 1e-5

# Files of Keras 3 only number the variables of a layer. Number of variables -> their names.
VARIABLE_NAMES = {1: ("kernel",), 2: ("kernel", "bias"), 4: ("gamma", "beta", "moving_mean", "moving_variance")}


def read_layers(path: str | Path) -> dict[str, list[np.ndarray]]:
    """Read a `.weights.h5` file into {layer name: weights in Keras' order and layout}.

    Raises WeightsError if the file is missing, damaged or of another kind.
    """
    return {name: [array.read() for array in arrays] for name, arrays in open_layers(path).items()}


def open_layers(path: str | Path) -> dict[str, list[StoredArray]]:
    """Read the shapes of a `.weights.h5` file's arrays; raises WeightsError as `read_layers`."""
    return hdf5_layers.open_layers(path, hdf5_layers.numbered_layers)


def is_numbered(path: str | Path) -> bool:
    """Return whether an HDF5 file has the layout of Keras 3 and kseg; raises WeightsError as `read_layers`."""
    return hdf5_layers.open_layers(path, lambda file: {"numbered": "layers" in file})["numbered"]


def open_applications(path: str | Path) -> tuple[dict[str, StoredArray], list[str]]:
    """Open a weight file of keras.applications' ResNet50 or ResNet101.

    Both formats are supported: the layer groups of the published `.h5` files, and the `.weights.h5` files of Keras 3.
    Convolution biases, which kseg's networks lack, are subtracted from the moving means of the following norms. The
    difference between the epsilons is added to the moving variances. Neither changes an output.

    Returns:
        The weights by torchvision's names in PyTorch's layout, and notes on the conversion.

    Raises:
        WeightsError: The file is missing, damaged or has other layers.
    """
    layers = hdf5_layers.open_layers(path, _applications_layers)
    unknown = sorted(name for name in layers if not keras_to_torchvision(name))
    if unknown or not layers:
        raise WeightsError(
            f"{path} is not a weight file of keras.applications' ResNet50 or ResNet101: it has "
            + (
                f"{len(unknown)} layers with other names, {', '.join(unknown[:3])}"
                if unknown
                else "no layers with weights"
            )
        )
    state: dict[str, StoredArray] = {}
    for layer, values in layers.items():
        module = keras_to_torchvision(layer)
        if "kernel" in values:
            kernel = values["kernel"]
            state[f"{module}.weight"] = kernel.transposed((3, 2, 0, 1) if kernel.ndim == 4 else (1, 0))
            if kernel.ndim == 2 and "bias" in values:
                state[f"{module}.bias"] = values["bias"]
        else:
            bias = layers.get(f"{layer.removesuffix('_bn')}_conv", {}).get("bias")
            state |= {
                f"{module}.weight": values["gamma"],
                f"{module}.bias": values["beta"],
                f"{module}.running_mean": _without_bias(values["moving_mean"], bias),
                f"{module}.running_var": _with_epsilon(values["moving_variance"]),
            }
    return state, [
        "names of keras.applications were translated and biases folded into the norms; its ImageNet weights "
        "expect init.channels=BGR, and model.stem=7x7 with model.stride_on=1x1"
    ]


def _without_bias(mean: StoredArray, bias: StoredArray | None) -> StoredArray:
    if bias is None:
        return mean
    return mean.changed(lambda array: array - bias.read(), dtype=np.result_type(mean.dtype, bias.dtype))


def _with_epsilon(variance: StoredArray) -> StoredArray:
    difference = np.float32(APPLICATIONS_EPSILON - EPSILON)
    return variance.changed(lambda array: array + difference, dtype=np.result_type(variance.dtype, difference))


def _applications_layers(file: h5py.File) -> dict[str, dict[str, StoredArray]]:
    """Return {layer name: {Keras' weight name ("kernel", "moving_mean", ...): array}}."""
    if "layers" in file:
        layers = {
            name: dict(zip(VARIABLE_NAMES.get(len(values), ()), values, strict=True))
            for name, values in hdf5_layers.numbered_layers(file).items()
        }
    else:
        layers = hdf5_layers.grouped_layers(file)
    kinds = [set(names) for names in VARIABLE_NAMES.values()]
    for name, weights in layers.items():
        if weights.keys() not in kinds or "kernel" in weights and weights["kernel"].ndim not in (2, 4):
            raise ValueError(f"layer {name} has {', '.join(weights)}")
    return layers


class WeightsInMemory(io.BytesIO):
    """A .weights.h5 file in memory.

    After a failed write to disk, HDF5 crashes the process when it opens another file.
    """

    def __str__(self) -> str:
        # Keras requires a name that ends in .weights.h5.
        return "memory.weights.h5"


def save_weights(model: keras.Model, path: Path, report: Callable[[str], None] = print) -> None:
    """Write a model's weights to a `.weights.h5` file atomically.

    Args:
        model: The model.
        path: The file to write.
        report: Receives messages about retries.

    Raises:
        WorkdirError: The disk is full or cannot be written.

    Example:
        >>> from kseg.inference import trained_model
        >>> model, _, _ = trained_model.load_trained(workdir)
        >>> out.mkdir(exist_ok=True)
        >>> save_weights(model, out / "copy.weights.h5")
        >>> sorted(path.name for path in out.glob("*.h5"))
        ['copy.weights.h5']
    """
    content = WeightsInMemory()
    model.save_weights(content)
    try:
        write_bytes(path, content.getbuffer(), report)
    except OSError as error:
        raise WorkdirError(f"cannot write {path}: {error.strerror}") from None
