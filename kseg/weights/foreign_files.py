"""Open weight files of other systems as named arrays, by MMSegmentation's or torchvision's names and layouts.

    PyTorch, .safetensors, .npz    MMSegmentation, SSSegmentation, torchvision, mmpretrain, plain state dicts
    HDF5                           keras.applications' ResNet50 and ResNet101

The content of a file tells what it is, not its suffix. Arrays are described by name and shape first, so that only those
that a model takes are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kseg.errors import WeightsError
from kseg.weights import keras_files, npz_files, safetensors_files, torch_files
from kseg.weights.file_kinds import find_kind
from kseg.weights.names import sss_head, sss_to_mmseg
from kseg.weights.stored_arrays import StoredArray, read_all
from kseg.weights.torch_files import EMA_ENTRIES, STATE_ENTRIES
from kseg.weights.torch_pickles import StandIn

# Maximum depth of nested entries; a file may contain a dict that contains itself.
MAX_ENTRY_DEPTH = 4
# mmengine swaps the two sets before it saves, so its state_dict is the average.
SWAPPED_ENTRY = "ema_state_dict"
# mmcv 0.x stores averaged weights next to the plain ones, with this prefix and "_" for every "." of the name.
EMA_PREFIX = "ema_"
# Counters among the weights, which neither training nor inference needs.
COUNTERS = ("num_batches_tracked", "n_averaged", "steps")

# Attributes in which training programs keep the model, and so the first part of all names in their checkpoints.
WRAPPERS = {"model", "net", "network", "student", "encoder", "segmentor", "ema_model"}
# Names that PyTorch's wrappers insert anywhere in a weight's path.
COMPILED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
FIRST_KERNELS = ("conv1.weight", "stem.0.weight")

# Prefix of a weight's name -> system; the first match decides.
SYSTEM_BY_PREFIX = {
    "backbone_net.": "sss",
    "decode_head.": "mmseg",
    "head.fc.": "mmpretrain",
    "layer1.0.": "torchvision",
    "conv1.": "torchvision",
    "bn1.": "torchvision",
    "stem.": "torchvision",
}

System = Literal["mmseg", "sss", "torchvision", "mmpretrain", "keras", "plain"]


class Checkpoint(NamedTuple):
    """The weights of a file, their system and notes on their conversion.

    `state` has float32 arrays in PyTorch's layout by MMSegmentation's or torchvision's names.
    """

    state: dict[str, np.ndarray]
    system: System
    notes: list[str]


class OpenCheckpoint(NamedTuple):
    """A `Checkpoint` whose arrays have not been read."""

    state: dict[str, StoredArray]
    system: System
    notes: list[str]


def read_foreign_checkpoint(
    path: str | Path, channels: Literal["RGB", "BGR"] = "RGB", average: bool = False
) -> Checkpoint:
    """Read the weights of a file of PyTorch, .safetensors, .npz or keras.applications.

    Entries such as "state_dict" and `module.` prefixes are unwrapped, and step counters removed. SSSegmentation's names
    are translated, and the input channels of its pyramid's bottleneck reordered like MMSegmentation's. Other floating
    dtypes become float32.

    Args:
        path: The file.
        channels: Order of the input channels that the file was trained with. "BGR" reverses those of the first
            convolution.
        average: Whether to read the EMA weights of a file that has two sets of weights.

    Raises:
        WeightsError: The file is missing, damaged, of another kind, has values that are not floating-point arrays, or
            lacks the EMA weights that `average` requests.
    """
    checkpoint = open_foreign_checkpoint(path, channels, average)
    return Checkpoint(read_all(path, checkpoint.state), checkpoint.system, checkpoint.notes)


def open_foreign_checkpoint(
    path: str | Path, channels: Literal["RGB", "BGR"] = "RGB", average: bool = False
) -> OpenCheckpoint:
    """Read names, shapes and dtypes of a file's weights.

    Args:
        path: The file.
        channels: As for `read_foreign_checkpoint`.
        average: As for `read_foreign_checkpoint`.

    Raises:
        WeightsError: As `read_foreign_checkpoint`, except for damaged elements of arrays.
    """
    path = Path(path)
    kind = find_kind(path)
    if kind == "hdf5":
        state, notes = keras_files.open_applications(path)
        if average:
            raise WeightsError(f"{path} contains no EMA weights")
        system = "keras"
    else:
        contents = OPENERS[kind](path)
        state, notes = _select(path, contents, average)
        system = _detect_system(state)
        if wrapper := _wrapper(state):
            state = {name.removeprefix(wrapper): array for name, array in state.items()}
            notes.append(f"the prefix {wrapper} of all names was removed")
            system = _detect_system(state)
        if system == "sss":
            state, more = _from_sss(path, state)
            notes += more
    state, more = _as_float32(path, state)
    notes += more
    if channels == "BGR":
        notes.append(f"the input channels of {reverse_first_kernel(path, state)} were reversed from BGR to RGB")
    return OpenCheckpoint(state, system, notes)


OPENERS = {
    "npz": npz_files.open_npz,
    "torch": torch_files.open_torch_file,
    "safetensors": safetensors_files.open_safetensors,
}


def _select(path: Path, contents: Any, average: bool) -> tuple[dict[str, StoredArray], list[str]]:
    """Return the requested set of weights without counters and prefixes, and notes on the other set."""
    entry = _ema_entry(contents)
    plain, averaged = _split_averages(_named_arrays(path, _unwrap(contents), required=not entry))
    if entry:
        averaged = _named_arrays(path, _unwrap(contents[entry]), required=True)
    if not averaged:
        if average:
            raise WeightsError(f"{path} contains no EMA weights")
        return plain, []
    if not plain:
        return averaged, ["the file contains only EMA weights; they were read"]
    if entry == SWAPPED_ENTRY:
        return plain, [
            f"the EMA weights were read, which mmengine saves as state_dict; {entry} contains the weights "
            "before averaging"
        ]
    # Which of the two sets is the average depends on the training system and on when it saved them.
    if average:
        # Some systems do not average the statistics of norms; these are only among the plain weights.
        return plain | averaged, [
            "the file contains two sets of weights; the one under ema names was read, as requested"
        ]
    return plain, ["the file contains a second set of weights under ema names; the plain one was read"]


def _unwrap(contents: Any) -> Any:
    for _ in range(MAX_ENTRY_DEPTH):
        entries = STATE_ENTRIES if isinstance(contents, dict) else ()
        entry = next((entry for entry in entries if isinstance(contents.get(entry), (dict, list))), None)
        if entry is None:
            return {} if _ema_entry(contents) else contents
        contents = contents[entry]
    return contents


def _ema_entry(contents: Any) -> str:
    if not isinstance(contents, dict):
        return ""
    return next((entry for entry in EMA_ENTRIES if isinstance(contents.get(entry), dict)), "")


def _named_arrays(path: Path, state: Any, required: bool) -> dict[str, StoredArray]:
    """Check that a state is a dict of arrays and return it without `module.` prefixes and counters."""
    if isinstance(state, dict) and (
        {"optimizer", "optimizer_state_dict"} & state.keys() or {"state", "param_groups"} <= state.keys()
    ):
        raise WeightsError(f"{path} contains only an optimizer's state and no weights of a model")
    if not isinstance(state, dict):
        raise WeightsError(
            f"{path} contains {_described(state)} instead of named weights; expected a dict of arrays, "
            "at the top or under 'state_dict' or 'model'"
        )
    if required and not state:
        raise WeightsError(f"{path} contains no weights: its dict of weights is empty")
    named = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredArray):
            raise WeightsError(f"{path} contains {_described(value)} under {name!r}; expected a named array")
        if name.rpartition(".")[2] in COUNTERS:
            continue
        bare = _without_module(name)
        if bare in named:
            raise WeightsError(f"{path} has {bare} both with and without 'module.' or '_orig_mod.'")
        named[bare] = value
    if required and not named:
        raise WeightsError(f"{path} contains only counters and no weights: {', '.join(state)}")
    return named


def _without_module(name: str) -> str:
    # torch.compile and data parallelism wrap modules, and compile also wraps a part of a model.
    for wrapper in COMPILED:
        name = name.replace(wrapper, "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _wrapper(names: Mapping[str, StoredArray]) -> str:
    """Return the prefix of a wrapper that all names have, such as "model."; "" if there is none."""
    first = {name.split(".")[0] for name in names}
    return f"{min(first)}." if len(first) == 1 and first <= WRAPPERS else ""


def _described(value: Any) -> str:
    if isinstance(value, StandIn):
        return f"an object of {value.name}"
    if isinstance(value, StoredArray):
        return f"an array of shape {value.shape}"
    return f"a value of type {type(value).__name__}"


def _split_averages(state: dict[str, StoredArray]) -> tuple[dict[str, StoredArray], dict[str, StoredArray]]:
    """Return the plain weights, and the weights with EMA_PREFIX by their plain names."""
    plain = {name: array for name, array in state.items() if not name.startswith(EMA_PREFIX)}
    plain_names = {name.replace(".", "_"): name for name in plain}
    averages = {}
    for name in state.keys() - plain:
        bare = _without_module(name.removeprefix(EMA_PREFIX))
        averages[plain_names.get(bare, bare)] = state[name]
    return plain, averages


def _detect_system(state: Mapping[str, StoredArray]) -> str:
    names = {name.removeprefix("backbone.") for name in state}
    for prefix, system in SYSTEM_BY_PREFIX.items():
        if any(name.startswith(prefix) for name in names):
            return system
    return "plain"


def _from_sss(path: Path, state: dict[str, StoredArray]) -> tuple[dict[str, StoredArray], list[str]]:
    """Translate an SSSegmentation state to MMSegmentation's names and channel order, and return notes."""
    head = sss_head(state)
    if not head:
        modules = sorted({name.split(".")[0] for name in state} - {"backbone_net", "auxiliary_decoder"})
        raise WeightsError(
            f"{path} is an SSSegmentation checkpoint with an unsupported head; its modules are "
            f"{', '.join(modules) or 'none'}"
        )
    indices = [int(name.split(".")[1]) for name in state if name.startswith("decoder.")]
    try:
        named = {sss_to_mmseg(name, head, max(indices, default=0) // 3): array for name, array in state.items()}
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    notes = [f"names of SSSegmentation's {head} were translated"]
    kernel, pooled = "decode_head.bottleneck.conv.weight", "decode_head.image_pool.1.conv.weight"
    if head in ("deeplabv3", "deeplabv3plus") and kernel in named and pooled in named and named[pooled].shape:
        channels = named[pooled].shape[0]
        # The branch of the image's mean is SSSegmentation's last one and MMSegmentation's first one.
        named[kernel] = named[kernel].changed(lambda array: np.roll(array, channels, axis=1))
        notes.append(
            f"the input channels of {kernel} were rotated by {channels}: SSSegmentation has the pooled branch last"
        )
    return named, notes


def _as_float32(path: Path, state: dict[str, StoredArray]) -> tuple[dict[str, StoredArray], list[str]]:
    converted: dict[str, int] = {}
    floats = {}
    for name, array in state.items():
        # NumPy's kind "f" excludes bfloat16.
        if array.dtype.kind not in "f" and array.dtype.name != "bfloat16":
            raise WeightsError(f"{path} contains {name} as {array.dtype.name}; weights must be floating-point numbers")
        if array.dtype != np.float32:
            converted[array.dtype.name] = converted.get(array.dtype.name, 0) + 1
            array = array.changed(_rounded, dtype=np.float32)
        floats[name] = array
    return floats, [f"{count} weights of type {dtype} were converted to float32" for dtype, count in converted.items()]


def _rounded(array: np.ndarray) -> np.ndarray:
    # Loading refuses the infinities that values beyond float32 become.
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def reverse_first_kernel(path: str | Path, state: dict[str, StoredArray]) -> str:
    """Reverse the input channels of the first convolution in `state` and return its name.

    `state` has arrays in PyTorch's layout. Raises WeightsError if it has no first convolution with three channels.
    """
    for name in (prefix + kernel for prefix in ("", "backbone.") for kernel in FIRST_KERNELS):
        if name in state and state[name].ndim == 4 and state[name].shape[1] == 3:
            state[name] = state[name].changed(lambda array: np.flip(array, 1).copy())
            return name
    raise WeightsError(
        f"{path} cannot be converted from BGR to RGB: it has no first convolution with three channels "
        f"({' or '.join(FIRST_KERNELS)})"
    )
