"""Weights from files into models.

Layer names of our models are MMSegmentation's module paths, so a checkpoint fits by name. Loading is strict and all or
nothing: every weight is accounted for by name and shape before the first one is assigned. What shall not be loaded is
listed: by full names, or by beginnings that end in "*".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import keras
import numpy as np

from kseg.config import Config
from kseg.errors import WeightsError, unknown
from kseg.weights import downloads, keras_files
from kseg.weights.diagnosis import diagnose
from kseg.weights.foreign_files import read_checkpoint, reverse_first_kernel
from kseg.weights.names import CLASSIFIERS, mmseg_head

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

# Lines of an error that may leave no sight of the first.
LONG = 20

# Axes of a PyTorch array in Keras order.
CONV_AXES = (2, 3, 1, 0)
DEPTHWISE_AXES = (2, 3, 0, 1)
DENSE_AXES = (1, 0)


class Target(NamedTuple):
    """A variable of the model and the order in which it takes an array's axes; empty: as they come."""

    variable: keras.Variable
    axes: tuple[int, ...]

    def shape(self) -> tuple[int, ...]:
        """Return the shape that an array has to have."""
        shape = dict(zip(self.axes or range(len(self.variable.shape)), self.variable.shape))
        return tuple(shape[axis] for axis in range(len(shape)))


