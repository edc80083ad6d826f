"""Turn rectangles and ellipses into polygons."""

import math

import numpy as np

# Corners of an ellipse's polygon, which is less than a pixel from it up to a radius of 800 pixels.
ELLIPSE_CORNERS = 90


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Return the corners of a rectangle, float64 (4, 2)."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """Return a polygon near an ellipse, float64 (ELLIPSE_CORNERS, 2)."""
    angles = np.linspace(0, 2 * math.pi, ELLIPSE_CORNERS, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


def rotate(points: np.ndarray, degrees: float, center: tuple[float, float] | None = None) -> np.ndarray:
    """Return points (N, 2) turned clockwise as seen on the image, around their box's center by default."""
    if not degrees:
        return points
    middle = (points.min(axis=0) + points.max(axis=0)) / 2 if center is None else np.array(center)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - middle) @ np.array([(cosine, sine), (-sine, cosine)]) + middle
