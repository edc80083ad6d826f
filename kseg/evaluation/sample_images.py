"""Draw a few images of a split while they are counted: image, ground truth and prediction."""

import numpy as np

from kseg.datasets.registry import Split
from kseg.evaluation.counter import Example
from kseg.images import drawing


class SampleImages:
    """Draws images spread evenly over a split; its method `examine` is for `Counter.count`.

    Attributes:
        rows: [image, ground truth, prediction] of each image, uint8 (H, W, 3).
    """

    def __init__(self, split: Split, count: int, interval: int = 1):
        """Choose `count` images; their indices are multiples of `interval`, of which the first host counts each."""
        self.palette = split.dataset.palette
        last = (len(split.names) - 1) // interval
        self.indices = interval * np.unique(np.linspace(0, last, min(count, last + 1)).astype(int))
        self.rows: list[list[np.ndarray]] = []

    def examine(self, index: int, example: Example) -> None:
        """Draw an example if its image is one of the chosen ones."""
        if index in self.indices:
            self.rows.append(
                [
                    example.image.numpy(),
                    drawing.colorize(example.label.numpy(), self.palette),
                    drawing.colorize(example.prediction.numpy(), self.palette),
                ]
            )
