"""Compare kseg's results with an original system's, layer by layer, from a directory of files that the original wrote.

    model.pth input.npy logits.npy          a checkpoint, normalized NHWC images, and their main logits
    config.json                             the original's model configuration, under "cfg"
    backbone_0.npy .. backbone_3.npy        outputs of the four stages
    aux_logits.npy se_logits.npy            the other outputs
    logits_full.npy                         main logits at the size of the images
    label.npy losses.json                   labels, and the loss terms of a training step without dropout
    grads.json bn_after_step.json           {name: [norm, sum]} of its gradients and of the running statistics after it

The first three files are required. So is config.json, unless a kseg config replaces it. Arrays are NHWC. Gradients
need TensorFlow or JAX; everything else runs on any Keras backend.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from kseg import models
from kseg.config.sections import IGNORED, Model
from kseg.conversion.gradients import DIFFERENTIATE, TrainStep, train_step
from kseg.conversion.original_configs import Original, translate
from kseg.errors import ConfigError, DataError
from kseg.models.layers import resize
from kseg.weights import loading
from kseg.weights.names import sss_to_mmseg

# Maximum relative differences of arrays, losses, and norms and sums.
ARRAY_LIMIT = 1e-4
LOSS_LIMIT = 1e-5
SUMS_LIMIT = 1e-3

# Reference files of a training step.
STEP_FILES = ("losses.json", "grads.json", "bn_after_step.json")

# Name in losses.json -> loss term of kseg, for MMSegmentation and then for SSSegmentation.
LOSS_TERMS = {
    "decode.loss_ce": "main",
    "aux.loss_ce": "aux",
    "decode.loss_se": "se",
    "total": "total",
    "loss_cls": "main",
    "loss_aux": "aux",
    "loss_se": "se",
    "loss_total": "total",
}


class ArrayComparison(NamedTuple):
    """A comparison with a reference: the largest absolute and relative differences, and the limit of the latter."""

    name: str
    shape: tuple[int, ...]
    difference: float
    relative: float
    limit: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the relative difference is within the limit; nan is not."""
        return self.relative <= self.limit


