"""The images of validations: their pixels, how many are kept, and what a failed write does."""

import numpy as np
from PIL import Image

from kseg.training import validation_images

CLASSES, PALETTE = ("sky", "ground"), ((250, 0, 0), (0, 0, 250))


def row(height, width):
    """Return an image, a label of the first class and a prediction of the second one."""
    return [np.full((height, width, 3), color, np.uint8) for color in ((0, 250, 0), *PALETTE)]


def test_the_newest_files_are_kept_and_hold_all_three_images(tmp_path, monkeypatch):
    monkeypatch.setattr(validation_images, "KEPT", 2)
    for step in (5, 10, 15):
        validation_images.write_images(tmp_path, step, [row(40, 60), row(2000, 3000)], CLASSES, PALETTE)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["step-00000010.png", "step-00000015.png"]
    pixels = np.asarray(Image.open(tmp_path / "images" / names[1]))
    counts = [np.count_nonzero((pixels == color).all(-1)) for color in ((0, 250, 0), *PALETTE)]
    # The larger image was reduced to 341 x 512; the legend adds a swatch to each class.
    assert counts[0] == 40 * 60 + 341 * 512 and all(0 < count - counts[0] < 1000 for count in counts[1:])


def test_a_failed_write_is_reported_and_nothing_else(tmp_path):
    (tmp_path / "images").write_text("not a directory")
    lines = []
    validation_images.write_images(tmp_path, 5, [row(4, 6)], CLASSES, PALETTE, lines.append)
    assert (
        len(lines) == 1 and "step-00000005.png" in lines[0] and [path.name for path in tmp_path.iterdir()] == ["images"]
    )
