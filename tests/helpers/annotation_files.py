"""Images and labels of the exports in tests/data/annotations.

They are the exports of Datumaro, Supervision, LabelMe and Hugging Face datasets. label_studio is written after Label
Studio's documentation, with a brush that its converter encoded.
"""

from pathlib import Path

import numpy as np
from PIL import Image

EXPORTS = Path(__file__).parents[1] / "data" / "annotations"
SIZE = (24, 32)
ROAD, CAR = 1, 2


def expected_labels() -> dict[str, np.ndarray]:
    """Return the labels of the images a and b, uint8 (24, 32), with the classes background, road, car."""
    labels = {name: np.zeros(SIZE, np.uint8) for name in "ab"}
    labels["a"][10:24] = ROAD
    # The car is annotated after the road that it covers.
    labels["a"][12:18, 5:15] = CAR
    labels["b"][2:9, 20:30] = CAR
    return labels


def write_images(directory: Path, names: str = "ab", size: tuple[int, int] = SIZE) -> None:
    """Write an RGB image for each letter, NAME.png."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size[::-1], (40 * number, 90, 120)).save(directory / f"{name}.png")
