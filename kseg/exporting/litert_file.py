"""Write a class map function as a LiteRT file (TensorFlow Lite), and run one.

The metadata are a ZIP archive at the end of the file, as TensorFlow Lite's associated files are: readers of the model
ignore what follows it, and readers of archives what precedes it.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kseg.exporting.class_maps import ClassMaps

FILE = "model.tflite"


def write(maps: "ClassMaps", metadata: Mapping[str, str], directory: Path) -> None:
    """Write FILE in a directory, with metadata as associated files."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([maps.function.get_concrete_function()], maps)
    (directory / FILE).write_bytes(converter.convert())
    with zipfile.ZipFile(directory / FILE, "a") as archive:
        for name, text in metadata.items():
            archive.writestr(name, text)


def load(directory: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs FILE of a directory with a number of threads.

    It maps images, uint8 (N, H, W, 3), to class maps, uint8 (N, H, W).
    """
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(directory / FILE), num_threads=threads).get_signature_runner()
    # The file takes one image at a time.
    return lambda images: np.concatenate([runner(image=image[None])["class_map"] for image in images])
