"""Files of weights as named arrays, in the names and layouts of MMSegmentation and torchvision, whoever wrote them.

    .pth .pt .npz    MMSegmentation, SSSegmentation, torchvision, mmpretrain, plain state dicts
    .h5              keras.applications' ResNet50 and ResNet101
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kseg.errors import WeightsError
from kseg.weights import keras_files, torch_files
from kseg.weights.names import sss_head, sss_to_mmseg

# Where a checkpoint keeps its weights, and where a second set of them: mmengine, PyTorch's reference scripts.
STATE_ENTRIES = ("state_dict", "model", "model_state_dict")
# Entries of entries are followed so far; a file may hold a dict within itself.
DEEPEST_ENTRY = 4
AVERAGE_ENTRIES = ("ema_state_dict", "model_ema")
# mmengine exchanges the two sets before it saves: the average is its state_dict.
EXCHANGED_ENTRY = "ema_state_dict"
# mmcv 0.x keeps a second set of weights beside the plain ones under this prefix, with "_" for each "." of the name.
AVERAGE_PREFIX = "ema_"
# Counters among the weights, which neither training nor inference needs.
COUNTERS = ("num_batches_tracked", "n_averaged", "steps")

FIRST_KERNELS = ("conv1.weight", "stem.0.weight")

# Beginnings of names -> the system whose checkpoint has them; the first row that applies counts.
SYSTEM_SIGNS = {"backbone_net.": "sss", "decode_head.": "mmseg", "head.fc.": "mmpretrain", "layer1.0.": "torchvision",
                "conv1.": "torchvision", "bn1.": "torchvision", "stem.": "torchvision"}


class Checkpoint(NamedTuple):
    """The weights of a file: float32 arrays in PyTorch's layout by MMSegmentation's or torchvision's names.

    `system` is the one that wrote them, and `notes` are sentences on what was done to them on the way.
    """

    state: dict[str, np.ndarray]
    system: Literal["mmseg", "sss", "torchvision", "mmpretrain", "keras", "plain"]
    notes: list[str]


def read_checkpoint(path: str | Path, channels: Literal["RGB", "BGR"] = "RGB",
                    average: bool = False) -> Checkpoint:
    """Return the weights of a .pth, .pt, .npz or .h5 file in MMSegmentation's names, a backbone's in torchvision's.

    Entries such as "state_dict" and "model", `module.` prefixes and step counters are unwrapped and left out.
    SSSegmentation's names are translated and the input channels of its pyramid's bottleneck brought into
    MMSegmentation's order. Half precision becomes float32. With `channels` "BGR" the input channels of the first
    convolution are reversed. Where a file holds two sets of weights, one of them under an `ema` name, `average` asks
    for that one instead of the plain.

    Raises WeightsError where the file is missing, damaged, of another kind or holds anything but arrays of floating
    numbers, and where `average` is asked for and there is no second set.
    """
    path = Path(path)
    if path.suffix == ".h5":
        state, notes = keras_files.read_applications(path)
        if average:
            raise WeightsError(f"{path} holds one set of weights, no average beside it")
        system = "keras"
    else:
        contents = _read_container(path)
        state, notes = _select(path, contents, average)
        system = _system(state)
        if system == "sss":
            state, more = _from_sss(path, state)
            notes += more
    state, more = _as_float32(path, state)
    notes += more
    if channels == "BGR":
        notes.append(f"the input channels of {reverse_first_kernel(path, state)} were reversed, from BGR to RGB")
    return Checkpoint(state, system, notes)


def _read_container(path: Path) -> Any:
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in (".pth", ".pt"):
        return torch_files.read(path)
    raise WeightsError(f"{path} has an unknown suffix {path.suffix!r}; choices: .npz, .pth, .pt, .h5")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist") from None
    except Exception as error:  # Besides its own errors numpy passes on those of zipfile, zlib and struct.
        raise WeightsError(f"{path} is damaged or no .npz file ({type(error).__name__}: {error})") from error


def _select(path: Path, contents: Any, average: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the set of weights that is wanted, without counters and prefixes, and notes on the other one."""
    plain = _named_arrays(path, _unwrap(contents), required=not _average_entry(contents))
    plain, second = _split_averages(plain)
    if entry := _average_entry(contents):
        second = _named_arrays(path, _unwrap(contents[entry]), required=True)
    if not second:
        if average:
            raise WeightsError(f"{path} holds one set of weights, no average beside it")
        return plain, []
    if not plain:
        return second, ["the file holds no weights but those under an ema name; they were read"]
    if entry == EXCHANGED_ENTRY:
        return plain, [f"the moving average was read, which mmengine saves as state_dict; {entry} holds the weights "
                       "that were averaged"]
    # Which of the two is the average depends on the training system and on when it saved.
    if average:
        # Statistics of the norms are not averaged everywhere; they stand among the plain weights then.
        return plain | second, ["the file holds two sets of weights; the one under ema names was read, "
                                "as was asked for"]
    return plain, ["the file holds a second set of weights under ema names; the plain one was read"]


