"""What kseg.evaluate wrote, read back and checked: metrics.json and the counts of every image beside it.

Nothing here loads a model: a comparison of two evaluations is NumPy, and starts at once.
"""

import json
import math
import os
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kseg.errors import DataError

MEANS = ("mIoU", "aAcc", "mAcc")
# What is written in decimals and read again differs in no figure that counts.
TOLERANCE = 1e-9
# What the same picture may end in here and not there; as kseg.datasets.layouts.IMAGE_SUFFIXES.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
# How many of many an error names.
NAMED = 3


class Evaluation(NamedTuple):
    """What kseg.evaluate wrote: counts are int64 (images, classes), of pixels whose label is not 255."""

    path: Path
    dataset: str
    split: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    hits: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


def read(path: Path) -> Evaluation:
    """Return the evaluation whose metrics.json, or whose directory, is `path`; per_image.npz lies beside it.

    Raises DataError where a file is missing or damaged, or the counts of the images are not those of metrics.json.
    """
    path = path / "metrics.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        dataset, split, images, classes = (results["provenance"]["dataset"], results["split"], results["images"],
                                           tuple(results["classes"]))
        means = [math.nan if results[name] is None else float(results[name]) for name in MEANS]
    except FileNotFoundError:
        raise DataError(f"no file {path}: python -m kseg.evaluate --out DIR writes it") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except KeyError as error:
        raise DataError(f"{path} has no {error}: this version's python -m kseg.evaluate --out DIR writes it") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    counts_path = path.with_name("per_image.npz")
    found, names, *counts = _read_counts(counts_path)
    if (len(names), found) != (images, classes):
        raise DataError(f"{counts_path} holds {len(names)} images of {len(found)} classes, {path.name} beside it tells "
                        f"of {images} of {len(classes)}{'' if found == classes else ' by other names'}: not of one "
                        "evaluation")
    for name, written, counted in zip(MEANS, means, scores(*(part.sum(0) for part in counts))[-len(MEANS):]):
        if not np.isclose(written, counted, rtol=0, atol=TOLERANCE, equal_nan=True):
            raise DataError(f"the counts in {counts_path} add up to {name} {counted:.12g}, and {path.name} beside "
                            f"it says {written:.12g}: not of one evaluation")
    return Evaluation(path, str(dataset), str(split), names, classes, *counts)


def _read_counts(path: Path) -> tuple:
    """Return (classes, names, hits, truth, predicted) of a per_image.npz."""
    try:
        with np.load(path) as file:
            names, classes, *counts = (file[key] for key in ("names", "classes", "hits", "truth", "predicted"))
    except FileNotFoundError:
        raise DataError(f"no file {path}: python -m kseg.evaluate --out DIR writes it beside metrics.json") from None
    except KeyError as error:
        raise DataError(f"{path} is damaged: {error.args[0]}") from None
    # Whatever bytes stand there: NumPy, the archive and its compression each have errors of their own.
    except (OSError, ValueError, IndexError, TypeError, AttributeError, EOFError, NotImplementedError,
            zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged or no file of arrays: {error}") from None
    expected = {"names": (names, "U", (names.size,)), "classes": (classes, "U", (classes.size,))} | {
        key: (part, "i", (names.size, classes.size)) for key, part in zip(("hits", "truth", "predicted"), counts)}
    for key, (array, kind, shape) in expected.items():
        if array.dtype.kind != kind or array.shape != shape or not array.size:
            raise DataError(f"{path} is damaged: {key} is {array.dtype} {array.shape}")
    hits, truth, predicted = (part.astype(np.int64) for part in counts)
    faulty = ((hits < 0) | (hits > truth) | (hits > predicted)).any(1) | (truth.sum(1) != predicted.sum(1))
    if faulty.any():
        raise DataError(f"{path} is damaged: the counts of {some(names[faulty].tolist(), 'image')} contradict "
                        "themselves")
    return tuple(classes.tolist()), tuple(names.tolist()), hits, truth, predicted


def scores(hits: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return each class's IoU, then MEANS, as float64 (..., classes + 3) from summed counts (..., classes).

    They are those of `kseg.evaluation.metrics.summary`: a ratio without a denominator is nan and left out of the mean.
    """
    iou, accuracy = _ratio(hits, truth + predicted - hits), _ratio(hits, truth)
    means = (_mean(iou), _ratio(hits.sum(-1), truth.sum(-1)), _mean(accuracy))
    return np.concatenate([iou, np.stack(means, -1)], -1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def pair(a: Evaluation, b: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Return both with B's images in A's order.

    Images are told by what their names do not share, for the data set may have lain in another directory, or have been
    prepared: a/val/1.png and a/val/2.png are the images of b/1 and b/2.
    Raises DataError where they are not of the same data set, split, classes, images and labels.
    """
    for kind, one, other in (("data set", a.dataset, b.dataset), ("split", a.split, b.split)):
        if one != other:
            raise DataError(f"{a.path} is of {kind} {one!r}, {b.path} of {other!r}: only the same images can be paired")
    if a.classes != b.classes:
        raise DataError(f"{a.path} has {len(a.classes)} classes and {b.path} {len(b.classes)}, which differ"
                        f"{_difference(a.classes, b.classes) or ': the same ones in another order'}")
    names, others = _own_parts(a.names), _own_parts(b.names)
    if difference := _difference(names, others, "image"):
        raise DataError(f"{a.path} has {len(names)} images and {b.path} {len(others)}, which differ{difference}")
    order = np.empty(len(names), np.int64)
    # Stable: where a name stands twice, its first comes to its first.
    order[np.argsort(names, kind="stable")] = np.argsort(others, kind="stable")
    b = b._replace(names=a.names, hits=b.hits[order], truth=b.truth[order], predicted=b.predicted[order])
    other = (a.truth != b.truth).any(1)
    if other.any():
        raise DataError(f"{a.path} and {b.path} were counted on other labels of "
                        f"{some([name for name, differs in zip(a.names, other) if differs], 'image')}")
    return a, b


def _own_parts(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is left of paths without the directories that all share and without the suffix of a picture."""
    paths = [name.split("/") for name in names]
    shared = len(os.path.commonprefix([path[:-1] for path in paths]))
    stems = [os.path.splitext(path[-1]) for path in paths]
    return tuple("/".join([*path[shared:-1], stem if suffix.lower() in SUFFIXES else stem + suffix])
                 for path, (stem, suffix) in zip(paths, stems))


def _difference(a: tuple[str, ...], b: tuple[str, ...], noun: str = "class") -> str:
    """Return ": ..." with what is in one alone, the first few named; "" where both hold the same."""
    alone = {"first": Counter(a) - Counter(b), "second": Counter(b) - Counter(a)}
    parts = [f"only the {which} has {some(list(names.elements()), noun)}" for which, names in alone.items() if names]
    return f": {'; '.join(parts)}" if parts else ""


def some(names: list[str], noun: str) -> str:
    """Return "5 images (a, b, c, ...)"."""
    plural = noun + ("" if len(names) == 1 else "es" if noun == "class" else "s")
    return f"{len(names)} {plural} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"


def points(value: float, sign: str = "") -> str:
    """Return a fraction as points of a hundred with two decimals, with its sign where `sign` is "+"; nan is "-"."""
    return "-" if math.isnan(value) else f"{100 * value:{sign}.2f}"
