"""Pairs of picture and label for measuring, written as an extracted Cityscapes tree."""

from pathlib import Path

import numpy as np
from PIL import Image

from kseg.datasets.class_names import CITYSCAPES_LABEL_IDS
from kseg.datasets.registry import DATASETS

SIZE = (1024, 2048)
REGIONS = 20
# Turned ones and mirrored ones: a picture's bytes are in no cache because the one before it was the same.
VARIANTS = 8


def draw_pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a uint8 picture (1024, 2048, 3) that compresses as photographs do, and its label of Cityscapes' labelIds.

    Regions with wavy borders, each of a colour of its own, under a texture whose amplitude falls with its frequency:
    as PNG some 2.5 MB.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]].astype(np.float32)
    rows += 60 * texture(random, 1.9)
    columns += 60 * texture(random, 1.9)
    nearest, region = np.full(SIZE, np.inf, np.float32), np.zeros(SIZE, np.uint8)
    for index in range(REGIONS):
        row, column = random.uniform(0, SIZE[0]), random.uniform(0, SIZE[1])
        distance = (rows - row) ** 2 + (columns - column) ** 2
        region[distance < nearest] = index
        nearest = np.minimum(nearest, distance)
    # All 19 classes and one that is void.
    ids = np.array([*random.permutation(CITYSCAPES_LABEL_IDS), 4], np.uint8)
    colours = random.uniform(40, 200, (REGIONS, 3)).astype(np.float32)
    light = 22 * texture(random, 1.35) + 0.4 * random.standard_normal(SIZE, np.float32)
    tint = np.stack([texture(random, 1.5) for _ in range(3)], -1)
    picture = colours[region] + light[..., None] + 5 * tint
    return np.clip(picture, 0, 255).astype(np.uint8), ids[region]


def texture(random: np.random.Generator, power: float) -> np.ndarray:
    """Return float32 noise (1024, 2048) of mean 0 and deviation 1 whose amplitude falls as 1 / frequency^power."""
    vertical, horizontal = np.fft.fftfreq(SIZE[0])[:, None], np.fft.rfftfreq(SIZE[1])[None]
    frequency = np.hypot(vertical, horizontal)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal(SIZE, np.float32)) / frequency ** power
    noise = np.fft.irfft2(spectrum, SIZE).astype(np.float32)
    return noise / noise.std()


def read_pair(image: Path, label: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the pair in two files; raises ValueError where they are no picture and labelIds of one size."""
    picture, ids = np.array(Image.open(image).convert("RGB")), np.array(Image.open(label))
    if ids.dtype != np.uint8 or ids.shape != picture.shape[:2]:
        raise ValueError(f"{label} is {ids.dtype} {ids.shape}, its image {picture.shape[:2]}: no 8-bit ids")
    return picture, ids


def write_tree(directory: Path, image: np.ndarray, label: np.ndarray) -> tuple[int, int]:
    """Write variants of a pair as the split train of an extracted tree; return the mean bytes of a picture and a label.

    Labels are there twice: labelIds, and the labelTrainIds that MMSegmentation reads without mapping them.
    """
    table = np.array(DATASETS["cityscapes"].label_table, np.uint8)
    pictures, labels = (directory / part / "train" / "city" for part in ("leftImg8bit", "gtFine"))
    pictures.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in range(VARIANTS):
        name = f"city_{number:06d}_000019"
        turned, ids = (np.roll(values[:, ::-1] if number % 2 else values, number * label.shape[1] // VARIANTS, 1)
                       for values in (image, label))
        Image.fromarray(turned).save(pictures / f"{name}_leftImg8bit.png")
        Image.fromarray(ids).save(labels / f"{name}_gtFine_labelIds.png")
        Image.fromarray(table[ids]).save(labels / f"{name}_gtFine_labelTrainIds.png")
    return tuple(sum(path.stat().st_size for path in paths) // VARIANTS for paths in (
        pictures.glob("*.png"), labels.glob("*_labelIds.png")))
