"""Write small `folder` datasets."""

from pathlib import Path

import numpy as np
from PIL import Image

from kseg.config import Config
from kseg.config.sections import Augment, Data, Train


def write(path: Path, array: np.ndarray, **options) -> Path:
    """Write an array as an image file, and create its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def example(directory: Path, split: str, name: str, label: np.ndarray, image: np.ndarray | None = None) -> None:
    """Write an image and its label; the default image is filled with the number in the name's last two digits."""
    label = np.asarray(label, np.uint8)
    if image is None:
        image = np.full((*label.shape, 3), int(name[-2:]), np.uint8)
    write(directory / split / "images" / f"{name}.png", image)
    write(directory / split / "labels" / f"{name}.png", label)


def folder(directory: Path, labels: dict[str, list], classes: str = "sky\nground\nhouse\n") -> Data:
    """Write a dataset of {split: [label, ...]} with examples e00, e01, ..., and return its config."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "classes.txt").write_text(classes, encoding="utf-8")
    for split, arrays in labels.items():
        for index, label in enumerate(arrays):
            example(directory, split, f"e{index:02d}", label)
    return Data(name="folder", directory=str(directory))


def config(data: Data, crop: tuple[int, int] = (8, 8), batch: int = 2, steps: int = 100, seed: int = 0) -> Config:
    """Return a config of a dataset whose augmentation changes neither size nor colors."""
    plain = Augment(scale_range=(1.0, 1.0), crop=crop, cat_max_ratio=1.0, flip=0.0, photometric=False)
    return Config(data=data, augment=plain, train=Train(global_batch=batch, steps=steps, seed=seed))
