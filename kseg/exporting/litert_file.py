"""Write a class map function as a LiteRT file (TensorFlow Lite), and run one.

The metadata are a ZIP archive at the end of the file, as TensorFlow Lite's associated files are: readers of the model
ignore what follows it, and readers of archives what precedes it.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from kseg.exporting.class_maps import ClassMaps
from kseg.exporting.formats import missing_library

FILE = "model.tflite"


def write(maps: ClassMaps, metadata: Mapping[str, str], directory: Path) -> None:
    """Write FILE in a directory, with metadata as associated files."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([maps.function.get_concrete_function()], maps)
    (directory / FILE).write_bytes(converter.convert())
    with zipfile.ZipFile(directory / FILE, "a") as archive:
        for name, text in metadata.items():
            archive.writestr(name, text)


def load(directory: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from images to class maps, uint8 (N, H, W, 3) to (N, H, W); raises UserError."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise missing_library("litert", "ai-edge-litert") from None
    runner = Interpreter(str(directory / FILE)).get_signature_runner()
    # The file takes one image at a time.
    return lambda images: np.concatenate([runner(image=image[None])["class_map"] for image in images])
