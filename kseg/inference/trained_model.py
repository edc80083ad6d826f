"""Load a trained model from a working directory of `kseg.train`, with its config and dataset record."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kseg import config as configs
from kseg.config import Config, checks, values
from kseg.errors import ConfigError, WorkdirError

if TYPE_CHECKING:
    from kseg.datasets.registry import Dataset

# The scales of all published multi-scale results.
TEST_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def load_trained(workdir: Path, weights: Path | None = None, tta: bool = False, overrides: Sequence[str] = ()) -> tuple:
    """Load a trained model from a working directory of kseg.train.

    Args:
        workdir: The working directory.
        weights: A file of weights to load instead of the best validated ones.
        tta: Whether to enable test-time augmentation.
        overrides: Changes to the config, such as "evaluate.flip=true".

    Returns:
        The Keras model, the config and the dataset record.

    Raises:
        WorkdirError: the working directory cannot be read, or contains no validated weights yet.
        WeightsError: the weights cannot be read, or do not fit the model.
        ConfigError: an override is invalid.

    Example:
        >>> model, config, dataset = load_trained(workdir, overrides=["evaluate.flip=true"])
        >>> config.evaluate.flip, model.output["main"].shape[-1] == len(dataset.classes)
        (True, True)
    """
    config, dataset = read_config(workdir, overrides), read_dataset(workdir)
    return load_with_weights(config, dataset, weights or best_weights(workdir), tta)


def load_with_weights(config: configs.Config, dataset: "Dataset", path: Path, tta: bool) -> tuple:
    """Build a config's model and load its weights from a file.

    Args:
        config: The config.
        dataset: The dataset record, which gives the number of classes.
        path: The file of weights.
        tta: Whether to enable test-time augmentation.

    Returns:
        The Keras model, the config (changed by `tta`) and the dataset record.
    """
    from kseg import models
    from kseg.distributed import devices
    from kseg.weights import file_kinds, loading

    # Published metrics must be comparable, so evaluation uses full float32 whatever precision the training used.
    devices.set_tensor_float_32(False)
    config = with_augmentation(config) if tta else config
    model = models.build(config.model, len(dataset.classes))
    # init.channels describes the file that initialized the training; the weights that kseg writes are always RGB.
    channels = "RGB" if file_kinds.find_kind(path) == "hdf5" else config.init.channels
    for note in loading.load_checkpoint(model, path, config.model.head, channels=channels):
        print(f"note: {note}")
    return model, config, dataset


def with_augmentation(config: Config) -> Config:
    """Return a config with test-time augmentation."""
    return replace(config, evaluate=replace(config.evaluate, scales=TEST_SCALES, flip=True))


def read_config(workdir: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config of a working directory, without importing TensorFlow.

    Args:
        workdir: The working directory.
        overrides: Changes to the config, such as "evaluate.flip=true".

    Raises:
        WorkdirError: the config cannot be read.
        ConfigError: an override is invalid.
    """
    path = workdir / "config.json"
    try:
        config = configs.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _not_a_workdir(workdir, error) from None
    except (ConfigError, UnicodeDecodeError) as error:
        raise WorkdirError(f"{path}: {error}") from None
    for override in overrides:
        config = values.set_value(config, override)
    return checks.check_config(config)


def read_dataset(workdir: Path) -> "Dataset":
    """Read the dataset record of a working directory, without the data; raises WorkdirError."""
    from kseg.datasets import registry

    path = workdir / "dataset.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return dataclasses.replace(
            registry.DATASETS[record["name"]],
            classes=tuple(record["classes"]),
            palette=tuple(map(tuple, record["palette"])),
            label_table=tuple(record["label_table"]),
        )
    except OSError as error:
        raise _not_a_workdir(workdir, error) from None
    except (ValueError, LookupError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def read_workdir(workdir: Path) -> "tuple[Config, Dataset]":
    """Read the config and the dataset record of a working directory; raises WorkdirError."""
    return read_config(workdir), read_dataset(workdir)


def _not_a_workdir(workdir: Path, error: OSError) -> WorkdirError:
    return WorkdirError(f"{workdir} is not a working directory of kseg.train: {error.strerror}: {error.filename}")


def require_same_classes(trained: "Dataset", current: "Dataset", location: str) -> None:
    """Raise WorkdirError if a dataset's classes differ from those that a model was trained on.

    Args:
        trained: The dataset record of the model.
        current: The dataset record of the data.
        location: Name of the model or its working directory for the message.
    """
    if trained.classes == current.classes and trained.label_table != current.label_table:
        value = next(value for value in range(256) if trained.label_table[value] != current.label_table[value])
        raise WorkdirError(
            f"{location} was trained with label value {value} as {trained.label_table[value]}, but the "
            f"data now maps it to {current.label_table[value]}"
        )
    if trained.classes != current.classes:
        pairs = zip(trained.classes, current.classes)
        index = next(
            (index for index, (old, new) in enumerate(pairs) if old != new),
            min(len(trained.classes), len(current.classes)),
        )
        raise WorkdirError(
            f"{location} was trained on {len(trained.classes)} classes of {trained.name}, but the data "
            f"now has {len(current.classes)}; the first difference is class {index}: "
            f"{', '.join(trained.classes[index : index + 1]) or 'none'} in training, "
            f"{', '.join(current.classes[index : index + 1]) or 'none'} now"
        )


def best_weights(workdir: Path) -> Path:
    """Return the path of the best validated weights; raises WorkdirError before the first validation."""
    path = workdir / "best.weights.h5"
    if not path.is_file():
        raise WorkdirError(f"{workdir} has no best.weights.h5 yet: training has not reached its first validation")
    return path