class Report(NamedTuple):
    """All comparisons in the order of the network, and notes on what was not compared."""

    directory: Path
    rows: tuple[ArrayComparison, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether all comparisons are within their limits."""
        return all(row.ok for row in self.rows)

    def table(self) -> str:
        """Return the comparisons as text, with a mark at the first one that differs."""
        first = next((row for row in self.rows if not row.ok), None)
        lines = [f"{'name':<17} {'shape':<16} {'largest':>9} {'relative':>9} {'limit':>8}"]
        for row in self.rows:
            verdict = "ok" if row.ok else "DIFFERS, here first" if row is first else "DIFFERS"
            shape, detail = "x".join(map(str, row.shape)), f"  ({row.detail})" if row.detail else ""
            lines.append(
                f"{row.name:<17} {shape:<16} {row.difference:>9.2e} {row.relative:>9.2e} {row.limit:>8.0e}  "
                f"{verdict}{detail}"
            )
        within = sum(row.ok for row in self.rows)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"{self.directory}: {within} of {len(self.rows)} comparisons within their limits"])


def verify(
    directory: str | Path,
    values: Original | None = None,
    skip: Sequence[str] = (),
    channels: Literal["RGB", "BGR"] = "RGB",
) -> Report:
    """Compare kseg's results with all reference files in a directory.

    Args:
        directory: A directory with the files listed in this module's docstring.
        values: Model, loss and number of classes, if the directory has no config.json.
        skip: Weights that are not loaded (see `kseg.weights.loading.load_checkpoint`).
        channels: Order of the input channels that the checkpoint was trained with.

    Raises:
        DataError: A file is missing or damaged.
        ConfigError: The configuration is not supported.
        WeightsError: The checkpoint does not fit the model.
    """
    directory = Path(directory)
    images, logits = _array(directory / "input.npy").astype(np.float32), _array(directory / "logits.npy")
    if images.ndim != 4 or images.shape[-1] != 3 or logits.ndim != 4:
        raise DataError(
            f"{directory}: input.npy has shape {images.shape} and logits.npy {logits.shape}; they must be "
            "NHWC with 3 channels and with one channel per class"
        )
    values = _values(directory, values)
    head, align_corners = values.model.head, values.model.align_corners
    # Dropout is random, so reference and comparison omit it.
    model = models.build(dataclasses.replace(values.model, dropout=0.0), values.classes)
    notes = list(loading.load_checkpoint(model, directory / "model.pth", head, skip, channels))
    rows = _forward_rows(directory, model, align_corners, images, notes)
    missing = [name for name in STEP_FILES if not (directory / name).exists()]
    notes += [f"{Path(name).stem}: not compared, {name} is missing" for name in missing]
    if len(missing) < len(STEP_FILES):
        labels = _labels(directory / "label.npy", images.shape[:3], values.classes)
        step = train_step(model, images, labels, values.loss, align_corners)
        rows += _step_rows(directory, step, values.model, notes)
    return Report(directory, tuple(rows), tuple(notes))


def _values(directory: Path, given: Original | None) -> Original:
    path = directory / "config.json"
    if not path.exists():
        if given is None:
            raise DataError(f"{directory} has no config.json of the original system; name a kseg config with --config")
        return given
    if given is not None:
        raise ConfigError(f"{directory} contains a config.json; omit --config")
    description = _json(path)
    if "cfg" not in description:
        raise DataError(f'{path} has no "cfg", the original\'s model configuration')
    try:
        return translate(description["cfg"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; model.pth, input.npy and logits.npy are required, and label.npy for "
            "the results of a training step"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or not an .npy file ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not array.size or not array.ndim:
        raise DataError(f"{path} does not contain an array of numbers")
    return array


def _labels(path: Path, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """Return int32 labels (N, H, W); raises DataError for values that are neither class ids nor 255."""
    labels = _array(path).astype(np.int32)
    if labels.shape != shape:
        raise DataError(f"{path} has shape {labels.shape}, but the images have {shape}")
    invalid = sorted(set(np.unique(labels).tolist()) - {*range(classes), IGNORED})
    if invalid:
        raise DataError(
            f"{path} has the values {', '.join(map(str, invalid[:5]))}; labels are 0 to {classes - 1}, or "
            f"{IGNORED} (ignored)"
        )
    return labels


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or not a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} does not contain a JSON object")
    return values


def stage_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the last layers of the four stages of a model's backbone."""
    ends = [layer for layer in model.layers if re.fullmatch(r"backbone\.layer\d\.\d+\.relu", layer.name)]
    return [
        max(
            (layer for layer in ends if layer.name.startswith(f"backbone.layer{stage}.")),
            key=lambda layer: int(layer.name.split(".")[2]),
        )
        for stage in (1, 2, 3, 4)
    ]


def _forward_rows(
    directory: Path, model: keras.Model, align_corners: bool, images: np.ndarray, notes: list[str]
) -> list[ArrayComparison]:
    outputs = model.output | {f"stage {index}": layer.output for index, layer in enumerate(stage_layers(model))}
    actual = keras.Model(model.input, outputs)(ops.convert_to_tensor(images), training=False)
    actual["full"], rows = resize(actual["main"], images.shape[1:3], align_corners), []
    for file, output in (
        *((f"backbone_{index}", f"stage {index}") for index in range(4)),
        ("aux_logits", "aux"),
        ("se_logits", "se"),
        ("logits", "main"),
        ("logits_full", "full"),
    ):
        path = directory / f"{file}.npy"
        if path.exists():
            if output not in actual:
                raise DataError(f"{path} exists, but the configuration has no such output")
            rows.append(compare_arrays(file, actual[output], _array(path)))
        elif output in actual:
            notes.append(f"{file}: not compared, {path.name} is missing")
    return rows


def compare_arrays(name: str, actual: keras.KerasTensor | np.ndarray, expected: np.ndarray) -> ArrayComparison:
    """Compare an array with a reference, relative to reference values above 1.

    The reference may have only the first elements of the batch. The limit for a float16 reference allows for its
    rounding.
    """
    actual = ops.convert_to_numpy(actual)
    limit = max(ARRAY_LIMIT, float(np.finfo(expected.dtype).eps)) if expected.dtype == np.float16 else ARRAY_LIMIT
    actual, expected = actual[: len(expected)].astype(np.float64), expected.astype(np.float64)
    if actual.shape != expected.shape:
        detail = f"kseg's shape is {'x'.join(map(str, actual.shape))}"
        return ArrayComparison(name, expected.shape, np.inf, np.inf, limit, detail)
    difference = np.abs(actual - expected)
    return ArrayComparison(
        name,
        expected.shape,
        float(np.max(difference)),
        float(np.max(difference / np.maximum(np.abs(expected), 1))),
        limit,
    )


def _step_rows(directory: Path, step: TrainStep, model: Model, notes: list[str]) -> list[ArrayComparison]:
    rows, path = [], directory / "losses.json"
    for key, expected in (_json(path) if path.exists() else {}).items():
        if key.startswith("_") or "acc_" in key:
            continue
        if LOSS_TERMS.get(key) not in step.terms or not isinstance(expected, (int, float)):
            raise DataError(f"{path}: {key} = {expected!r} is not a loss of this model; it has {', '.join(step.terms)}")
        difference = abs(step.terms[LOSS_TERMS[key]] - expected)
        rows.append(ArrayComparison(key, (), difference, difference / (abs(expected) or 1), LOSS_LIMIT))
    for file, actual in (("grads", step.gradients), ("bn_after_step", step.statistics)):
        if not (directory / f"{file}.json").exists():
            continue
        if actual is None:
            notes.append(
                f"{file}: not computed on {keras.backend.backend()}; gradients need {' or '.join(DIFFERENTIATE)}"
            )
        else:
            rows.append(_compare_sums(file, actual, _sums(directory / f"{file}.json", model)))
    return rows


def _sums(path: Path, model: Model) -> dict[str, tuple[float, float]]:
    """Return {MMSegmentation's name: (norm, sum)} from a file with names of either system."""
    pairs = {
        name: pair
        for name, pair in _json(path).items()
        if not name.startswith("_") and not name.endswith("num_batches_tracked")
    }
    if any(name.startswith("backbone_net.") for name in pairs):
        pairs = {sss_to_mmseg(name, model.head, model.fcn.convolutions): pair for name, pair in pairs.items()}
    for name, pair in pairs.items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(item, (int, float)) for item in pair):
            raise DataError(f"{path}: {name} is {pair!r} instead of [norm, sum]")
    return pairs


