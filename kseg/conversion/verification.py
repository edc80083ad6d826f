"""Our numbers beside an original system's, layer by layer, from a directory of files that the original wrote.

    model.pth input.npy logits.npy          a checkpoint, normalised NHWC pictures, and the main logits they give
    config.json                             the original's model configuration, under "cfg"
    backbone_0.npy .. backbone_3.npy        outputs of the four stages
    aux_logits.npy se_logits.npy            the other outputs
    logits_full.npy                         main logits at the pictures' size
    label.npy losses.json                   labels, and the loss terms of a training step with no dropout
    grads.json bn_after_step.json           {name: [norm, sum]} of its gradients and of the running statistics after it

The first three have to be there; so has config.json, unless a config of ours is given in its place. Arrays are NHWC.
Any Keras backend runs everything but the gradients, which are taken on TensorFlow and JAX.
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
from kseg.config import IGNORED, Model
from kseg.conversion.gradients import DIFFERENTIATE, Step, train_step
from kseg.conversion.original_configs import Original, translate
from kseg.errors import ConfigError, DataError
from kseg.models.layers import resize
from kseg.weights import loading
from kseg.weights.names import sss_to_mmseg

# Largest relative differences.
ARRAY_LIMIT = 1e-4
LOSS_LIMIT = 1e-5
SUMS_LIMIT = 1e-3

# What a training step is compared with.
STEP_FILES = ("losses.json", "grads.json", "bn_after_step.json")

# Term of losses.json -> output of a model; MMSegmentation's names, then SSSegmentation's.
LOSS_TERMS = {"decode.loss_ce": "main", "aux.loss_ce": "aux", "decode.loss_se": "se", "total": "total",
              "loss_cls": "main", "loss_aux": "aux", "loss_se": "se", "loss_total": "total"}


class Row(NamedTuple):
    """One comparison: the largest difference, and the largest one relative to the truth's size."""

    what: str
    shape: tuple[int, ...]
    difference: float
    relative: float
    limit: float
    where: str = ""

    @property
    def ok(self) -> bool:
        """Whether the limit is kept; not a number is a difference."""
        return self.relative <= self.limit


class Report(NamedTuple):
    """All comparisons in the network's order, and remarks, such as what this backend cannot run."""

    directory: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every limit is kept."""
        return all(row.ok for row in self.rows)

    def table(self) -> str:
        """Return the rows as text; the first one that differs is marked."""
        first = next((row for row in self.rows if not row.ok), None)
        lines = [f"{'what':<17} {'shape':<16} {'largest':>9} {'relative':>9} {'limit':>8}"]
        for row in self.rows:
            verdict = "ok" if row.ok else "DIFFERS, here first" if row is first else "DIFFERS"
            shape, where = "x".join(map(str, row.shape)), f"  ({row.where})" if row.where else ""
            lines.append(f"{row.what:<17} {shape:<16} {row.difference:>9.2e} {row.relative:>9.2e} {row.limit:>8.0e}  "
                         f"{verdict}{where}")
        kept = sum(row.ok for row in self.rows)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"{self.directory}: {kept} of {len(self.rows)} comparisons within their limits"])


def verify(directory: str | Path, values: Original | None = None, skip: Sequence[str] = (),
           channels: Literal["RGB", "BGR"] = "RGB") -> Report:
    """Return the comparison of everything the directory holds with what our model gives.

    `values` stand in for the config.json that a directory lacks; `skip` and `channels` are those of
    `loading.load_checkpoint`. Raises DataError for files that are missing or damaged, ConfigError for a configuration
    that cannot be built here, and WeightsError for a checkpoint that does not fit it.
    """
    directory = Path(directory)
    images, truth = _array(directory / "input.npy").astype(np.float32), _array(directory / "logits.npy")
    if images.ndim != 4 or images.shape[-1] != 3 or truth.ndim != 4:
        raise DataError(f"{directory}: input.npy has shape {images.shape} and logits.npy {truth.shape}; they are NHWC, "
                        "with 3 channels and one for each class")
    values = _values(directory, values)
    head, align_corners = values.model.head, values.model.align_corners
    # The training step is compared without its random part.
    model = models.build(dataclasses.replace(values.model, dropout=0.0), values.classes)
    notes = list(loading.load_checkpoint(model, directory / "model.pth", head, skip, channels))
    rows = _forward_rows(directory, model, align_corners, images, notes)
    absent = [name for name in STEP_FILES if not (directory / name).exists()]
    notes += [f"{Path(name).stem}: not compared, there is no {name}" for name in absent]
    if len(absent) < len(STEP_FILES):
        labels = _labels(directory / "label.npy", images.shape[:3], values.classes)
        step = train_step(model, images, labels, values.loss, align_corners)
        rows += _step_rows(directory, step, values.model, notes)
    return Report(directory, tuple(rows), tuple(notes))


def _values(directory: Path, given: Original | None) -> Original:
    path = directory / "config.json"
    if not path.exists():
        if given is None:
            raise DataError(f"{directory} has no config.json of the original; name a config of ours with --config")
        return given
    if given is not None:
        raise ConfigError(f"{directory} has its own config.json; leave --config away")
    description = _json(path)
    if "cfg" not in description:
        raise DataError(f"{path} has no \"cfg\", the original's model configuration")
    try:
        return translate(description["cfg"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; model.pth, input.npy and logits.npy have to be there, and label.npy "
                        "beside numbers of a training step") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or no .npy file ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or not array.size or not array.ndim:
        raise DataError(f"{path} holds no array of numbers")
    return array


def _labels(path: Path, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """Return int32 labels (N, H, W), 255 ignored; other values that are no class are an error."""
    labels = _array(path).astype(np.int32)
    if labels.shape != shape:
        raise DataError(f"{path} has shape {labels.shape}, and the pictures {shape}")
    odd = sorted(set(np.unique(labels).tolist()) - {*range(classes), IGNORED})
    if odd:
        raise DataError(f"{path} has the values {', '.join(map(str, odd[:5]))}; labels are 0 to {classes - 1}, and "
                        f"{IGNORED} is ignored")
    return labels


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or no JSON file ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no JSON object")
    return values


def stage_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the last layers of the four stages of a model's backbone."""
    ends = [layer for layer in model.layers if re.fullmatch(r"backbone\.layer\d\.\d+\.relu", layer.name)]
    return [max((layer for layer in ends if layer.name.startswith(f"backbone.layer{stage}.")),
                key=lambda layer: int(layer.name.split(".")[2])) for stage in (1, 2, 3, 4)]


