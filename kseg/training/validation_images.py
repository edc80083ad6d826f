"""Write the images of a validation as a PNG file: image, ground truth and prediction, with a legend of the classes."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kseg.images import drawing
from kseg.system.atomic_files import write_bytes

# In the working directory.
DIRECTORY = "images"
# The newest files are kept; an image has about 1 MB.
KEPT = 20
# Images are reduced to fit a square of this side, so that a file stays small whatever the data.
SIDE = 512
TITLES = ("image", "ground truth", "prediction")


def write_images(
    workdir: Path,
    step: int,
    rows: Sequence[Sequence[np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    report: Callable[[str], None] = print,
) -> None:
    """Write WORKDIR/images/step-N.png and remove all but the newest KEPT files.

    A failure is reported and raises nothing, because training does not need the file.

    Args:
        workdir: The working directory.
        step: Number of steps taken.
        rows: [image, ground truth, prediction] of each example, uint8 (H, W, 3).
        classes: Names of the classes.
        palette: RGB colors of the classes.
        report: Receives the failure.
    """
    directory = workdir / DIRECTORY
    path = directory / f"step-{step:08d}.png"
    content = io.BytesIO()
    sheet(rows, classes, palette).save(content, format="PNG")
    try:
        directory.mkdir(exist_ok=True)
        write_bytes(path, content.getbuffer(), report)
        for old in sorted(directory.glob("step-*.png"))[:-KEPT]:
            old.unlink()
    except OSError as error:
        report(f"warning: cannot write {path}: {error.strerror or error}; training goes on without it")


def sheet(
    rows: Sequence[Sequence[np.ndarray]], classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """Draw the rows as a grid, with the legend at its right."""
    # The colors of labels are not blended, so that each stays that of a class.
    filters = (Image.Resampling.BOX, Image.Resampling.NEAREST, Image.Resampling.NEAREST)
    small = [[_reduced(cell, kind) for cell, kind in zip(row, filters, strict=True)] for row in rows]
    images, legend = drawing.grid(small, TITLES), drawing.legend(classes, palette)
    both = Image.new("RGB", (images.width + legend.width, max(images.height, legend.height)), "white")
    both.paste(images, (0, 0))
    both.paste(legend, (images.width, 0))
    return both


def _reduced(cell: np.ndarray, kind: Image.Resampling) -> np.ndarray:
    image = Image.fromarray(cell)
    factor = min(1, SIDE / max(image.size))
    size = tuple(max(1, round(side * factor)) for side in image.size)
    return cell if size == image.size else np.asarray(image.resize(size, kind))
