"""List the formats of an export with what each can do; imports neither TensorFlow nor a converter."""

import importlib.util
from collections.abc import Iterable
from typing import NamedTuple

from kseg.config import Config
from kseg.errors import ConfigError, UserError, unknown


class Format(NamedTuple):
    """Hold what a format other than the SavedModel can do.

    Attributes:
        extra: Extra of kseg that installs the format's libraries.
        libraries: Modules that write the format, besides TensorFlow.
        runtime: Module that runs it.
        precisions: Values of `export.precision` that it can store.
        any_size: Whether one file takes images of any size.
    """

    extra: str
    libraries: tuple[str, ...]
    runtime: str
    precisions: tuple[str, ...]
    any_size: bool


SAVED_MODEL = "savedmodel"
# The formats that TensorFlow's graph is converted to. They take whole images at one scale.
CONVERTED = {
    "onnx": Format("onnx", ("tf2onnx", "onnx"), "onnxruntime", ("float32",), any_size=True),
    # TensorFlow itself writes it; the extra runs it.
    "litert": Format("litert", (), "ai_edge_litert", ("float32",), any_size=False),
    "openvino": Format("openvino", ("openvino",), "openvino", ("float32",), any_size=True),
}
NAMES = (SAVED_MODEL, *CONVERTED)


def require_formats(names: Iterable[str], config: Config) -> None:
    """Refuse formats that cannot be written, or cannot hold what a config asks for.

    Raises:
        ConfigError: A name is unknown, or the config asks for what a format cannot do.
        UserError: A library is not installed.
    """
    for name in names:
        if name not in NAMES:
            raise ConfigError(unknown("format", name, NAMES))
        if name == SAVED_MODEL:
            continue
        _require_options(name, config)
        _require_libraries(name, CONVERTED[name].libraries)


def require_runtimes(names: Iterable[str]) -> None:
    """Raise UserError if the runtime of a format is not installed."""
    for name in names:
        if name != SAVED_MODEL:
            _require_libraries(name, (CONVERTED[name].runtime,))


def _require_libraries(name: str, libraries: Iterable[str]) -> None:
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    if missing:
        raise UserError(f"--format {name} needs {' and '.join(missing)}: pip install 'kseg[{CONVERTED[name].extra}]'")


def image_size(name: str, config: Config) -> tuple[int, int] | None:
    """Return the (height, width) of the images that a format's file takes, or None if it takes any size."""
    if config.export.size:
        return tuple(config.export.size)
    return None if CONVERTED[name].any_size else tuple(config.augment.crop)


def _require_options(name: str, config: Config) -> None:
    """Raise ConfigError if a config asks for what a format cannot do."""
    evaluate, precision = config.evaluate, config.export.precision
    if precision not in CONVERTED[name].precisions:
        choices = " or ".join(f"export.precision={value}" for value in CONVERTED[name].precisions)
        raise ConfigError(
            f"--format {name} cannot store export.precision={precision}: use --set {choices}, or --format {SAVED_MODEL}"
        )
    if evaluate.window:
        raise ConfigError(
            f"--format {name} cannot hold sliding windows: export whole images with "
            f"--set evaluate.window= evaluate.stride=, or use --format {SAVED_MODEL}"
        )
    if evaluate.scales or evaluate.flip:
        raise ConfigError(
            f"--format {name} cannot hold test-time augmentation: omit --tta, "
            f"--set evaluate.scales= evaluate.flip=false, or use --format {SAVED_MODEL}"
        )
    if evaluate.resize and image_size(name, config) is None:
        height, width = evaluate.resize
        raise ConfigError(
            f"--format {name} cannot fit images of any size into evaluate.resize={height},{width}: name "
            "the size of your images, such as --set export.size=512,1024, or take images as they are "
            "with --set evaluate.resize="
        )
