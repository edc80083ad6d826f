"""Draw `shapes`, a synthetic dataset of textured figures.

An image is a pure function of its split and index. Hue and texture correlate with a figure's class, but only the
outline determines it.
"""

import contextlib
import io
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kseg.config.sections import IGNORED
from kseg.datasets.tfrecord import Records, record_offsets
from kseg.errors import DataError, unknown

CLASSES = ("background", "disc", "square", "triangle", "star", "ring", "cross")
PALETTE = ((54, 60, 78), (228, 87, 86), (238, 187, 77), (106, 186, 96), (72, 196, 190), (84, 120, 216), (196, 110, 200))
HEIGHT, WIDTH = 128, 256
COUNTS = {"train": 64, "val": 16}

FIGURES_PER_IMAGE = (7, 11)
RADIUS = (8.0, 45.0)
# No outline is farther from its center, in radii, than the corners of a triangle.
REACH = 1.16
# Correlation of color and texture with the class: loose enough that a network has to use outlines as well, and close
# enough that a small network makes progress in a few hundred steps.
HUE_SPREAD = 0.035
FREE_HUE = 0.03
FREE_TEXTURE = 0.2

Grid = np.ndarray


def _disc(x: Grid, y: Grid) -> Grid:
    return np.hypot(x, y) - 1.0


def _square(x: Grid, y: Grid) -> Grid:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def _triangle(x: Grid, y: Grid) -> Grid:
    slope = np.sqrt(3.0) / 2.0
    return np.maximum(np.maximum(slope * x - 0.5 * y, -slope * x - 0.5 * y), y) - 0.58


def _star(x: Grid, y: Grid) -> Grid:
    """Return the distance to a five-pointed star.

    The plane is folded onto a tenth of the star, whose outline is one line from tip to notch.
    """
    sector, notch = np.pi / 5.0, 0.5
    angle = np.abs((np.arctan2(y, x) + sector) % (2.0 * sector) - sector)
    radius = np.hypot(x, y)
    along = np.array([notch * np.cos(sector) - 1.0, notch * np.sin(sector)])
    along /= np.hypot(*along)
    return (radius * np.cos(angle) - 1.0) * along[1] - radius * np.sin(angle) * along[0]


def _ring(x: Grid, y: Grid) -> Grid:
    return np.abs(np.hypot(x, y) - 0.74) - 0.26


def _cross(x: Grid, y: Grid) -> Grid:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 1.0, short - 0.34)


# One function per class of CLASSES[1:]: the signed distance to the outline in units of the figure's radius, negative
# inside.
OUTLINES = (_disc, _square, _triangle, _star, _ring, _cross)


def _stripes(x: Grid, y: Grid, period: float, generator: np.random.Generator) -> Grid:
    return 0.5 + 0.5 * np.clip(2.0 * np.sin(2.0 * np.pi * (x / period + generator.random())), -1.0, 1.0)


def _checks(x: Grid, y: Grid, period: float, generator: np.random.Generator) -> Grid:
    wave = np.sin(2.0 * np.pi * (x / period + generator.random())) * np.sin(2.0 * np.pi * (y / period + 0.25))
    return 0.5 + 0.5 * np.clip(4.0 * wave, -1.0, 1.0)


def _dots(x: Grid, y: Grid, period: float, generator: np.random.Generator) -> Grid:
    size = generator.uniform(0.25, 0.38)
    distance = np.hypot((x / period) % 1.0 - 0.5, (y / period) % 1.0 - 0.5)
    return np.clip((distance - size) * period + 0.5, 0.0, 1.0)


def _gradient(x: Grid, y: Grid, period: float, generator: np.random.Generator) -> Grid:
    return 0.5 + 0.5 * np.clip(x / (2.5 * period) + generator.uniform(-0.3, 0.3), -1.0, 1.0)


def _ripples(x: Grid, y: Grid, period: float, generator: np.random.Generator) -> Grid:
    return 0.5 + 0.5 * np.sin(2.0 * np.pi * (np.hypot(x, y) / period + generator.random()))


def _clouds(x: Grid, y: Grid, period: float, generator: np.random.Generator) -> Grid:
    """Return smooth noise: a sum of waves of random direction and length."""
    total = np.zeros_like(x)
    for _ in range(10):
        heading, phase = generator.uniform(0.0, 2.0 * np.pi, 2)
        frequency = 2.0 * np.pi / (period * generator.uniform(0.6, 2.0))
        total += np.cos(frequency * (x * np.cos(heading) + y * np.sin(heading)) + phase)
    return np.clip(0.5 + total / 9.0, 0.0, 1.0)


