"""The one frozen config object: loading it by name, overriding it with types, JSON both ways.

A config is a Python file with a function `config()` that returns a `Config`. The same object is printed
by `--dry-run`, stored in the working directory and travels as JSON text.
"""

import ast
import dataclasses
import importlib.util
import json
import traceback
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kseg.config_checks import check, leaves
from kseg.errors import ConfigError, unknown


# The label value of pixels that no loss and no metric counts, everywhere.
IGNORED = 255


@dataclass(frozen=True)
class Data:
    """Where examples come from. `directory` is the data set's own; empty means $KSEG_DATA/NAME, else data/NAME."""

    name: str = "shapes"
    directory: str = ""
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    # RGB mean and standard deviation on the 0..255 scale.
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Augment:
    """Training augmentation, in the order it is applied; sizes are (height, width)."""

    # The box that the random factor multiplies and the picture is fitted into; empty: the picture's own size.
    scale: tuple[int, ...] = ()
    scale_range: tuple[float, ...] = (0.5, 2.0)
    crop: tuple[int, ...] = (512, 512)
    # A crop is drawn again while one class fills at least this share of its labelled pixels, `crop_tries` times.
    cat_max_ratio: float = 0.75
    crop_tries: int = 10
    flip: float = 0.5
    photometric: bool = True


@dataclass(frozen=True)
class Encnet:
    """Context encoding head."""

    codewords: int = 32
    lateral: bool = False
    se: bool = True


@dataclass(frozen=True)
class Fcn:
    """Fully convolutional head used as the main one."""

    convolutions: int = 2
    concat_input: bool = True


@dataclass(frozen=True)
class Model:
    """Backbone, main head and auxiliary head."""

    backbone: str = "resnet50"
    # "deep": three 3x3 convolutions (v1c); "7x7": one (v1b, torchvision).
    stem: Literal["deep", "7x7"] = "deep"
    width: int = 64
    output_stride: Literal[8, 16] = 8
    contract_dilation: bool = True
    head: str = "encnet"
    channels: int = 512
    # Channels of the auxiliary FCN head on stage 3; 0: none.
    auxiliary_channels: int = 256
    dropout: float = 0.1
    align_corners: bool = False
    encnet: Encnet = field(default_factory=Encnet)
    fcn: Fcn = field(default_factory=Fcn)
    # Backbone weights to start from (.npz or .pth, PyTorch names); empty: random. Loading is strict: every weight the
    # file lacks and every one it has too many must be listed, by name or by prefix ending in "*".
    pretrained: str = ""
    pretrained_missing: tuple[str, ...] = ()
    pretrained_unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loss:
    """Weights of the loss terms, and what the cross-entropy is divided by."""

    # "all": every pixel, ignored ones too (MMSegmentation's recipes); "valid": the labelled ones only.
    average: Literal["all", "valid"] = "all"
    main: float = 1.0
    auxiliary: float = 0.4
    se: float = 0.2


@dataclass(frozen=True)
class Train:
    """The step loop. `global_batch` is the sum over all replicas; everything counts steps."""

    global_batch: int = 8
    steps: int = 40_000
    learning_rate: float = 0.01
    end_learning_rate: float = 1e-4
    power: float = 0.9
    # The step at which the poly schedule reaches its end; 0: the last one, `steps - 1` (mmengine). SSSegmentation and
    # mmcv 0.x end at `steps`.
    end_step: int = 0
    warmup_steps: int = 0
    warmup_start: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    # Bit-for-bit repeatable kernels, at some cost in speed.
    deterministic: bool = False
    jit_compile: bool = False
    log_every: int = 50
    validate_every: int = 4_000
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 3


@dataclass(frozen=True)
class Evaluate:
    """The test protocol. Labels are never resized: predictions are brought to the label's own size."""

    # The (height, width) box a picture is fitted into before the network; empty: its own size.
    resize: tuple[int, ...] = ()


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    name: str = ""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)


def config_directory() -> Path:
    """Return the directory of the named configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Return the names `--config` knows."""
    return sorted(path.stem for path in config_directory().glob("*.py") if not path.stem.startswith("_"))


