"""Weights from files: MMSegmentation and SSSegmentation checkpoints, backbone files, and Keras weight files.

Layer names of our models are MMSegmentation's module paths, so a checkpoint fits by name. Loading is strict and all or
nothing: every weight is accounted for by name and shape before the first one is assigned.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
import numpy as np

from kseg import torch_files
from kseg.errors import WeightsError, unknown

# Keras weight -> PyTorch weight. Only kernels change their layout on the way.
WEIGHT_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "codewords": "codewords",
    "scale": "scale",
}

# Axes of a PyTorch array in Keras order.
CONV_AXES = (2, 3, 1, 0)
DEPTHWISE_AXES = (2, 3, 0, 1)
DENSE_AXES = (1, 0)

# SSSegmentation module -> MMSegmentation module, for every head alike and for each head.
SSS_COMMON_MODULES = {
    "backbone_net": "backbone",
    "auxiliary_decoder.0": "auxiliary_head.convs.0.conv",
    "auxiliary_decoder.1": "auxiliary_head.convs.0.bn",
    "auxiliary_decoder.4": "auxiliary_head.conv_seg",
}
SSS_HEAD_MODULES = {
    "encnet": {
        "bottleneck.0": "decode_head.bottleneck.conv",
        "bottleneck.1": "decode_head.bottleneck.bn",
        "enc_module.encoding_project.0": "decode_head.enc_module.encoding_project.conv",
        "enc_module.encoding_project.1": "decode_head.enc_module.encoding_project.bn",
        "enc_module.encoding.0": "decode_head.enc_module.encoding.0",
        "enc_module.encoding.1": "decode_head.enc_module.encoding.1",
        "enc_module.fc.0": "decode_head.enc_module.fc.0",
        "se_layer": "decode_head.se_layer",
        "decoder.1": "decode_head.conv_seg",
    },
    "fcn": {
        "decoder.0": "decode_head.convs.0.conv",
        "decoder.1": "decode_head.convs.0.bn",
        "decoder.3": "decode_head.convs.1.conv",
        "decoder.4": "decode_head.convs.1.bn",
        "decoder.7": "decode_head.conv_seg",
    },
}


class Target(NamedTuple):
    """A variable of the model and the order in which it takes a PyTorch array's axes; empty: as they come."""

    variable: keras.Variable
    axes: tuple[int, ...]

    def torch_shape(self) -> tuple[int, ...]:
        shape = dict(zip(self.axes or range(len(self.variable.shape)), self.variable.shape))
        return tuple(shape[axis] for axis in range(len(shape)))


def read_state(path: str | Path) -> dict[str, np.ndarray]:
    """Return the named arrays of a .npz, .pth or .pt file, as they lie in it, in PyTorch's names and layout.

    Checkpoints are unwrapped ("state_dict" of MMSegmentation, "model" of SSSegmentation), and `num_batches_tracked`,
    which inference and training do without, is left out.
    Raises WeightsError where the file is missing, damaged, of another kind or holds anything but arrays.
    """
    path = Path(path)
    if path.suffix == ".npz":
        state = _read_npz(path)
    elif path.suffix in (".pth", ".pt"):
        state = torch_files.read(path)
    else:
        raise WeightsError(f"{path} has an unknown suffix {path.suffix!r}; choices: .npz, .pth, .pt")
    if isinstance(state, dict):
        state = state.get("state_dict", state.get("model", state))
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"{path} holds no named weights; expected a dict of arrays, alone or under"
                           " 'state_dict' or 'model'")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise WeightsError(f"{path} holds {name!r} of type {type(value).__name__}; expected a named array")
    return {name: array for name, array in state.items() if name.rpartition(".")[2] != "num_batches_tracked"}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except Exception as error:  # Besides its own errors numpy passes on those of zipfile, zlib and struct.
        raise WeightsError(f"{path} is damaged or no .npz file ({type(error).__name__}: {error})") from error


