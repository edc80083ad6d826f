"""Segmentation metrics, all from one confusion matrix over a whole split."""

import numpy as np
from keras import ops

from kseg.config import IGNORED


def confusion(labels, predictions, classes: int):
    """Return the int64 (classes, classes) confusion matrix, rows truth and columns prediction, in Keras operations.

    Both maps are integer ids of one shape; pixels whose label is 255 are left out.
    """
    labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
    predictions = ops.cast(ops.reshape(predictions, (-1,)), "int32")
    # Ignored pixels fall into one bin behind the matrix: cheaper than gathering the others.
    cells = ops.where(ops.equal(labels, IGNORED), classes * classes, labels * classes + predictions)
    counts = ops.bincount(cells, minlength=classes * classes + 1)
    return ops.cast(ops.reshape(counts[: classes * classes], (classes, classes)), "int64")


def summary(matrix: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Return mIoU, mAcc, aAcc and per-class IoU and accuracy, as fractions.

    A class in neither truth nor prediction has IoU nan, one without truth has accuracy nan; both are left out of the
    means, as MMSegmentation does (its IoUMetric).
    """
    matrix = np.asarray(matrix, np.int64)
    hit, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = truth + predicted - hit

    def ratio(part, whole):
        return np.divide(part, whole, out=np.full(len(hit), np.nan), where=whole > 0)

    iou, accuracy = ratio(hit, union), ratio(hit, truth)
    per_class = {name: {"iou": float(iou[index]), "accuracy": float(accuracy[index]), "pixels": int(truth[index])}
                 for index, name in enumerate(classes)}
    pixels = int(matrix.sum())
    return {"mIoU": _mean(iou), "mAcc": _mean(accuracy), "aAcc": float(hit.sum() / pixels) if pixels else float("nan"),
            "pixels": pixels, "classes": per_class}


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def table(results: dict) -> str:
    """Return the per-class table of `summary`'s results as text; nan reads "-"."""
    def percent(value):
        return f"{100 * value:6.2f}" if value == value else f"{'-':>6}"

    width = max(len(name) for name in (*results["classes"], "class"))
    lines = [f"{'class':<{width}}    IoU  accuracy        pixels"]
    for name, row in results["classes"].items():
        lines.append(f"{name:<{width}} {percent(row['iou'])}    {percent(row['accuracy'])}  {row['pixels']:12,}")
    lines.append(f"mIoU {percent(results['mIoU'])}   aAcc {percent(results['aAcc'])}   mAcc {percent(results['mAcc'])}")
    return "\n".join(lines)