def load(name_or_path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Return the config of that name, or of that .py file, with `a.b=c` overrides applied in order.

    Raises ConfigError for an unknown name or key, a value of the wrong type, or values that exclude each other.
    """
    path = Path(name_or_path)
    if path.suffix != ".py":
        if name_or_path not in config_names():
            raise ConfigError(unknown("config", name_or_path, config_names()) + ", or the path of a .py file")
        path = config_directory() / f"{name_or_path}.py"
    elif not path.is_file():
        raise ConfigError(f"no config file {path}")
    spec = importlib.util.spec_from_file_location(f"kseg_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "config", None)):
            raise ConfigError(f"{path} has no function config() that returns a kseg.config.Config")
        config = module.config()
    except ConfigError:
        raise
    # A config is the user's own program, and its mistakes are theirs to read in one line.
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"{path}{line}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: config() returned {type(config).__name__}, not a kseg.config.Config")
    # Through JSON's checks once, so that a wrong type written in a config file is met here and not in a model.
    config = from_dict(to_dict(dataclasses.replace(config, name=config.name or path.stem)))
    for override in overrides:
        config = set_value(config, override)
    return check(config)


def set_value(config: Config, override: str) -> Config:
    """Return a copy with one `a.b=c` applied; the text `c` is read as the field's own type."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set takes KEY=VALUE, got {override!r}")
    return _set(config, key.strip().split("."), text.strip(), key.strip())


def _set(node: Any, parts: list[str], text: str, key: str) -> Any:
    types = typing.get_type_hints(type(node))
    name = parts[0]
    if name not in types:
        raise ConfigError(unknown("config key", name, types, prefix=key[: len(key) - len(".".join(parts))]))
    if dataclasses.is_dataclass(types[name]):
        if len(parts) == 1:
            choices = (f"{key}.{choice}" for choice in typing.get_type_hints(types[name]))
            raise ConfigError(f"{key} is a group; set one of its values: {', '.join(choices)}")
        value = _set(getattr(node, name), parts[1:], text, key)
    elif len(parts) > 1:
        raise ConfigError(f"{key}: {'.'.join(key.split('.')[: -len(parts) + 1])} is a value, not a group")
    else:
        value = _typed(types[name], _parse(text, types[name]), key)
    return dataclasses.replace(node, **{name: value})


def _parse(text: str, wanted: Any) -> Any:
    """Read command-line text as a Python value; text that is wanted as text stays as it is."""
    if wanted is str:
        return text
    if wanted is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if typing.get_origin(wanted) is tuple and not text.startswith(("(", "[")):
        item = typing.get_args(wanted)[0]
        return [_parse(part.strip(), item) for part in text.split(",") if part.strip()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _typed(wanted: Any, value: Any, key: str) -> Any:
    """Return `value` as the type `wanted`, or raise ConfigError naming the key, the value and what is wanted."""
    origin = typing.get_origin(wanted)
    if origin is Literal:
        choices = typing.get_args(wanted)
        for choice in choices:
            if value == choice and type(value) is type(choice):
                return choice
        raise ConfigError(unknown(f"value of {key}:", str(value), map(str, choices)))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} takes a list such as a,b; got {value!r}")
        return tuple(_typed(typing.get_args(wanted)[0], item, key) for item in value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"{key} takes {wanted.__name__}, got {value!r}")
    return value


def to_dict(config: Config) -> dict:
    """Return nested plain dicts of plain values."""
    return dataclasses.asdict(config)


def from_dict(values: dict, kind: type = Config, prefix: str = "") -> Any:
    """Return the config that `to_dict` described; unknown keys and wrong types raise ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'a config'} is a group of values, got {values!r}")
    types = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        key = prefix + name
        if name not in types:
            raise ConfigError(unknown("config key", name, types, prefix))
        if dataclasses.is_dataclass(types[name]):
            arguments[name] = from_dict(value, types[name], key + ".")
        else:
            arguments[name] = _typed(types[name], value, key)
    return kind(**arguments)


def to_json(config: Config) -> str:
    """Return the config as indented JSON text."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Return the config from `to_json`'s text; raises ConfigError where it does not fit."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"not a JSON config: {error}") from None
    return check(from_dict(values))


def difference(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, old value, new value) wherever two configs differ."""
    pairs = zip(leaves(old), leaves(new))
    return [(key, old_value, new_value) for (key, old_value), (_, new_value) in pairs if old_value != new_value]
