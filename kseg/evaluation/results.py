"""Write the results of an evaluation to files, and read them back with checks.

    metrics.json                 all scores, with the published ones, timing, provenance and config
    confusion.npy bands.npy      int64 confusion matrices of all pixels and of each boundary band
    per_image.csv                scores of each image, worst first
    per_image.npz                pixel counts of each image, in the order of the split; kseg.compare reads it

This module imports neither TensorFlow nor Keras, so that a comparison of two evaluations starts at once.
"""

import csv
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import kseg
from kseg import config as configs
from kseg.config import Config, zoo
from kseg.errors import DataError
from kseg.evaluation import metrics
from kseg.system import atomic_files

if TYPE_CHECKING:
    from kseg.evaluation.counter import Counts

# Scores that were written as decimals and read back differ by less than this.
TOLERANCE = 1e-9
# Number of names that an error lists.
LISTED_NAMES = 3


class Evaluation(NamedTuple):
    """The files of one evaluation.

    `hits`, `truth` and `predicted` are int64 (images, classes): for each image and class the labeled pixels that are
    predicted correctly, that the labels assign to the class, and that are predicted as the class.
    """

    path: Path
    dataset: str
    split: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


def summarize_split(counts: "Counts", config: Config, classes: tuple[str, ...], split: str) -> dict:
    """Compute the scores of a split, and add the published ones and the config."""
    boundary = metrics.boundary_summary(counts.bands, classes)
    headline = boundary["mIoU"][boundary["widths"].index(boundary["width"])]
    return {
        "split": split,
        "images": len(counts.names),
        **metrics.summarize(counts.matrix, classes),
        "boundary_mIoU": headline,
        "boundary": boundary,
        "published": zoo.published(config, split),
        "config": configs.to_dict(config),
    }


def provenance(dataset: str, directory: str, weights: Path | None) -> dict:
    """Return the versions, the command, the weights and the data that a result depends on, and the current time."""
    digest = None
    if weights:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "kseg": kseg.__version__,
        "git": _revision(),
        "tensorflow": importlib.metadata.version("tensorflow"),
        "keras": importlib.metadata.version("keras"),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "weights": str(weights) if weights else None,
        "weights_sha256": digest,
        "dataset": dataset,
        "directory": directory,
    }


