"""The metrics in plain loops over pixels, slow and without Keras: what the fast form must equal bit for bit."""

import math

import numpy as np

IGNORED = 255
WIDTHS = (0.00125, 0.0025, 0.005, 0.01, 0.02)


def boundary_distances(labels: np.ndarray) -> np.ndarray:
    """Return the chessboard distance (H, W) of each pixel to the nearest edge, inf without one: 1 beside an edge."""
    height, width = labels.shape
    beside = [(row, column) for row in range(height) for column in range(width)
              if any(0 <= row + down < height and 0 <= column + right < width
                     and labels[row + down, column + right] != labels[row, column]
                     for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)))]
    return np.array([[min((1.0 + max(abs(row - y), abs(column - x)) for y, x in beside), default=math.inf)
                      for column in range(width)] for row in range(height)]).reshape(height, width)


def boundary_bands(labels: np.ndarray) -> np.ndarray:
    """Return for one map (H, W) how many of the widths are too narrow to hold each pixel."""
    diagonal = math.sqrt(labels.shape[0] ** 2 + labels.shape[1] ** 2)
    distances = boundary_distances(labels)
    return sum((distances > max(1, round(width * diagonal))).astype(np.int64) for width in WIDTHS)


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Return the int64 (C, C) confusion matrix, rows truth, of maps whose values are classes or, of labels, 255."""
    matrix = np.zeros((classes, classes), np.int64)
    for truth, guess in zip(labels.ravel().tolist(), predictions.ravel().tolist()):
        if truth != IGNORED:
            matrix[truth, guess] += 1
    return matrix


def counts(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrices of the bands, int64 (bands, C, C), of maps (N, H, W)."""
    bands = np.stack([boundary_bands(label) for label in labels])
    return np.stack([confusion(labels[bands == band], predictions[bands == band], classes)
                     for band in range(len(WIDTHS) + 1)])
