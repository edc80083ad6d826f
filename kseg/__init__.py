"""kseg: semantic segmentation from training to TF Serving, with Keras functional models."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kseg.inference.segmenter import Segmenter

__version__ = "0.1.0"

# TensorFlow reads this once, when it is loaded; its start-up notes would hide ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def load(directory: Path | str, weights: Path | str | None = None, tta: bool = False) -> "Segmenter":
    """Return a trained model as a function from a picture (a path, PIL image, or uint8 RGB (H, W, 3)) to its class ids.

    `directory` is a working directory of kseg.train, whose best weights are taken unless `weights` names a file; `tta`
    is test-time augmentation. Float32 convolutions are exact from then on in the whole process (no TensorFloat-32).
    Raises WorkdirError, WeightsError or ConfigError where files cannot be read or do not fit.
    """
    # TensorFlow, which this brings, takes seconds.
    from kseg.inference import segmenter

    return segmenter.load(directory, weights, tta)
