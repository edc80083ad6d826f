"""Load weights from files into models.

Layer names of kseg models are MMSegmentation's module paths, so a checkpoint fits by name. Loading is strict and all or
nothing: the name and shape of every weight are checked before the elements of the first one are read, and all are read
before the first one is assigned. Weights to skip are listed by their full names or by prefixes that end in "*".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import keras
import numpy as np

from kseg.config import Config
from kseg.errors import WeightsError, unknown
from kseg.weights import downloads, keras_files
from kseg.weights.diagnosis import CLASS_LAYERS, diagnose
from kseg.weights.file_kinds import find_kind
from kseg.weights.foreign_files import open_foreign_checkpoint, reverse_first_kernel
from kseg.weights.names import CLASSIFIERS, mmseg_head
from kseg.weights.stored_arrays import StoredArray

# Keras weight -> PyTorch weight. Only kernels have another layout in PyTorch.
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

# An error with more lines than this repeats its first line at the end, since the first one has scrolled away.
LONG_ERROR_LINES = 20
# A list of more entries for init.skip is no better than the list of weights.
MOST_PATTERNS = 12

# Axes of a PyTorch array in the order of Keras.
CONV_AXES = (2, 3, 1, 0)
DEPTHWISE_AXES = (2, 3, 0, 1)
DENSE_AXES = (1, 0)


class Target(NamedTuple):
    """A variable of a model, and the order in which it takes the axes of a PyTorch array; empty keeps the order."""

    variable: keras.Variable
    axes: tuple[int, ...]

    def shape(self) -> tuple[int, ...]:
        """Return the shape of a PyTorch array for this variable."""
        shape = dict(zip(self.axes or range(len(self.variable.shape)), self.variable.shape))
        return tuple(shape[axis] for axis in range(len(shape)))


def mmseg_names(model: keras.Model) -> dict[str, keras.Variable]:
    """Return a model's variables by MMSegmentation's names, such as "backbone.bn1.running_mean".

    Raises WeightsError for a weight without a name in MMSegmentation's checkpoints.
    """
    return {name: target.variable for name, target in torch_targets(model).items()}


def torch_targets(model: keras.Model) -> dict[str, Target]:
    """Return a model's variables and their PyTorch layouts by MMSegmentation's names.

    Raises WeightsError for a weight without a name in MMSegmentation's checkpoints.
    """
    targets = {}
    for layer in model.layers:
        # layer.weights excludes the states of random generators.
        for variable in layer.weights:
            name = _mmseg_name(variable)
            if name in targets:
                raise WeightsError(f"{variable.path} and {targets[name].variable.path} have the same name {name}")
            kernel = variable.path.endswith("/kernel")
            targets[name] = Target(variable, _kernel_axes(layer, variable) if kernel else ())
    return targets


def _mmseg_name(variable: keras.Variable) -> str:
    module, _, weight = variable.path.rpartition("/")
    if weight not in WEIGHT_NAMES:
        raise WeightsError(f"{variable.path}: {unknown('weight', weight, WEIGHT_NAMES)}")
    return f"{module}.{WEIGHT_NAMES[weight]}"


def _kernel_axes(layer: keras.Layer, kernel: keras.Variable) -> tuple[int, ...]:
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return DEPTHWISE_AXES
    axes = {2: DENSE_AXES, 4: CONV_AXES}
    if len(kernel.shape) not in axes:
        raise WeightsError(f"{kernel.path} has rank {len(kernel.shape)}; layouts are known for ranks 2 and 4")
    return axes[len(kernel.shape)]


def load_initial(model: keras.Model, config: Config) -> list[str]:
    """Load the initial weights that `config.init` names.

    init.backbone is a path, or the name of a published file if it has no suffix and no such file exists.

    Returns:
        Notes on the loaded weights, empty if `config.init` names none.

    Raises:
        WeightsError: The file does not fit (see `load_checkpoint`), or a published file is unknown or unavailable.
    """
    init = config.init
    if init.weights:
        notes = load_checkpoint(model, init.weights, config.model.head, init.skip, init.channels)
        return [f"weights from {init.weights}", *notes]
    if not init.backbone:
        return []
    path = Path(init.backbone)
    if not path.suffix and not path.exists():
        path = downloads.fetch_backbone(init.backbone)
    return [f"backbone from {path}", *load_backbone(model, path, init.skip, init.channels, config.data.std)]


def loaded_classifiers(model: keras.Model, skip: Sequence[str]) -> list[str]:
    """Return the layers of a model with one output for each class whose weights `skip` does not name."""
    layers = [name.removesuffix(".weight") for name in CLASS_LAYERS if name in torch_targets(model)]
    return [layer for layer in layers if not any(_matches(f"{layer}.weight", pattern) for pattern in skip)]


def load_checkpoint(
    model: keras.Model,
    path: str | Path,
    head: str,
    skip: Sequence[str] = (),
    channels: Literal["RGB", "BGR"] = "RGB",
    average: bool = False,
) -> list[str]:
    """Load weights of a whole model from a checkpoint.

    Arrays are transposed into Keras' layout: convolutions OIHW -> HWIO, depthwise convolutions (C, 1, H, W) ->
    (H, W, C, 1), linear layers (out, in) -> (in, out).

    Args:
        model: A model of `kseg.models.build`.
        path: A checkpoint of MMSegmentation or SSSegmentation, or a weights file of kseg; its content decides.
        head: The model's main head, a key of `kseg.models.HEADS`.
        skip: Weights that are not loaded: names such as "decode_head.conv_seg.bias", or prefixes such as
            "decode_head.*". They may be missing from either side, differ in shape, or fit.
        channels: Order of the input channels that the file was trained with. "BGR" reverses the first kernel.
        average: Whether to load the EMA weights of a file that has two sets of weights.

    Returns:
        Notes on the loaded weights.

    Raises:
        WeightsError: Any other weight is missing, superfluous or of another shape, a weight is not finite, or an entry
            of `skip` matches nothing. The model is unchanged.

    Example:
        >>> from kseg import models
        >>> from kseg.inference import trained_model
        >>> config = trained_model.read_config(workdir)
        >>> model = models.build(config.model, classes=len(trained_model.read_dataset(workdir).classes))
        >>> load_checkpoint(model, trained_model.best_weights(workdir), config.model.head)
        []
    """
    if str(path).endswith(".weights.h5") or find_kind(path) == "hdf5" and keras_files.is_numbered(path):
        if average:
            raise WeightsError(f"{path} contains no EMA weights")
        return _load_keras(model, path, head, skip, channels)
    checkpoint = open_foreign_checkpoint(path, channels, average)
    return checkpoint.notes + _load(path, torch_targets(model), checkpoint.state, skip, head)


def load_backbone(
    model: keras.Model,
    path: str | Path,
    skip: Sequence[str] = (),
    channels: Literal["RGB", "BGR"] = "RGB",
    std: Sequence[float] = (),
) -> list[str]:
    """Load backbone weights from a file of torchvision, mmpretrain or keras.applications.

    ImageNet classifiers in the file are always skipped.

    keras.applications subtracts a mean from its input images but does not divide them. The first kernel of such a file
    is therefore multiplied by `std`. The network then computes the same, up to the means: those of keras.applications,
    (103.939, 116.779, 123.68) in BGR, differ by at most 0.5 gray levels.

    Args:
        model: A model of `kseg.models.build`.
        path: The file (.pth, .pt, .npz, .h5).
        skip: Weights that are not loaded, by torchvision's names ("layer1.0.conv1.weight") or prefixes ("layer4.*").
        channels: Order of the input channels that the file was trained with. "BGR" reverses the first kernel.
        std: RGB standard deviations by which kseg divides images; empty for a file trained on divided images.

    Returns:
        Notes on the loaded weights.

    Raises:
        WeightsError: The file does not fit the backbone (see `load_checkpoint`). The model is unchanged.
    """
    prefix = "backbone."
    targets = {
        name.removeprefix(prefix): target for name, target in torch_targets(model).items() if name.startswith(prefix)
    }
    checkpoint = open_foreign_checkpoint(path, channels)
    notes, state = list(checkpoint.notes), {}
    for name, array in checkpoint.state.items():
        if name.removeprefix(prefix) in state:
            raise WeightsError(f"{path} has {name.removeprefix(prefix)} both with and without {prefix!r}")
        state[name.removeprefix(prefix)] = array
    if checkpoint.system == "keras" and std and "conv1.weight" in state:
        factors = np.asarray(std, np.float32)[:, None, None]
        state["conv1.weight"] = state["conv1.weight"].changed(lambda array: array * factors)
        notes.append(
            f"the first kernel was multiplied by data.std {tuple(std)}: keras.applications does not divide images by it"
        )
    classifier = [
        name for name in CLASSIFIERS if name in state and not any(_matches(name, pattern) for pattern in skip)
    ]
    if classifier:
        state = {name: array for name, array in state.items() if name not in classifier}
        notes.append(f"the ImageNet classifier was skipped: {', '.join(classifier)}")
    return notes + _load(path, targets, state, skip, head="")


def load_keras(model: keras.Model, path: str | Path) -> None:
    """Load a Keras `.weights.h5` file into the model that wrote it, or into an equal one.

    Raises WeightsError, with the model unchanged, if the file is missing, damaged or does not fit the model.
    """
    if (kind := find_kind(path)) != "hdf5":
        raise WeightsError(f"{path} is not a Keras weights file but one of the kind {kind}")
    _load_keras(model, path, mmseg_head(mmseg_names(model)), (), "RGB")


def _load_keras(model: keras.Model, path: str | Path, head: str, skip: Sequence[str], channels: str) -> list[str]:
    # Keras' own loader matches layers by their order instead of their names, and ignores layers that only the file has.
    targets = torch_targets(model)
    names_by_layer = {layer.name: [_mmseg_name(variable) for variable in layer.weights] for layer in model.layers}
    state = {}
    for layer, arrays in keras_files.open_layers(path).items():
        names = names_by_layer.get(layer, [])
        if len(names) != len(arrays):
            # The file only numbers the weights of a layer that the model lacks or defines differently.
            names = [f"{layer}.{index}" for index in range(len(arrays))]
        for name, array in zip(names, arrays):
            axes = targets[name].axes if name in targets else ()
            # Weights are compared and reported in PyTorch's layout.
            state[name] = array.transposed(np.argsort(axes)) if axes and len(axes) == array.ndim else array
    notes = []
    if channels == "BGR":
        notes.append(f"the input channels of {reverse_first_kernel(path, state)} were reversed from BGR to RGB")
    return notes + _load(path, targets, state, skip, head)


def _load(
    path: str | Path, targets: Mapping[str, Target], stored: Mapping[str, StoredArray], skip: Sequence[str], head: str
) -> list[str]:
    """Read and assign a state, except the weights to skip, to its targets and return notes on what was skipped."""
    skipped = set()
    for pattern in skip:
        matches = {name for name in targets.keys() | stored if _matches(name, pattern)}
        if not matches:
            raise WeightsError(
                f"{path}: init.skip lists {pattern!r}, but neither the file nor the model has such a weight; remove it"
            )
        skipped |= matches
    _require_fit(
        path,
        {name: target.shape() for name, target in targets.items()},
        {name: array.shape for name, array in stored.items()},
        skipped,
        head,
    )
    loaded = {name: target for name, target in targets.items() if name not in skipped}
    with np.errstate(over="ignore"):
        # A float64 beyond the range of float32 becomes infinite here, where it is still noticed.
        state = {name: stored[name].read().astype(target.variable.dtype, copy=False) for name, target in loaded.items()}
    if bad := [name for name in loaded if not np.isfinite(state[name]).all()]:
        raise WeightsError(
            f"{path} has non-finite values in {len(bad)} weights: {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}"
        )
    if not loaded:
        raise WeightsError(f"{path}: init.skip skips all {len(targets)} weights of the model")
    if bad := [name for name in loaded if name.endswith(".running_var") and (state[name] < 0).any()]:
        raise WeightsError(f"{path} has negative variances in {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}")
    for name, (variable, axes) in loaded.items():
        array = np.transpose(state[name], axes) if axes else state[name]
        variable.assign(array)
    if not skipped:
        return []
    return [
        f"{len(loaded)} of the model's {len(targets)} weights were loaded",
        f"init.skip skipped {len(skipped)}: {', '.join(sorted(skipped))}",
    ]


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def skip_patterns(model: Mapping[str, tuple], file: Mapping[str, tuple], skipped: set[str]) -> list[str]:
    """Return entries of init.skip that cover exactly the weights that do not fit, and what is skipped already.

    Empty if less than half of the model's weights fit, or if there would be more than MOST_PATTERNS entries.

    Args:
        model: Shapes of the model's weights by name.
        file: Shapes of the file's weights by name.
        skipped: Names that are skipped already.
    """
    unfit = {name for name in model.keys() | file.keys() if name in skipped or model.get(name) != file.get(name)}
    fit = model.keys() - unfit
    # Every prefix that ends in a dot and has a weight that fits below it.
    taken = {name[: end + 1] for name in fit for end in range(len(name)) if name[end] == "."}
    patterns = set()
    for name in unfit:
        prefixes = [name[: end + 1] for end in range(len(name)) if name[end] == "."]
        prefix = next((prefix for prefix in prefixes if prefix not in taken), "")
        patterns.add(f"{prefix}*" if prefix else name)
    return sorted(patterns) if 2 * len(fit) > len(model) and len(patterns) <= MOST_PATTERNS else []


def _require_fit(
    path: str | Path, model: dict[str, tuple], file: dict[str, tuple], skipped: set[str], head: str
) -> None:
    """Raise WeightsError that diagnoses the file and lists all weights that do not fit."""
    groups = {
        "in the model but not in the file": [f"{name} {model[name]}" for name in model.keys() - file - skipped],
        "in the file but not in the model": [f"{name} {file[name]}" for name in file.keys() - model - skipped],
        "with different shapes": [
            f"{name} file {file[name]}, model {model[name]}"
            for name in (model.keys() & file) - skipped
            if file[name] != model[name]
        ],
    }
    if not any(groups.values()):
        return
    # Skipped weights may differ on purpose, so they must not influence the diagnosis.
    reason = diagnose(
        *({name: shape for name, shape in shapes.items() if name not in skipped} for shapes in (file, model)), head
    )
    lines = [f"{path} {reason}" if reason else f"{path} does not fit the model"]
    for title, weights in groups.items():
        if weights:
            lines += [f"  {len(weights)} weights {title}:", *(f"    {weight}" for weight in sorted(weights))]
    if "init.skip" not in lines[0] and (patterns := skip_patterns(model, file, skipped)):
        lines.append(f"to load everything else, set init.skip={','.join(patterns)}")
    if len(lines) > LONG_ERROR_LINES:
        lines.append(lines[0])
    raise WeightsError("\n".join(lines))
