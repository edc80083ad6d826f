"""Compute confusion matrices by plain loops over pixels, without Keras, as a reference for the fast ones."""

import math

import numpy as np

IGNORED = 255
WIDTHS = (0.00125, 0.0025, 0.005, 0.01, 0.02)


def boundary_distances(labels: np.ndarray) -> np.ndarray:
    """Return each pixel's chessboard distance (H, W) to the nearest label edge.

    The pixels at an edge have distance 1; without an edge the distance is inf.
    """
    height, width = labels.shape
    at_edge = [
        (row, column)
        for row in range(height)
        for column in range(width)
        if any(
            0 <= row + down < height
            and 0 <= column + right < width
            and labels[row + down, column + right] != labels[row, column]
            for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1))
        )
    ]
    return np.array(
        [
            [
                min((1.0 + max(abs(row - y), abs(column - x)) for y, x in at_edge), default=math.inf)
                for column in range(width)
            ]
            for row in range(height)
        ]
    ).reshape(height, width)


def boundary_bands(labels: np.ndarray) -> np.ndarray:
    """Return for each pixel of a map (H, W) the number of widths that are too narrow to reach it."""
    diagonal = math.sqrt(labels.shape[0] ** 2 + labels.shape[1] ** 2)
    distances = boundary_distances(labels)
    return sum((distances > max(1, round(width * diagonal))).astype(np.int64) for width in WIDTHS)


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Return the int64 (C, C) confusion matrix, with labels as rows, of maps of class ids and ignored labels."""
    matrix = np.zeros((classes, classes), np.int64)
    for label, prediction in zip(labels.ravel().tolist(), predictions.ravel().tolist()):
        if label != IGNORED:
            matrix[label, prediction] += 1
    return matrix


def banded_confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Return the int64 (bands, C, C) confusion matrices of the boundary bands of maps (N, H, W)."""
    bands = np.stack([boundary_bands(label) for label in labels])
    return np.stack(
        [confusion(labels[bands == band], predictions[bands == band], classes) for band in range(len(WIDTHS) + 1)]
    )
