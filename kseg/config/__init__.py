"""The one frozen config object: its values, loading it by name, JSON both ways.

A config is a Python file with a function `config()` that returns a `Config`, and may name variants of it in a dict
`VARIANTS`. The same object is printed by `--dry-run`, stored in the working directory and travels as JSON text.
"""

import dataclasses
import json
import typing
from dataclasses import dataclass, field

from kseg.config import files
from kseg.config.checks import check
from kseg.config.sections import (IGNORED, Apcnet, Augment, Data, Deeplab, Encnet, Evaluate, Export, Fcn, Init, Loss,
                                  Model, Pspnet, Train)
from kseg.config.values import read_dict, replace_value, set_value
from kseg.errors import ConfigError

__all__ = ["IGNORED", "Apcnet", "Augment", "Config", "Data", "Deeplab", "Encnet", "Evaluate", "Export", "Fcn", "Init",
           "Loss", "Model", "Pspnet", "Train", "from_dict", "from_json", "load", "to_dict", "to_json"]


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    name: str = ""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    init: Init = field(default_factory=Init)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    export: Export = field(default_factory=Export)


def load(name: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Return the config NAME or NAME:VARIANT, with `a.b=c` overrides applied in order; NAME may be a .py file's path.

    Raises ConfigError for an unknown name, variant or key, a value of the wrong type, or values that exclude each
    other.
    """
    base, variant = files.split_name(name)
    file = files.read(base)
    if not isinstance(file.config, Config):
        raise ConfigError(f"{file.path}: config() returned {type(file.config).__name__}, not a kseg.config.Config")
    own_name = (file.config.name or file.path.stem) + (f":{variant}" if variant is not None else "")
    # Through JSON's checks once, so that a wrong type written in a config file is met here and not in a model.
    config = from_dict(to_dict(dataclasses.replace(file.config, name=own_name)))
    if variant is not None:
        row = files.find_variant(file, variant)
        try:
            for key, value in row.overrides.items():
                config = replace_value(config, key, value)
        except ConfigError as error:
            raise ConfigError(f"{file.path}, variant {variant}: {error}") from None
    for override in overrides:
        config = set_value(config, override)
    return check(config)


def to_dict(config: Config) -> dict:
    """Return nested plain dicts of plain values."""
    return dataclasses.asdict(config)


def from_dict(values: dict) -> Config:
    """Return the config that `to_dict` described; unknown keys and wrong types raise ConfigError."""
    return read_dict(Config, values)


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
