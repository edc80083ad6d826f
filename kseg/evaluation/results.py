"""What an evaluation knows and writes: metrics.json, the counts as NumPy files, the images in order of their IoU.

    metrics.json                 all figures, with the published ones, timing, provenance and config
    confusion.npy bands.npy      int64 confusion matrices: of all pixels, and of each band around the labels' edges
    per_image.csv per_image.npz  the images, worst first, for people; in the split's order, for kseg.compare
"""

import csv
import hashlib
import io
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import kseg
from kseg import config as configs
from kseg import __version__
from kseg.config import Config, zoo
from kseg.datasets.registry import Dataset
from kseg.evaluation import metrics
from kseg.evaluation.counter import Counts
from kseg.system import atomic_files


def summary(counts: Counts, config: Config, dataset: Dataset, split: str) -> dict:
    """Return all figures of a counted split: metrics.summary's, those of its boundary bands, and the published ones."""
    boundary = metrics.boundary_summary(counts.bands, dataset.classes)
    headline = boundary["mIoU"][boundary["widths"].index(boundary["width"])]
    return {"split": split, "images": len(counts.names), **metrics.summary(counts.matrix, dataset.classes),
            "boundary_mIoU": headline, "boundary": boundary, "published": zoo.published(config, split),
            "config": configs.to_dict(config)}


def provenance(config: Config, dataset: Dataset, weights: Path | None) -> dict:
    """Return with what, of what and when a figure was made."""
    digest = None
    if weights:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"kseg": __version__, "git": _revision(), "tensorflow": tf.__version__, "keras": keras.__version__,
            "python": platform.python_version(), "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(sys.orig_argv), "weights": str(weights) if weights else None,
            "weights_sha256": digest, "dataset": dataset.name, "directory": config.data.directory}


def _revision() -> str | None:
    """Return the revision of the checkout that kseg runs from; None where it is no checkout."""
    root = Path(kseg.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True,
                              check=True, timeout=10).stdout.strip()
    # No git, or another's directory, which it refuses to look into.
    except (OSError, subprocess.SubprocessError):
        return None


def image_names(counts: Counts) -> list[str]:
    """Return the images' names without the directory that all of them lie in."""
    shared = os.path.commonpath([os.path.dirname(name) for name in counts.names])
    return [os.path.relpath(name, shared) if shared else name for name in counts.names]


def image_ious(counts: Counts) -> np.ndarray:
    """Return float64 (N, C): each image's IoU of each class, nan where neither its label nor its prediction has it."""
    union = counts.truth + counts.predicted - counts.hits
    return np.divide(counts.hits, union, out=np.full(union.shape, np.nan), where=union > 0)


def image_mious(counts: Counts) -> np.ndarray:
    """Return float64 (N,): each image's IoU averaged over its classes, nan where it has no labelled pixel."""
    ious = image_ious(counts)
    known = np.isfinite(ious)
    return np.divide(np.where(known, ious, 0).sum(1), known.sum(1), out=np.full(len(ious), np.nan),
                     where=known.any(1))


def worst_first(counts: Counts) -> list[int]:
    """Return the places of the images by their mIoU, the lowest first, those without a labelled pixel last."""
    return [int(index) for index in np.argsort(image_mious(counts), kind="stable")]


def write(out: Path, results: dict, counts: Counts, classes: tuple[str, ...]) -> None:
    """Write all but the report to a directory; raises OSError where it cannot be written."""
    np.save(out / "confusion.npy", counts.matrix)
    np.save(out / "bands.npy", counts.bands)
    np.savez_compressed(out / "per_image.npz", names=np.array(image_names(counts), str), classes=np.array(classes, str),
                        hits=counts.hits, truth=counts.truth, predicted=counts.predicted)
    atomic_files.write_text(out / "per_image.csv", per_image(counts, classes))
    # JSON has no nan; an absent class reads null. Last: where it stands, the others do.
    plain = json.loads(json.dumps(results), parse_constant=lambda name: None)
    atomic_files.write_text(out / "metrics.json", json.dumps(plain, indent=2) + "\n")


def per_image(counts: Counts, classes: tuple[str, ...]) -> str:
    """Return a CSV table of the images, worst first: name, mIoU, accuracy, labelled pixels and the IoU of each class.

    Fractions; empty where an image has no such pixels.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "miou", "accuracy", "pixels", *classes])
    names, ious, mious = image_names(counts), image_ious(counts), image_mious(counts)
    for index in worst_first(counts):
        pixels = int(counts.truth[index].sum())
        accuracy = counts.hits[index].sum() / pixels if pixels else np.nan
        writer.writerow([names[index], _fraction(mious[index]), _fraction(accuracy), pixels,
                         *map(_fraction, ious[index])])
    return text.getvalue()


def _fraction(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"
