"""Find config files by name or path, and run them."""

import importlib.util
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kseg.config.variants import Variant
from kseg.errors import ConfigError, unknown


@dataclass(frozen=True)
class ConfigFile:
    """The contents of a config file: the unchecked result of its `config()`, and its variants by name."""

    path: Path
    config: Any
    variants: dict[str, Variant]


def config_directory() -> Path:
    """Return the directory of the named configs, in the installed package or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Return the sorted names of the named configs, without variants."""
    return sorted(path.stem for path in config_directory().glob("*.py") if not path.stem.startswith("_"))


def split_name(name: str) -> tuple[str, str | None]:
    """Return (name or path, variant) of NAME:VARIANT or FILE.py:VARIANT; the variant is None if there is none.

    A colon inside a path belongs to the path.
    """
    return re.fullmatch(r"(.*?\.py|[^:]*)(?::(.*))?", name, flags=re.DOTALL).groups()


def read_config_file(name_or_path: str) -> ConfigFile:
    """Run the config file of that name, or at that path of a .py file.

    Raises ConfigError if there is no such file, or with the line at which the file fails.
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
        file = ConfigFile(path, module.config(), getattr(module, "VARIANTS", {}))
    except ConfigError:
        raise
    # A config file is the user's own program, whose errors are shown in one line.
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"{path}{line}: {type(error).__name__}: {error}") from None
    if not isinstance(file.variants, dict) or not all(isinstance(row, Variant) for row in file.variants.values()):
        raise ConfigError(f"{path}: VARIANTS must be a dict of kseg.config.variants.Variant")
    return file


def find_variant(file: ConfigFile, name: str) -> Variant:
    """Return a file's variant; raises ConfigError with the nearest names and all names."""
    if not file.variants:
        raise ConfigError(f"{file.path} has no variants, got {name!r}")
    if name not in file.variants:
        raise ConfigError(unknown(f"variant of {file.path.stem}:", name, file.variants))
    return file.variants[name]