def _revision() -> str | None:
    """Return the git revision of the checkout that kseg is imported from, or None outside a checkout."""
    root = Path(kseg.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    # Git may be missing, and it refuses to read a checkout of another user.
    except (OSError, subprocess.SubprocessError):
        return None


def image_names(counts: "Counts") -> list[str]:
    """Return the images' paths relative to their common directory."""
    common = os.path.commonpath([os.path.dirname(name) for name in counts.names])
    return [os.path.relpath(name, common) if common else name for name in counts.names]


def image_mious(counts: "Counts") -> np.ndarray:
    """Return float64 (N,): the mIoU of each image over its own classes, nan for an image without labeled pixels."""
    return metrics.mean_over_classes(metrics.iou_and_accuracy(counts.hits, counts.truth, counts.predicted)[0])


def worst_first(counts: "Counts") -> list[int]:
    """Return the indices of the images by ascending mIoU; images without labeled pixels come last."""
    return [int(index) for index in np.argsort(image_mious(counts), kind="stable")]


def write_results(out: Path, results: dict, counts: "Counts", classes: tuple[str, ...]) -> None:
    """Write all files but the report to a directory; raises OSError if that fails."""
    np.save(out / "confusion.npy", counts.matrix)
    np.save(out / "bands.npy", counts.bands)
    np.savez_compressed(
        out / "per_image.npz",
        names=np.array(image_names(counts), str),
        classes=np.array(classes, str),
        hits=counts.hits,
        truth=counts.truth,
        predicted=counts.predicted,
    )
    atomic_files.write_text(out / "per_image.csv", per_image_csv(counts, classes))
    # JSON has no nan: an undefined score becomes null.
    plain = json.loads(json.dumps(results), parse_constant=lambda name: None)
    # metrics.json is written last: its presence tells that the other files are complete.
    atomic_files.write_text(out / "metrics.json", json.dumps(plain, indent=2) + "\n")


def per_image_csv(counts: "Counts", classes: tuple[str, ...]) -> str:
    """Format the scores of the images as CSV, worst first.

    The columns are the name, the mIoU, the accuracy, the number of labeled pixels and the IoU of each class. Scores are
    fractions, and an undefined score is an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "miou", "accuracy", "pixels", *classes])
    names, mious, pixels = image_names(counts), image_mious(counts), counts.truth.sum(1)
    ious = metrics.iou_and_accuracy(counts.hits, counts.truth, counts.predicted)[0]
    accuracies = metrics.pixel_accuracy(counts.hits, counts.truth)
    for index in worst_first(counts):
        writer.writerow(
            [
                names[index],
                _fraction(mious[index]),
                _fraction(accuracies[index]),
                pixels[index],
                *map(_fraction, ious[index]),
            ]
        )
    return text.getvalue()


def _fraction(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def read_evaluation(path: Path) -> Evaluation:
    """Read the metrics.json of an evaluation and the per_image.npz beside it.

    Args:
        path: The metrics.json, or its directory.

    Returns:
        The classes, the summary and the counts of each image.

    Raises:
        DataError: A file is missing or damaged, or the two files come from different evaluations.

    Example:
        >>> from kseg.datasets import registry
        >>> from kseg.evaluation.evaluator import evaluate
        >>> from kseg.inference import trained_model
        >>> model, config, dataset = trained_model.load_trained(workdir)
        >>> split = registry.open_split(config.data, "val")
        >>> results = evaluate(model, config, dataset, split, out, report=lambda line: None)
        >>> read_evaluation(out).classes == dataset.classes
        True
    """
    path = path / "metrics.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        dataset, split, images, classes = (
            results["provenance"]["dataset"],
            results["split"],
            results["images"],
            tuple(results["classes"]),
        )
        means = [math.nan if results[name] is None else float(results[name]) for name in metrics.MEANS]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; write it with python -m kseg.evaluate --out DIR") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except KeyError as error:
        raise DataError(
            f"{path} has no key {error}; write it again with python -m kseg.evaluate --out DIR of this version"
        ) from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    counts_path = path.with_name("per_image.npz")
    counted_classes, names, *counts = _read_counts(counts_path)
    if (len(names), counted_classes) != (images, classes):
        raise DataError(
            f"{counts_path} has {len(names)} images of {len(counted_classes)} classes, but {path} has "
            f"{images} of {len(classes)}{'' if counted_classes == classes else ' with other names'}: they "
            "come from different evaluations"
        )
    recomputed = metrics.ious_and_means(*(part.sum(0) for part in counts))[-len(metrics.MEANS) :]
    for name, written, counted in zip(metrics.MEANS, means, recomputed):
        if not np.isclose(written, counted, rtol=0, atol=TOLERANCE, equal_nan=True):
            raise DataError(
                f"the counts in {counts_path} yield {name} {counted:.12g}, but {path} states "
                f"{written:.12g}: they come from different evaluations"
            )
    return Evaluation(path, str(dataset), str(split), names, classes, *counts)


def _read_counts(path: Path) -> tuple:
    """Return (classes, names, hits, truth, predicted) of a per_image.npz."""
    try:
        with np.load(path) as file:
            names, classes, *counts = (file[key] for key in ("names", "classes", "hits", "truth", "predicted"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; python -m kseg.evaluate --out DIR writes it beside metrics.json"
        ) from None
    except KeyError as error:
        raise DataError(f"{path} is damaged: {error.args[0]}") from None
    # NumPy, zipfile and zlib raise these for arbitrary bytes.
    except (
        OSError,
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"{path} is damaged or not an archive of arrays: {error}") from None
    expected = {"names": (names, "U", (names.size,)), "classes": (classes, "U", (classes.size,))} | {
        key: (part, "i", (names.size, classes.size)) for key, part in zip(("hits", "truth", "predicted"), counts)
    }
    for key, (array, kind, shape) in expected.items():
        if array.dtype.kind != kind or array.shape != shape or not array.size:
            raise DataError(f"{path} is damaged: {key} has dtype {array.dtype} and shape {array.shape}")
    hits, truth, predicted = (part.astype(np.int64) for part in counts)
    inconsistent = ((hits < 0) | (hits > truth) | (hits > predicted)).any(1) | (truth.sum(1) != predicted.sum(1))
    if inconsistent.any():
        raise DataError(
            f"{path} is damaged: the counts are inconsistent in "
            f"{count_with_names(names[inconsistent].tolist(), 'image')}"
        )
    return tuple(classes.tolist()), tuple(names.tolist()), hits, truth, predicted


def count_with_names(names: list[str], noun: str) -> str:
    """Format a count with the first names, such as "5 images (a, b, c, ...)"."""
    plural = noun + ("" if len(names) == 1 else "es" if noun == "class" else "s")
    more = ", ..." if len(names) > LISTED_NAMES else ""
    return f"{len(names)} {plural} ({', '.join(names[:LISTED_NAMES])}{more})"