# One texture per class of CLASSES[1:]. With probability FREE_TEXTURE, a figure takes the texture of a random class.
# Each function takes x, y and a period in pixels and returns values in 0..1.
TEXTURES: tuple[Callable[[Grid, Grid, float, np.random.Generator], Grid], ...] = (
    _ripples,
    _checks,
    _stripes,
    _gradient,
    _dots,
    _clouds,
)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return the RGB color in 0..1 of an HSV color in 0..1.

    The hue wraps around.
    """
    around = np.abs((hue + np.array([0.0, 2.0, 1.0]) / 3.0) % 1.0 * 6.0 - 3.0) - 1.0
    return value * (1.0 - saturation * (1.0 - np.clip(around, 0.0, 1.0)))


def _rotate(x: Grid, y: Grid, angle: float) -> tuple[Grid, Grid]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _ground(x: Grid, y: Grid, generator: np.random.Generator) -> Grid:
    """Return a background (H, W, 3) of two dull colors under a faint texture."""
    hue = generator.random()
    dark, light = sorted(generator.uniform(0.2, 0.85, 2))
    first = _rgb(hue, generator.uniform(0.05, 0.3), dark)
    second = _rgb(hue + generator.uniform(-0.2, 0.2), generator.uniform(0.05, 0.3), light)
    mixture = _clouds(x, y, generator.uniform(40.0, 120.0), generator)[..., None]
    texture = TEXTURES[generator.integers(len(TEXTURES))]
    fine = texture(*_rotate(x, y, generator.uniform(0.0, np.pi)), generator.uniform(8.0, 28.0), generator)[..., None]
    return first + (second - first) * mixture + generator.uniform(0.03, 0.14) * (fine - 0.5)


def _figure_colors(x: Grid, y: Grid, kind: int, generator: np.random.Generator) -> Grid:
    """Return the colors (H, W, 3) of a figure at all pixels.

    `kind` is its class, 1 or more.
    """
    free = generator.random() < FREE_HUE
    hue = generator.random() if free else (kind - 1) / len(OUTLINES) + generator.normal(0.0, HUE_SPREAD)
    first = _rgb(hue, generator.uniform(0.6, 0.95), generator.uniform(0.65, 1.0))
    second = _rgb(hue + generator.normal(0.0, 0.02), generator.uniform(0.45, 0.9), generator.uniform(0.3, 0.6))
    chosen = generator.integers(len(TEXTURES)) if generator.random() < FREE_TEXTURE else kind - 1
    weave = TEXTURES[chosen](*_rotate(x, y, generator.uniform(0.0, np.pi)), generator.uniform(5.0, 12.0), generator)
    return first + (second - first) * weave[..., None]


def _choose_center(
    figures: list[tuple[float, float, float]], radius: float, generator: np.random.Generator
) -> tuple[float, float]:
    """Return the most isolated of three random centers (row, column).

    Figures may overlap but seldom hide each other. `figures` are the (row, column, radius) drawn so far.
    """
    candidates = generator.uniform((4.0, 4.0), (HEIGHT - 4.0, WIDTH - 4.0), (3, 2))
    distances = [
        min((np.hypot(row - r, column - c) - radius - other for r, c, other in figures), default=0.0)
        for row, column in candidates
    ]
    row, column = candidates[int(np.argmax(distances))]
    return float(row), float(column)


def draw_example(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the example of a split and index, always with the same pixels.

    Returns:
        The image, uint8 (128, 256, 3), and its label, uint8 (128, 256), which is 255 along every visible outline.
    """
    generator = np.random.Generator(np.random.PCG64([list(COUNTS).index(split), index]))
    rows, columns = np.mgrid[0.5:HEIGHT, 0.5:WIDTH]
    image = _ground(columns, rows, generator)
    owners = np.zeros((HEIGHT, WIDTH), np.int64)
    count = generator.integers(FIGURES_PER_IMAGE[0], FIGURES_PER_IMAGE[1], endpoint=True)
    # Shuffled rounds over all classes keep every class frequent, in each image and in the set.
    kinds = np.concatenate([generator.permutation(len(OUTLINES)) + 1 for _ in range(2)])[:count]
    figures = []
    for owner, kind in enumerate(kinds, 1):
        radius = float(np.exp(generator.uniform(*np.log(RADIUS))))
        row, column = _choose_center(figures, radius, generator)
        figures.append((row, column, radius))
        # A figure is drawn only within a box that holds it at any angle. Pixels up to half a pixel outside the outline
        # are mixed; at the sharp tips of a star that is up to 1.2 pixels.
        reach = REACH * radius + 2.0
        box = tuple(slice(max(int(center - reach), 0), int(center + reach) + 1) for center in (row, column))
        x, y = _rotate(columns[box] - column, rows[box] - row, generator.uniform(0.0, 2.0 * np.pi))
        distance = radius * OUTLINES[kind - 1](x / radius, y / radius)
        cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        image[box] += cover * (_figure_colors(x, y, kind, generator) - image[box])
        owners[box][distance < 0.0] = owner
    # The light falls off across the image, and the sensor adds noise.
    heading = generator.uniform(0.0, 2.0 * np.pi)
    slope = (columns / WIDTH - 0.5) * np.cos(heading) + (rows / HEIGHT - 0.5) * np.sin(heading)
    light = generator.uniform(0.7, 1.15) * (1.0 + generator.uniform(0.0, 0.4) * slope)
    image = image * light[..., None] + generator.normal(0.0, 0.02, image.shape)
    labels = np.append(0, kinds)[owners].astype(np.uint8)
    labels[_outlines(owners)] = IGNORED
    return np.rint(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8), labels


