"""kseg: semantic segmentation from training to TF Serving, with Keras functional models."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kseg.config import Config
    from kseg.inference.segmenter import Segmenter
    from kseg.run import Run

__all__ = ["Config", "Run", "__version__", "load"]
__version__ = "0.1.0"

# Name here -> the module that defines it.
HOMES = {"Config": "kseg.config", "Run": "kseg.run"}


def __getattr__(name: str) -> Any:
    """Import a class when it is used (PEP 562), so that importing kseg stays quick."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def load(directory: Path | str, weights: Path | str | None = None, tta: bool = False) -> "Segmenter":
    """Load a trained model as a function from an image to its class ids.

    Importing TensorFlow takes seconds at the first call. From then on float32 convolutions are exact in the whole
    process (no TensorFloat-32).

    Args:
        directory: A working directory written by kseg.train.
        weights: A .weights.h5, .pth or .npz file to load instead of the directory's best weights.
        tta: Whether to use test-time augmentation, the average over scales 0.5 to 1.75 and over mirrored images.

    Returns:
        A `Segmenter`. Called with an image (a path, a PIL image, or uint8 RGB of shape (H, W, 3)), it returns the
        class ids, uint8 of shape (H, W). Its method `scores` returns the class probabilities, float32 of shape
        (H, W, C), and `overlay` the image blended with the class colors, uint8 of shape (H, W, 3).

    Raises:
        WorkdirError: `directory` is not a working directory, or contains no validated weights yet.
        WeightsError: The weights cannot be read, or do not fit the model.
        ConfigError: KSEG_LOG has an unknown value.

    Example:
        >>> import kseg
        >>> segment = kseg.load(workdir)
        >>> ids = segment(image)
        >>> ids.dtype, ids.ndim
        (dtype('uint8'), 2)
    """
    from kseg.system import quiet_start

    quiet_start.import_tensorflow(optional_packages=True)
    from kseg.inference import segmenter

    return segmenter.load_segmenter(directory, weights, tta)