def mmseg_names(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the model's variables by their names in an MMSegmentation checkpoint, e.g. "backbone.bn1.running_mean".

    Raises WeightsError for a weight that those checkpoints have no name for.
    """
    return {name: target.variable for name, target in torch_targets(model).items()}


def torch_targets(model: keras.Model) -> dict[str, Target]:
    """Return the model's variables as `mmseg_names` does, with the layout that PyTorch's arrays have for each."""
    targets = {}
    for layer in model.layers:
        for variable in layer.weights:  # States of random generators are not among a layer's weights.
            name = _name(variable)
            if name in targets:
                raise WeightsError(f"{variable.path} and {targets[name].variable.path} are both called {name}")
            kernel = variable.path.endswith("/kernel")
            targets[name] = Target(variable, _axes(layer, variable) if kernel else ())
    return targets


def _name(variable: keras.Variable) -> str:
    module, _, weight = variable.path.rpartition("/")
    if weight not in WEIGHT_NAMES:
        raise WeightsError(f"{variable.path}: {unknown('weight', weight, WEIGHT_NAMES)}")
    return f"{module}.{WEIGHT_NAMES[weight]}"


def _axes(layer: keras.Layer, kernel: keras.Variable) -> tuple[int, ...]:
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return DEPTHWISE_AXES
    axes = {2: DENSE_AXES, 4: CONV_AXES}
    if len(kernel.shape) not in axes:
        raise WeightsError(f"{kernel.path} has rank {len(kernel.shape)}; layouts are known for ranks 2 and 4")
    return axes[len(kernel.shape)]


def load_initial(model: keras.Model, config: Config) -> list[str]:
    """Load what config.init names, if anything, and return sentences on it.

    init.backbone is a path, or the name of a published file where it has no suffix and no such file is there.
    Raises WeightsError as `load_checkpoint` and `load_backbone` do, and where a published file is unknown or absent.
    """
    init = config.init
    if init.weights:
        notes = load_checkpoint(model, init.weights, config.model.head, init.skip, init.channels)
        return [f"weights from {init.weights}", *notes]
    if not init.backbone:
        return []
    path = Path(init.backbone)
    if not path.suffix and not path.exists():
        path = downloads.backbone(init.backbone)
    return [f"backbone from {path}", *load_backbone(model, path, init.skip, init.channels, config.data.std)]


def load_checkpoint(model: keras.Model, path: str | Path, head: str, skip: Sequence[str] = (),
                    channels: Literal["RGB", "BGR"] = "RGB", average: bool = False) -> list[str]:
    """Load weights of the whole model, whose main head is `head`, and return sentences on what was done to them.

    The file is a checkpoint of MMSegmentation or SSSegmentation (.pth, .pt, .npz) or of ours (.weights.h5). Arrays are
    brought into Keras layout: convolutions OIHW -> HWIO, depthwise (C, 1, H, W) -> (H, W, C, 1), linear (out, in) ->
    (in, out). `skip` lists what is not loaded, whether the file lacks it, the model lacks it, its shape is another or
    all would fit: names such as "decode_head.conv_seg.bias", or beginnings such as "decode_head.*". `channels` and
    `average` are those of `read_checkpoint`.
    Raises WeightsError, with the model unchanged, where anything else differs, where a name in `skip` is nowhere, and
    where a weight is not finite.
    """
    if str(path).endswith(".weights.h5"):
        if average:
            raise WeightsError(f"{path} holds one set of weights, no average beside it")
        return _load_keras(model, path, head, skip, channels)
    checkpoint = read_checkpoint(path, channels, average)
    return checkpoint.notes + _load(path, torch_targets(model), checkpoint.state, skip, head)


def load_backbone(model: keras.Model, path: str | Path, skip: Sequence[str] = (),
                  channels: Literal["RGB", "BGR"] = "RGB", std: Sequence[float] = ()) -> list[str]:
    """Load the backbone from a file of torchvision, mmpretrain or keras.applications and return what was done to it.

    `skip` is `load_checkpoint`'s, in torchvision's names ("layer1.0.conv1.weight"). The classifiers of ImageNet belong
    to these files and are left out without being listed.

    keras.applications feeds its networks pictures of which the means are subtracted and which are divided by nothing.
    `std`, the RGB standard deviations that our pictures are divided by, is therefore multiplied into the first kernel
    of such a file, after which the network computes the same but for the means: its own are (103.939, 116.779, 123.68)
    in BGR, at most 0.5 grey levels from ours. Empty: the kernel stays, for a file that was trained on divided pictures.
    Raises WeightsError, with the model unchanged, as `load_checkpoint` does.
    """
    prefix = "backbone."
    targets = {name.removeprefix(prefix): target for name, target in torch_targets(model).items()
               if name.startswith(prefix)}
    checkpoint = read_checkpoint(path, channels)
    notes, state = list(checkpoint.notes), {}
    for name, array in checkpoint.state.items():
        if name.removeprefix(prefix) in state:
            raise WeightsError(f"{path} has {name.removeprefix(prefix)} both with and without {prefix!r}")
        state[name.removeprefix(prefix)] = array
    if checkpoint.system == "keras" and std and "conv1.weight" in state:
        state["conv1.weight"] = state["conv1.weight"] * np.asarray(std, np.float32)[:, None, None]
        notes.append(f"the first kernel was multiplied by data.std {tuple(std)}: keras.applications divides no picture")
    if left := [name for name in CLASSIFIERS if name in state and not any(_matches(name, one) for one in skip)]:
        state = {name: array for name, array in state.items() if name not in left}
        notes.append(f"the ImageNet classifier was left out: {', '.join(left)}")
    return notes + _load(path, targets, state, skip, head="")


def load_keras(model: keras.Model, path: str | Path) -> None:
    """Load a Keras `.weights.h5` file into the model that wrote it, or one built alike.

    Raises WeightsError, with the model unchanged, where the file is missing, damaged or was written by another model.
    """
    if not str(path).endswith(".weights.h5"):
        raise WeightsError(f"{path} is no Keras weights file; its name has to end in .weights.h5")
    _load_keras(model, path, mmseg_head(mmseg_names(model)), (), "RGB")


def _load_keras(model: keras.Model, path: str | Path, head: str, skip: Sequence[str], channels: str) -> list[str]:
    # Keras itself goes by the order of the layers, not their names, and passes over layers that only the file has.
    targets = torch_targets(model)
    names = {layer.name: [_name(variable) for variable in layer.weights] for layer in model.layers}
    state = {}
    for layer, arrays in keras_files.read_layers(path).items():
        known = names.get(layer, [])
        if len(known) != len(arrays):
            # The file numbers what a layer of the model would name.
            known = [f"{layer}.{index}" for index in range(len(arrays))]
        for name, array in zip(known, arrays):
            axes = targets[name].axes if name in targets else ()
            # In PyTorch's layout, in which everything is told and compared.
            state[name] = np.transpose(array, np.argsort(axes)) if len(axes) == array.ndim else array
    notes = []
    if channels == "BGR":
        notes.append(f"the input channels of {reverse_first_kernel(path, state)} were reversed, from BGR to RGB")
    return notes + _load(path, targets, state, skip, head)


def _load(path: str | Path, targets: Mapping[str, Target], state: Mapping[str, np.ndarray], skip: Sequence[str],
          head: str) -> list[str]:
    """Assign a state to its targets, all of it but what `skip` lists, and return a sentence on what was left out."""
    left = set()
    for pattern in skip:
        found = {name for name in targets.keys() | state if _matches(name, pattern)}
        if not found:
            raise WeightsError(f"{path}: init.skip lists {pattern!r}, but neither the file nor the model has a weight "
                               "of that name; take it out")
        left |= found
    _require_fit(path, {name: target.shape() for name, target in targets.items()},
                 {name: array.shape for name, array in state.items()}, left, head)
    loaded = {name: target for name, target in targets.items() if name not in left}
    if bad := [name for name in loaded if not np.isfinite(state[name]).all()]:
        raise WeightsError(f"{path} holds numbers that are nan or infinite in {len(bad)} weights: "
                           f"{', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}")
    if not loaded:
        raise WeightsError(f"{path}: init.skip leaves out all of the model's {len(targets)} weights")
    if bad := [name for name in loaded if name.endswith(".running_var") and (state[name] < 0).any()]:
        raise WeightsError(f"{path} holds negative variances in {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}")
    for name, (variable, axes) in loaded.items():
        array = np.transpose(state[name], axes) if axes else state[name]
        variable.assign(array.astype(variable.dtype))
    notes = [f"{len(loaded)} of the model's {len(targets)} weights were loaded"]
    if left:
        notes.append(f"init.skip left out {len(left)}: {', '.join(sorted(left))}")
    return notes


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _require_fit(path: str | Path, model: dict[str, tuple], file: dict[str, tuple], left: set[str], head: str) -> None:
    """Raise WeightsError with a first line on what the file is, and then every weight that does not fit."""
    groups = {
        "in the model and not in the file": [f"{name} {model[name]}" for name in model.keys() - file - left],
        "in the file and not in the model": [f"{name} {file[name]}" for name in file.keys() - model - left],
        "of another shape": [f"{name} file {file[name]}, model {model[name]}" for name in (model.keys() & file) - left
                             if file[name] != model[name]]}
    if not any(groups.values()):
        return
    # What is left out on purpose explains nothing.
    reason = diagnose(*({name: shape for name, shape in shapes.items() if name not in left}
                        for shapes in (file, model)), head)
    lines = [f"{path} {reason}" if reason else f"{path} does not fit the model"]
    for what, weights in groups.items():
        if weights:
            lines += [f"  {len(weights)} weights {what}:", *(f"    {weight}" for weight in sorted(weights))]
    # What has scrolled away is said once more.
    if len(lines) > LONG:
        lines.append(lines[0])
    raise WeightsError("\n".join(lines))