def _forward_rows(directory: Path, model: keras.Model, align_corners: bool, images: np.ndarray,
                  notes: list[str]) -> list[Row]:
    outputs = model.output | {f"stage {index}": layer.output for index, layer in enumerate(stage_layers(model))}
    found = keras.Model(model.input, outputs)(ops.convert_to_tensor(images), training=False)
    found["full"], rows = resize(found["main"], images.shape[1:3], align_corners), []
    for file, output in (*((f"backbone_{index}", f"stage {index}") for index in range(4)), ("aux_logits", "aux"),
                         ("se_logits", "se"), ("logits", "main"), ("logits_full", "full")):
        path = directory / f"{file}.npy"
        if path.exists():
            if output not in found:
                raise DataError(f"{path} is there, but the configuration has no such output")
            rows.append(compare(file, found[output], _array(path)))
        elif output in found:
            notes.append(f"{file}: not compared, there is no {path.name}")
    return rows


def compare(what: str, found: Any, truth: np.ndarray) -> Row:
    """Return the comparison of two arrays, relative where the truth is above 1.

    The truth may be the first elements of the batch alone; half-precision truths are compared within their rounding.
    """
    found = ops.convert_to_numpy(found)
    limit = max(ARRAY_LIMIT, float(np.finfo(truth.dtype).eps)) if truth.dtype == np.float16 else ARRAY_LIMIT
    found, truth = found[: len(truth)].astype(np.float64), truth.astype(np.float64)
    if found.shape != truth.shape:
        return Row(what, truth.shape, np.inf, np.inf, limit, f"the shape is {'x'.join(map(str, found.shape))} here")
    difference = np.abs(found - truth)
    return Row(what, truth.shape, float(np.max(difference)),
               float(np.max(difference / np.maximum(np.abs(truth), 1))), limit)


def _step_rows(directory: Path, step: Step, model: Model, notes: list[str]) -> list[Row]:
    rows, path = [], directory / "losses.json"
    for key, expected in (_json(path) if path.exists() else {}).items():
        if key.startswith("_") or "acc_" in key:
            continue
        if LOSS_TERMS.get(key) not in step.terms or not isinstance(expected, (int, float)):
            raise DataError(f"{path}: {key} = {expected!r} is no loss of this model; it has {', '.join(step.terms)}")
        difference = abs(step.terms[LOSS_TERMS[key]] - expected)
        rows.append(Row(key, (), difference, difference / (abs(expected) or 1), LOSS_LIMIT))
    for file, found in (("grads", step.gradients), ("bn_after_step", step.statistics)):
        if not (directory / f"{file}.json").exists():
            continue
        if found is None:
            notes.append(f"{file}: not run on this backend ({keras.backend.backend()}); gradients are taken on "
                         f"{' and '.join(DIFFERENTIATE)}")
        else:
            rows.append(_compare_sums(file, found, _sums(directory / f"{file}.json", model)))
    return rows


def _sums(path: Path, model: Model) -> dict[str, tuple[float, float]]:
    """Return {MMSegmentation's name: (norm, sum)} of a file in either system's names."""
    pairs = {name: pair for name, pair in _json(path).items()
             if not name.startswith("_") and not name.endswith("num_batches_tracked")}
    if any(name.startswith("backbone_net.") for name in pairs):
        pairs = {sss_to_mmseg(name, model.head, model.fcn.convolutions): pair for name, pair in pairs.items()}
    for name, pair in pairs.items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(item, (int, float)) for item in pair):
            raise DataError(f"{path}: {name} is {pair!r}, not [norm, sum]")
    return pairs


def _compare_sums(file: str, found: dict[str, np.ndarray], truth: dict[str, tuple[float, float]]) -> Row:
    """Return the worst comparison of norms, relative to the norm, and of sums, relative to the largest possible sum.

    An array of n numbers sums to sqrt(n) times its norm at most, and a sum of numbers that cancel has the rounding of
    those. A norm below a thousandth of the largest counts as that thousandth: a gradient that is zero but for rounding,
    as that of a bias before a norm, has no relative error to speak of.
    """
    if odd := sorted(found.keys() ^ truth.keys()):
        raise DataError(f"{file}.json and the model do not have the same names: {', '.join(odd[:3])}"
                        + (f" and {len(odd) - 3} more" if len(odd) > 3 else ""))
    floor = 1e-3 * max(norm for norm, _ in truth.values())
    worst = Row(file, (len(truth),), 0.0, 0.0, SUMS_LIMIT)
    for name, (norm, total) in truth.items():
        difference = max(abs(np.linalg.norm(found[name]) - norm),
                         abs(found[name].sum() - total) / found[name].size ** 0.5)
        relative = difference / max(norm, floor)
        # So that not a number is the worst of all.
        if not relative <= worst.relative:
            worst = Row(file, (len(truth),), float(difference), float(relative), SUMS_LIMIT, f"worst: {name}")
    return worst
