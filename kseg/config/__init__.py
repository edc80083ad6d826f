"""The frozen config of a run: its sections, loading by name or path, and JSON text in both directions.

A config file is a Python file with a function `config()` that returns a `Config`, and optionally a dict `VARIANTS` of
named variants. `--dry-run` prints the config, and working directories and exports store it as JSON.
"""

import dataclasses
import json
import posixpath
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path

from kseg.config import files
from kseg.config.checks import check_config
from kseg.config.sections import (
    IGNORED,
    Apcnet,
    Augment,
    Data,
    Deeplab,
    Encnet,
    Evaluate,
    Export,
    Fcn,
    Init,
    Loss,
    Model,
    Pspnet,
    Tracking,
    Train,
)
from kseg.config.values import read_dict, replace_value, set_value
from kseg.errors import ConfigError

__all__ = [
    "IGNORED",
    "Apcnet",
    "Augment",
    "Config",
    "Data",
    "Deeplab",
    "Encnet",
    "Evaluate",
    "Export",
    "Fcn",
    "Init",
    "Loss",
    "Model",
    "Pspnet",
    "Tracking",
    "Train",
    "dataset_title",
    "default_workdir",
    "from_dict",
    "from_json",
    "load",
    "to_dict",
    "to_json",
]

# The value of data.name for images of one's own.
OWN_DATA = "folder"


@dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    # Name of the run's config; `load` sets it to NAME or NAME:VARIANT.
    name: str = ""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    init: Init = field(default_factory=Init)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    export: Export = field(default_factory=Export)
    tracking: Tracking = field(default_factory=Tracking)


def load(name: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Load a config by name and check it.

    Args:
        name: NAME or NAME:VARIANT, where NAME is a named config or the path of a .py file.
        overrides: texts `a.b=c`, applied in order after the variant.

    Returns:
        The config, with its `name` set.

    Raises:
        ConfigError: an unknown name, variant or key, a value of the wrong type or outside its limits, or values that
            exclude each other.

    Example:
        >>> from kseg import config
        >>> config.load("encnet_shapes", ["train.steps=50"]).train.steps
        50
    """
    base, variant = files.split_name(name)
    file = files.read_config_file(base)
    if not isinstance(file.config, Config):
        raise ConfigError(f"{file.path}: config() returned {type(file.config).__name__}, not a kseg.config.Config")
    full_name = (file.config.name or file.path.stem) + (f":{variant}" if variant is not None else "")
    # A config file may construct sections with values of a wrong type; reading them from a dict checks the types.
    config = from_dict(to_dict(dataclasses.replace(file.config, name=full_name)))
    if variant is not None:
        row = files.find_variant(file, variant)
        try:
            for key, value in row.overrides.items():
                config = replace_value(config, key, value)
        except ConfigError as error:
            raise ConfigError(f"{file.path}, variant {variant}: {error}") from None
    for override in overrides:
        config = set_value(config, override)
    return check_config(config)


def default_workdir(config: Config) -> Path:
    """Return runs/NAME or runs/NAME-VARIANT, where a run of a config is written; the name of own data is appended.

    The colon of a variant's name is replaced because it separates directories in search paths.
    """
    name = config.name.replace(":", "-")
    if config.data.name == OWN_DATA and config.data.directory:
        # Two datasets of one's own must not share a directory. TensorFlow takes some characters for patterns.
        name += "-" + re.sub(r"[^\w.-]+", "-", dataset_title(config.data.name, config.data.directory))
    return Path("runs") / name


def dataset_title(name: str, directory: str) -> str:
    """Return the name under which results show a dataset: of own data, that of its directory.

    Args:
        name: data.name.
        directory: data.directory, a path or an address.

    Example:
        >>> from kseg import config
        >>> config.dataset_title("folder", "~/images/flowers/"), config.dataset_title("camvid", "/data/set-1")
        ('flowers', 'camvid')
    """
    if name != OWN_DATA or not directory:
        return name
    last = posixpath.basename(directory.rstrip("/"))
    # A directory such as "." or ".." is named by its place.
    return last if last.strip(".") else Path(directory).resolve().name or name


def to_dict(config: Config) -> dict:
    """Return the config as nested plain dicts of plain values."""
    return dataclasses.asdict(config)


def from_dict(values: dict) -> Config:
    """Return the config of nested plain dicts; raises ConfigError for unknown keys and wrong types."""
    return read_dict(Config, values)


def to_json(config: Config) -> str:
    """Return the config as indented JSON text."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Return the checked config of a JSON text.

    Args:
        text: A JSON object as `to_json` writes it, with any keys of the config.

    Returns:
        The config. Keys that the text lacks have their defaults.

    Raises:
        ConfigError: The text is not a valid config.

    Example:
        >>> from kseg import config
        >>> text = config.to_json(config.load("encnet_cityscapes"))
        >>> config.from_json(text).model.head
        'encnet'
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"not a JSON config: {error}") from None
    return check_config(from_dict(values))
