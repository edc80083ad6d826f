"""Compute segmentation metrics from pixel counts, using NumPy only.

Every score is a fraction. A ratio whose denominator is zero is nan, and means skip it, as in the IoUMetric of
MMSegmentation: a class that occurs neither in the labels nor in the predictions has no IoU, and a class without labels
has no accuracy.
"""

import math

import numpy as np

# Widths of the boundary bands as fractions of the image diagonal, and the width of the headline figure.
BOUNDARY_WIDTHS = (0.00125, 0.0025, 0.005, 0.01, 0.02)
BOUNDARY_WIDTH = 0.005
# Scores of a whole split that `ious_and_means` appends to the IoU of the classes.
MEANS = ("mIoU", "aAcc", "mAcc")


def iou_and_accuracy(hits: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the IoU and the accuracy of each class.

    Args:
        hits: Number of correctly predicted pixels of each class, (..., classes), integer or float.
        labels: Number of pixels that the labels assign to each class, same shape.
        predictions: Number of labeled pixels that are predicted as each class, same shape.

    Returns:
        IoU and accuracy, each float64 (..., classes). The IoU is nan for a class that occurs neither in the labels nor
        in the predictions; the accuracy is nan for a class without labels.

    Example:
        >>> import numpy as np
        >>> from kseg.evaluation import metrics
        >>> iou, accuracy = metrics.iou_and_accuracy(
        ...     hits=np.array([3, 1, 0]), labels=np.array([4, 2, 0]), predictions=np.array([4, 2, 0]))
        >>> iou.round(3).tolist(), accuracy.tolist()
        ([0.6, 0.333, nan], [0.75, 0.5, nan])
    """
    return _ratio(hits, labels + predictions - hits), _ratio(hits, labels)


def pixel_accuracy(hits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the fraction of labeled pixels that are correct, over all classes.

    Args:
        hits: Number of correctly predicted pixels of each class, (..., classes).
        labels: Number of pixels that the labels assign to each class, same shape.

    Returns:
        float64 (...), nan without labeled pixels.

    Example:
        >>> import numpy as np
        >>> float(pixel_accuracy(np.array([3, 1]), np.array([4, 4])))
        0.5
    """
    return _ratio(hits.sum(-1), labels.sum(-1))


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Average scores over the classes that have one.

    Args:
        values: Scores, float (..., classes), nan for a class without the score.

    Returns:
        float64 (...), nan where no class has the score.

    Example:
        >>> import numpy as np
        >>> float(mean_over_classes(np.array([0.5, np.nan, 1.0])))
        0.75
    """
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))


def ious_and_means(hits: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Compute the IoU of each class, followed by the scores of MEANS.

    Args:
        hits: Number of correctly predicted pixels of each class, (..., classes), integer or float.
        labels: Number of pixels that the labels assign to each class, same shape.
        predictions: Number of labeled pixels that are predicted as each class, same shape.

    Returns:
        float64 (..., classes + len(MEANS)), nan where a score is undefined.
    """
    iou, accuracy = iou_and_accuracy(hits, labels, predictions)
    means = (mean_over_classes(iou), pixel_accuracy(hits, labels), mean_over_classes(accuracy))
    return np.concatenate([iou, np.stack(means, -1)], -1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def summarize(matrix: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Compute all scores of a confusion matrix.

    Args:
        matrix: Integer confusion matrix (C, C); rows are labels, columns are predictions.
        classes: Names of the C classes.

    Returns:
        {"mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall": means over the classes,
        "aAcc": fraction of the labeled pixels that are correct,
        "fwIoU": mean IoU weighted by the number of labeled pixels of each class,
        "pixels": number of labeled pixels,
        "classes": {name: {"iou", "accuracy", "dice", "fscore", "precision", "recall", "pixels"}}}.
        A score is nan where its denominator is zero; the F-score is also nan where precision or recall is.

    Example:
        >>> import numpy as np
        >>> from kseg.evaluation import metrics
        >>> results = metrics.summarize(np.array([[3, 1], [1, 1]]), ("road", "car"))
        >>> round(results["mIoU"], 3), round(results["aAcc"], 3), results["classes"]["road"]["iou"]
        (0.467, 0.667, 0.6)
    """
    matrix = np.asarray(matrix, np.int64)
    hits, labels, predictions = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    iou, recall = iou_and_accuracy(hits, labels, predictions)
    precision = _ratio(hits, predictions)
    scores = {
        "iou": iou,
        "accuracy": recall,
        "dice": _ratio(2 * hits, labels + predictions),
        "fscore": _ratio(2 * precision * recall, precision + recall),
        "precision": precision,
        "recall": recall,
    }
    per_class = {
        name: {kind: float(values[index]) for kind, values in scores.items()} | {"pixels": int(labels[index])}
        for index, name in enumerate(classes)
    }
    means = {
        "mIoU": "iou",
        "mAcc": "accuracy",
        "mDice": "dice",
        "mFscore": "fscore",
        "mPrecision": "precision",
        "mRecall": "recall",
    }
    pixels = int(matrix.sum())
    return {name: float(mean_over_classes(scores[kind])) for name, kind in means.items()} | {
        "aAcc": float(pixel_accuracy(hits, labels)),
        "fwIoU": float(np.nansum(iou * labels) / pixels) if pixels else math.nan,
        "pixels": pixels,
        "classes": per_class,
    }


def boundary_summary(bands: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Compute the mIoU within the boundary bands.

    Args:
        bands: Integer (len(BOUNDARY_WIDTHS) + 1, C, C): the matrices of `confusion.banded_confusion`, summed over
            images.
        classes: Names of the C classes.

    Returns:
        {"width": BOUNDARY_WIDTH, "widths": list of BOUNDARY_WIDTHS,
        "mIoU", "pixels": one value for each width, over all pixels within that distance of an edge,
        "classes": {name: IoU within BOUNDARY_WIDTH}}. An IoU is nan where no pixel is counted.
    """
    # A wide band includes the narrower ones; the last matrix is of the pixels outside all bands.
    cumulative = [summarize(matrix, classes) for matrix in np.cumsum(np.asarray(bands, np.int64)[:-1], axis=0)]
    headline = cumulative[BOUNDARY_WIDTHS.index(BOUNDARY_WIDTH)]["classes"]
    return {
        "width": BOUNDARY_WIDTH,
        "widths": list(BOUNDARY_WIDTHS),
        "mIoU": [band["mIoU"] for band in cumulative],
        "pixels": [band["pixels"] for band in cumulative],
        "classes": {name: row["iou"] for name, row in headline.items()},
    }


def class_table(results: dict) -> str:
    """Format the results of `summarize` as a text table with a row for each class.

    Args:
        results: What `summarize` returned.

    Returns:
        The lines of the table, joined.

    Example:
        >>> import numpy as np
        >>> print(class_table(summarize(np.array([[3, 1], [1, 1]]), ("road", "car"))))
        class    IoU  accuracy        pixels
        road   60.00     75.00             4
        car    33.33     50.00             2
        mIoU  46.67   aAcc  66.67   mAcc  62.50
    """
    width = max(len(name) for name in (*results["classes"], "class"))
    lines = [f"{'class':<{width}}    IoU  accuracy        pixels"]
    for name, row in results["classes"].items():
        iou, accuracy = percent_points(row["iou"]), percent_points(row["accuracy"])
        lines.append(f"{name:<{width}} {iou:>6}    {accuracy:>6}  {row['pixels']:12,}")
    lines.append("   ".join(f"{name} {percent_points(results[name]):>6}" for name in MEANS))
    return "\n".join(lines)


def percent_points(value: float, sign: str = "") -> str:
    """Format a fraction as percent with two decimals, or "-" for nan; sign "+" marks positive values too."""
    return "-" if math.isnan(value) else f"{100 * value:{sign}.2f}"