def _compare_sums(
    file: str, actual: dict[str, np.ndarray], expected: dict[str, tuple[float, float]]
) -> ArrayComparison:
    """Return the worst comparison of the arrays' norms and sums.

    A difference of norms is relative to the norm. A difference of sums is relative to the largest sum of n elements
    with that norm, sqrt(n) times the norm, because the terms of a sum may cancel. Norms below a thousandth of the
    largest one count as that thousandth: the relative error of a gradient that is zero up to rounding, such as that of
    a bias before a norm, is meaningless.
    """
    if unmatched := sorted(actual.keys() ^ expected.keys()):
        raise DataError(
            f"{file}.json and the model have different names: {', '.join(unmatched[:3])}"
            + (f" and {len(unmatched) - 3} more" if len(unmatched) > 3 else "")
        )
    floor = 1e-3 * max(norm for norm, _ in expected.values())
    worst = ArrayComparison(file, (len(expected),), 0.0, 0.0, SUMS_LIMIT)
    for name, (norm, total) in expected.items():
        difference = max(
            abs(np.linalg.norm(actual[name]) - norm), abs(actual[name].sum() - total) / actual[name].size ** 0.5
        )
        relative = difference / max(norm, floor)
        # The negated comparison also replaces the worst one if the difference is nan.
        if not relative <= worst.relative:
            worst = ArrayComparison(
                file, (len(expected),), float(difference), float(relative), SUMS_LIMIT, f"worst: {name}"
            )
    return worst