def mmseg_names(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the model's variables by their names in an MMSegmentation checkpoint, e.g. "backbone.bn1.running_mean".

    Raises WeightsError for a weight that those checkpoints have no name for.
    """
    return {name: target.variable for name, target in _targets(model).items()}


def _targets(model: keras.Model) -> dict[str, Target]:
    targets = {}
    for layer in model.layers:
        for variable in layer.weights:  # States of random generators are not among a layer's weights.
            module, _, weight = variable.path.rpartition("/")
            if weight not in WEIGHT_NAMES:
                raise WeightsError(f"{variable.path}: {unknown('weight', weight, WEIGHT_NAMES)}")
            name = f"{module}.{WEIGHT_NAMES[weight]}"
            if name in targets:
                raise WeightsError(f"{variable.path} and {targets[name].variable.path} are both called {name}")
            targets[name] = Target(variable, _axes(layer, variable) if weight == "kernel" else ())
    return targets


def _axes(layer: keras.Layer, kernel: keras.Variable) -> tuple[int, ...]:
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return DEPTHWISE_AXES
    axes = {2: DENSE_AXES, 4: CONV_AXES}
    if len(kernel.shape) not in axes:
        raise WeightsError(f"{kernel.path} has rank {len(kernel.shape)}; layouts are known for ranks 2 and 4")
    return axes[len(kernel.shape)]


def sss_to_mmseg(name: str, head: str) -> str:
    """Return the MMSegmentation name of an SSSegmentation weight of a model with that main head.

    Raises WeightsError for unknown heads and names.
    """
    if head not in SSS_HEAD_MODULES:
        raise WeightsError(unknown("head of an SSSegmentation checkpoint", head, SSS_HEAD_MODULES))
    modules = SSS_COMMON_MODULES | SSS_HEAD_MODULES[head]
    for module, replacement in modules.items():
        if name.startswith(f"{module}."):
            return replacement + name.removeprefix(module)
    choices = [f"{module}.*" for module in modules]
    raise WeightsError(unknown(f"weight of an SSSegmentation {head} model", name, choices))


def _in_mmseg_names(path: str | Path, state: dict[str, np.ndarray], head: str) -> dict[str, np.ndarray]:
    if not any(name.startswith("backbone_net.") for name in state):
        return state
    try:
        return {sss_to_mmseg(name, head): array for name, array in state.items()}
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def load_checkpoint(model: keras.Model, path: str | Path, head: str) -> None:
    """Load a whole checkpoint of MMSegmentation or SSSegmentation into a model whose main head is `head`.

    The arrays are brought into Keras layout: convolutions OIHW -> HWIO, depthwise (C, 1, H, W) -> (H, W, C, 1), linear
    (out, in) -> (in, out), and into the dtypes of the variables.
    Raises WeightsError, with the model unchanged, unless file and model have the same weights in the same shapes.
    """
    targets = _targets(model)
    state = _in_mmseg_names(path, read_state(path), head)
    _require_fit(path, targets, state, missing=targets.keys() - state.keys(), unused=state.keys() - targets.keys())
    _assign(targets, state)


def load_backbone(model: keras.Model, path: str | Path,
                  missing: Sequence[str] = (), unused: Sequence[str] = ()) -> None:
    """Load the backbone from a file with torchvision's names ("layer1.0.conv1.weight"), bare or under "backbone.".

    `missing` lists the weights that the file lacks, `unused` those that the model lacks: full names without
    "backbone.", or beginnings that end in "*" and stand for all names so begun.
    Raises WeightsError, with the model unchanged, where anything else differs or a listed name does not apply.
    """
    prefix = "backbone."
    targets = {name.removeprefix(prefix): target for name, target in _targets(model).items() if name.startswith(prefix)}
    state = {}
    for name, array in read_state(path).items():
        if name.removeprefix(prefix) in state:
            raise WeightsError(f"{path} has {name.removeprefix(prefix)} both with and without {prefix!r}")
        state[name.removeprefix(prefix)] = array
    absent, surplus, shared = targets.keys() - state, state.keys() - targets, targets.keys() & state
    absent -= _listed(path, "missing", missing, absent, shared)
    surplus -= _listed(path, "unused", unused, surplus, shared)
    _require_fit(path, targets, state, absent, surplus)
    _assign(targets, state)


def _listed(path: str | Path, argument: str, patterns: Sequence[str], names: set[str], shared: set[str]) -> set[str]:
    """Return those of `names` that the patterns cover; one that covers none of them, or a shared name, is an error."""
    covered = set()
    for pattern in patterns:
        if common := sorted(name for name in shared if _matches(name, pattern)):
            raise WeightsError(f"{path}: {argument} lists {pattern!r}, but both file and model have {common[0]}")
        found = {name for name in names if _matches(name, pattern)}
        if not found:
            raise WeightsError(f"{path}: {argument} lists {pattern!r}, which is not among the {len(names)} {argument}"
                               f" weights{_first(names)}")
        covered |= found
    return covered


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _require_fit(path: str | Path, targets: Mapping[str, Target], state: Mapping[str, np.ndarray],
                 missing: Collection[str], unused: Collection[str]) -> None:
    other_shapes = [f"{name} (file {state[name].shape}, model {target.torch_shape()})"
                    for name, target in targets.items()
                    if name in state and state[name].shape != target.torch_shape()]
    _require_none(path, missing, unused, other_shapes)


def _require_none(path: str | Path, missing: Collection[str], unused: Collection[str], other_shapes: list[str]) -> None:
    found = {"missing in the file": missing, "unknown to the model": unused, "of another shape": other_shapes}
    lines = [f"  {len(names)} {what}{_first(names)}" for what, names in found.items() if names]
    if lines:
        raise WeightsError("\n".join([f"{path} does not fit the model:", *lines]))


def _first(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return f": {shown}{', ...' if len(names) > 5 else ''}" if names else ""


def _assign(targets: Mapping[str, Target], state: Mapping[str, np.ndarray]) -> None:
    for name, target in targets.items():
        if name in state:
            array = np.transpose(state[name], target.axes) if target.axes else state[name]
            target.variable.assign(array.astype(target.variable.dtype))


def load_keras(model: keras.Model, path: str | Path) -> None:
    """Load a Keras `.weights.h5` file into the model that wrote it, or one built alike.

    Raises WeightsError, with the model unchanged, where the file is missing, damaged or was written by another model.
    """
    if not str(path).endswith(".weights.h5"):
        raise WeightsError(f"{path} is no Keras weights file; its name has to end in .weights.h5")
    # Keras itself goes by the order of the layers, not their names, and passes over layers that only the file has.
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    try:
        stored = _read_keras(path)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # What h5py raises for damaged files.
        raise WeightsError(f"{path} is damaged or no Keras weights file ({type(error).__name__}: {error})") from error
    other_shapes = []
    for name in layers.keys() & stored.keys():
        found = [array.shape for array in stored[name].values()]
        expected = [tuple(variable.shape) for variable in layers[name].weights]
        if found != expected:
            other_shapes.append(f"{name} (file {found}, model {expected})")
    _require_none(path, layers.keys() - stored, stored.keys() - layers, other_shapes)
    for name, layer in layers.items():
        layer.load_own_variables(stored[name])


def _read_keras(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Return each layer's weights in a Keras file, numbered as Keras numbers them, by the layer's name."""
    stored = {}
    with h5py.File(path, "r") as file:
        for layer in file["layers"].values():
            variables = layer["vars"]
            if len(variables):
                stored[variables.attrs["name"]] = {str(i): variables[str(i)][()] for i in range(len(variables))}
    return stored
