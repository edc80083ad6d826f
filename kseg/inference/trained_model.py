"""Load a trained model from a working directory of `kseg.train`, with its config and data set record."""

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

# Of all published results over several scales.
TEST_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def load_trained(workdir: Path, weights: Path | None = None, tta: bool = False, overrides: Sequence[str] = ()) -> tuple:
    """Return (model, config, data set record) of a working directory of kseg.train, with its best weights.

    `weights` is a file in their place, `tta` turns test-time augmentation on, and `overrides` (`a.b=c`) change its
    config. Raises WorkdirError, WeightsError or ConfigError where they cannot be read or do not fit.
    """
    config, dataset = read_config(workdir, overrides), read_dataset(workdir)
    return load_with_weights(config, dataset, weights or best_weights(workdir), tta)


def load_with_weights(config: configs.Config, dataset: "Dataset", path: Path, tta: bool) -> tuple:
    from kseg import models
    from kseg.distributed import devices
    from kseg.weights import loading

    # Numbers are for comparing: however the model was trained, it is evaluated in full float32.
    devices.set_tensor_float_32(False)
    if tta:
        config = replace(config, evaluate=replace(config.evaluate, scales=TEST_SCALES, flip=True))
    model = models.build(config.model, len(dataset.classes))
    # init.channels speaks of the file a run started from, and not of the weights that kseg wrote.
    channels = "RGB" if path.name.endswith(".weights.h5") else config.init.channels
    for note in loading.load_checkpoint(model, path, config.model.head, channels=channels):
        print(f"note: {note}")
    return model, config, dataset


def read_config(workdir: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a working directory with `a.b=c` overrides, without importing TensorFlow.

    Raises WorkdirError if it cannot be read, ConfigError for a wrong override.
    """
    path = workdir / "config.json"
    try:
        config = configs.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _no_workdir(workdir, error) from None
    except (ConfigError, UnicodeDecodeError) as error:
        raise WorkdirError(f"{path}: {error}") from None
    for override in overrides:
        config = values.set_value(config, override)
    return checks.check_config(config)


def read_dataset(workdir: Path) -> "Dataset":
    """Return the dataset record of a working directory, which needs none of the data; raises WorkdirError."""
    from kseg.datasets import registry

    path = workdir / "dataset.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return dataclasses.replace(
            registry.DATASETS[record["name"]], classes=tuple(record["classes"]),
            palette=tuple(map(tuple, record["palette"])), label_table=tuple(record["label_table"]))
    except OSError as error:
        raise _no_workdir(workdir, error) from None
    except (ValueError, LookupError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def read_workdir(workdir: Path) -> "tuple[Config, Dataset]":
    """Return the config and the dataset record of a working directory; raises WorkdirError."""
    return read_config(workdir), read_dataset(workdir)


def _no_workdir(workdir: Path, error: OSError) -> WorkdirError:
    return WorkdirError(f"{workdir} is no working directory of kseg.train: {error.strerror}: {error.filename}")


def require_same_classes(trained: "Dataset", found: "Dataset", where: str) -> None:
    """Raise WorkdirError where a data set's classes are not those that a model was trained on."""
    if trained.classes == found.classes and trained.label_table != found.label_table:
        value = next(value for value in range(256) if trained.label_table[value] != found.label_table[value])
        raise WorkdirError(f"{where} was trained with label value {value} as {trained.label_table[value]}, "
                           f"the data now reads it as {found.label_table[value]}")
    if trained.classes != found.classes:
        pairs = zip(trained.classes, found.classes)
        different = next((index for index, (before, now) in enumerate(pairs) if before != now),
                         min(len(trained.classes), len(found.classes)))
        raise WorkdirError(f"{where} was trained on {len(trained.classes)} classes of {trained.name}, the data now has "
                           f"{len(found.classes)}; the first difference is class {different}: "
                           f"{', '.join(trained.classes[different:different + 1]) or 'none'} there, "
                           f"{', '.join(found.classes[different:different + 1]) or 'none'} now")


def best_weights(workdir: Path) -> Path:
    """Return the file of the best validated weights; raises WorkdirError where no validation has been made yet."""
    path = workdir / "best.weights.h5"
    if not path.is_file():
        raise WorkdirError(f"{workdir} has no best.weights.h5 yet: training has not reached its first validation")
    return path