def _outlines(owners: np.ndarray) -> np.ndarray:
    """Return a bool mask (H, W) of the pixels next to another owner.

    The resulting bands are 2 pixels wide.
    """
    band = np.zeros(owners.shape, bool)
    across, down = owners[:, 1:] != owners[:, :-1], owners[1:] != owners[:-1]
    band[:, 1:] |= across
    band[:, :-1] |= across
    band[1:] |= down
    band[:-1] |= down
    return band


def _png(pixels: np.ndarray) -> bytes:
    """Return pixels encoded as PNG.

    Encoding here spares the builder a TensorFlow session that would claim a GPU.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Draws 64 training and 16 validation images of 128x256 pixels and seven classes."""

    # A change of the stored contents requires a new version, so that sets of the old version are not found.
    VERSION = tfds.core.Version("1.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Textured figures on textured ground, with labels for semantic segmentation.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="png"),
                    "segmentation_mask": tfds.features.Image(shape=(HEIGHT, WIDTH, 1), encoding_format="png"),
                    "name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "segmentation_mask"),
            # Keeps the order, so that example i of the files is drawn with index i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, bytes | str]]]:
        for index in range(COUNTS[split]):
            image, labels = draw_example(split, index)
            yield index, {"image": _png(image), "segmentation_mask": _png(labels), "name": f"{split}/{index:05d}"}


def prepare_shapes(directory: Path, split: str) -> Records:
    """Return the locations of a split's examples, drawn on first use.

    A record holds "image", a PNG of (128, 256, 3), and "segmentation_mask", a PNG of (128, 256).

    Raises:
        DataError: The split is unknown, `directory` cannot be written, or it holds a damaged set.
    """
    if split not in COUNTS:
        raise DataError(unknown("split of shapes", split, COUNTS))
    try:
        builder = Shapes(data_dir=directory)
        if not Path(builder.data_dir).is_dir():
            print(f"drawing the synthetic set shapes into {directory}", flush=True)
            _build(builder)
    except OSError as error:
        raise DataError(f"cannot draw the dataset shapes into {directory}: {error.strerror or error}") from error
    files = tuple(sorted(map(str, Path(builder.data_dir).glob(f"*-{split}.tfrecord-*"))))
    locations = [(shard, offset) for shard, file in enumerate(files) for offset in record_offsets(file)]
    if len(locations) != COUNTS[split]:
        raise DataError(
            f"the dataset in {builder.data_dir} is damaged; delete that directory, and the next use draws "
            f"it again: {len(locations)} of {COUNTS[split]} examples of {split}"
        )
    names = tuple(f"shapes/{split}/{index:05d}" for index in range(len(locations)))
    return Records(files, tuple(shard for shard, _ in locations), tuple(offset for _, offset in locations), names)


def _build(builder: Shapes) -> None:
    """Draw the set into a temporary directory, which the builder renames once everything is written."""
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # The builder draws random names, which must not influence later draws such as a model's initial weights.
    state = random.getstate()
    try:
        # The builder announces a download even without one. It also requires a download directory, which it leaves
        # behind even if empty.
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(download_dir=downloads, file_format="tfrecord", download_config=config)
    except OSError:
        # If two processes draw at the same time, the second cannot rename its copy, and the first has written the same
        # images.
        if not Path(builder.data_dir).is_dir():
            raise
    finally:
        random.setstate(state)
