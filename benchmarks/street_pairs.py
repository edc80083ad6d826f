"""Draw pairs of image and label for benchmarks, and write them as an extracted Cityscapes tree."""

from pathlib import Path

import numpy as np
from PIL import Image

from kseg.datasets.class_names import CITYSCAPES_LABEL_IDS
from kseg.datasets.registry import DATASETS

SIZE = (1024, 2048)
REGIONS = 20
# Rotated and mirrored copies of a pair; equal files would be served from caches.
VARIANTS = 8


def draw_pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw a uint8 image (1024, 2048, 3) that compresses like a photograph, and its label (1024, 2048).

    The image has colored regions with wavy borders and a texture whose amplitude falls with its frequency; its PNG file
    has about 2.5 MB. The label has Cityscapes' labelIds.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    rows += 60 * texture(random, 1.9)
    columns += 60 * texture(random, 1.9)
    nearest, region = np.full(SIZE, np.inf, np.float32), np.zeros(SIZE, np.uint8)
    for index in range(REGIONS):
        row, column = random.uniform(0, SIZE[0]), random.uniform(0, SIZE[1])
        distance = (rows - row) ** 2 + (columns - column) ** 2
        region[distance < nearest] = index
        nearest = np.minimum(nearest, distance)
    # The regions have all 19 classes and one void id.
    ids = np.array([*random.permutation(CITYSCAPES_LABEL_IDS), 4], np.uint8)
    colors = random.uniform(40, 200, (REGIONS, 3)).astype(np.float32)
    light = 22 * texture(random, 1.35) + 0.4 * random.standard_normal(SIZE, np.float32)
    tint = np.stack([texture(random, 1.5) for _ in range(3)], -1)
    image = colors[region] + light[..., None] + 5 * tint
    return np.clip(image, 0, 255).astype(np.uint8), ids[region]


def texture(random: np.random.Generator, power: float) -> np.ndarray:
    """Return float32 noise (1024, 2048) with mean 0, deviation 1 and an amplitude of 1 / frequency^power."""
    vertical, horizontal = np.fft.fftfreq(SIZE[0])[:, None], np.fft.rfftfreq(SIZE[1])[None]
    frequency = np.hypot(vertical, horizontal)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal(SIZE, np.float32)) / frequency**power
    noise = np.fft.irfft2(spectrum, SIZE).astype(np.float32)
    return noise / noise.std()


def read_pair(image: Path, label: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a pair from two files; raises ValueError unless they are an image and 8-bit labelIds of its size."""
    pixels, ids = np.array(Image.open(image).convert("RGB")), np.array(Image.open(label))
    if ids.dtype != np.uint8 or ids.shape != pixels.shape[:2]:
        raise ValueError(
            f"{label} is {ids.dtype} {ids.shape} instead of 8-bit ids of the image's size {pixels.shape[:2]}"
        )
    return pixels, ids


def write_tree(directory: Path, image: np.ndarray, label: np.ndarray) -> tuple[int, int]:
    """Write variants of a pair as the train split of an extracted tree.

    Labels are written as labelIds and as labelTrainIds, which MMSegmentation reads without mapping them.

    Returns:
        The mean bytes of the image files and of the label files.
    """
    table = np.array(DATASETS["cityscapes"].label_table, np.uint8)
    images, labels = (directory / part / "train" / "city" for part in ("leftImg8bit", "gtFine"))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in range(VARIANTS):
        name = f"city_{number:06d}_000019"
        pixels, ids = (
            np.roll(values[:, ::-1] if number % 2 else values, number * label.shape[1] // VARIANTS, 1)
            for values in (image, label)
        )
        Image.fromarray(pixels).save(images / f"{name}_leftImg8bit.png")
        Image.fromarray(ids).save(labels / f"{name}_gtFine_labelIds.png")
        Image.fromarray(table[ids]).save(labels / f"{name}_gtFine_labelTrainIds.png")
    return tuple(
        sum(path.stat().st_size for path in paths) // VARIANTS
        for paths in (images.glob("*.png"), labels.glob("*_labelIds.png"))
    )