def _unwrap(contents: Any) -> Any:
    for _ in range(DEEPEST_ENTRY):
        entries = STATE_ENTRIES if isinstance(contents, dict) else ()
        entry = next((entry for entry in entries if isinstance(contents.get(entry), (dict, list))), None)
        if entry is None:
            return {} if _average_entry(contents) else contents
        contents = contents[entry]
    return contents


def _average_entry(contents: Any) -> str:
    if not isinstance(contents, dict):
        return ""
    return next((entry for entry in AVERAGE_ENTRIES if isinstance(contents.get(entry), dict)), "")


def _named_arrays(path: Path, state: Any, required: bool) -> dict[str, np.ndarray]:
    """Return the arrays by their names without prefix `module.` and counters, after checking that they are arrays."""
    if isinstance(state, dict) and ({"optimizer", "optimizer_state_dict"} & state.keys()
                                    or {"state", "param_groups"} <= state.keys()):
        raise WeightsError(f"{path} holds an optimizer's state only, and no weights of a model")
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds no named weights but {_described(state)}; expected a dict of arrays, alone "
                           "or under 'state_dict' or 'model'")
    if required and not state:
        raise WeightsError(f"{path} holds no weights: its dict of them is empty")
    named = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise WeightsError(f"{path} holds {name!r}, {_described(value)}; expected a named array")
        if name.rpartition(".")[2] in COUNTERS:
            continue
        bare = name
        while bare.startswith("module."):
            bare = bare.removeprefix("module.")
        if bare in named:
            raise WeightsError(f"{path} has {bare} both with and without 'module.'")
        named[bare] = value
    if required and not named:
        raise WeightsError(f"{path} holds no weights, only counters: {', '.join(state)}")
    return named


def _described(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _split_averages(state: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (plain weights, those under AVERAGE_PREFIX by their plain names)."""
    plain = {name: array for name, array in state.items() if not name.startswith(AVERAGE_PREFIX)}
    names = {name.replace(".", "_"): name for name in plain}
    averages = {}
    for name in state.keys() - plain:
        bare = name.removeprefix(AVERAGE_PREFIX)
        while bare.startswith("module."):
            bare = bare.removeprefix("module.")
        averages[names.get(bare, bare)] = state[name]
    return plain, averages


def _system(state: Mapping[str, np.ndarray]) -> str:
    names = {name.removeprefix("backbone.") for name in state}
    for sign, system in SYSTEM_SIGNS.items():
        if any(name.startswith(sign) for name in names):
            return system
    return "plain"


def _from_sss(path: Path, state: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    head = sss_head(state)
    if not head:
        modules = sorted({name.split(".")[0] for name in state} - {"backbone_net", "auxiliary_decoder"})
        raise WeightsError(f"{path} is a checkpoint of an SSSegmentation head that is unknown here; its modules are "
                           f"{', '.join(modules) or 'none'}")
    places = [int(name.split(".")[1]) for name in state if name.startswith("decoder.")]
    try:
        named = {sss_to_mmseg(name, head, max(places, default=0) // 3): array for name, array in state.items()}
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    notes = [f"names of SSSegmentation's {head} were translated"]
    kernel, pooled = "decode_head.bottleneck.conv.weight", "decode_head.image_pool.1.conv.weight"
    if head in ("deeplabv3", "deeplabv3plus") and kernel in named and pooled in named:
        # The picture's mean is the last branch there and the first here.
        named[kernel] = np.roll(named[kernel], len(named[pooled]), axis=1)
        notes.append(f"the input channels of {kernel} were turned by {len(named[pooled])}: "
                     "SSSegmentation has the pooled branch last")
    return named, notes


def _as_float32(path: Path, state: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    converted: dict[str, int] = {}
    floats = {}
    for name, array in state.items():
        # numpy does not count bfloat16 among its floating numbers.
        if array.dtype.kind not in "f" and array.dtype.name != "bfloat16":
            raise WeightsError(f"{path} holds {name} as {array.dtype.name}; weights are floating numbers")
        if array.dtype != np.float32:
            converted[array.dtype.name] = converted.get(array.dtype.name, 0) + 1
        floats[name] = array.astype(np.float32, copy=False)
    return floats, [f"{count} weights of type {kind} were converted to float32" for kind, count in converted.items()]


def reverse_first_kernel(path: str | Path, state: dict[str, np.ndarray]) -> str:
    """Reverse the input channels of the first convolution, in PyTorch's layout, in place and return its name.

    Raises WeightsError where the state has no first convolution of three channels.
    """
    for name in (prefix + kernel for prefix in ("", "backbone.") for kernel in FIRST_KERNELS):
        if name in state and state[name].ndim == 4 and state[name].shape[1] == 3:
            state[name] = np.flip(state[name], 1).copy()
            return name
    raise WeightsError(f"{path} cannot be turned from BGR to RGB: it has no first convolution of three channels "
                       f"({' or '.join(FIRST_KERNELS)})")
