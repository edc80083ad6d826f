"""Palettes of labels are compared with each other and with the ids."""

import io

import numpy as np
from PIL import Image

from kseg.datasets.palettes import PaletteComparison, used_colors
from kseg.datasets.registry import label_table
from kseg.images import png

TABLE = label_table({0: 0, 1: 1, 2: 2, 255: 255})


def encoded(indices, colors, **options):
    image = Image.fromarray(np.array(indices, np.uint8)).convert("P")
    image.putdata(np.array(indices).ravel().tolist())
    image.putpalette([value for color in colors for value in color])
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()


def gray(*values):
    return [(value,) * 3 for value in values]


def fault_of(*palettes):
    comparison = PaletteComparison(TABLE, 3)
    for number, colors in enumerate(palettes):
        comparison.add(f"label {number}", {index: bytes(color) for index, color in colors.items()})
    return comparison.fault()


def test_colors_of_the_indices_that_occur():
    counts = np.bincount([0, 2, 2], minlength=256)
    data = encoded([[0, 2, 2]], [(1, 2, 3), (4, 5, 6), (7, 8, 9)])
    assert used_colors(data, counts) == {0: b"\x01\x02\x03", 2: b"\x07\x08\x09"}
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 2, 2]], np.uint8)).save(file, format="PNG")
    assert used_colors(file.getvalue(), counts) == {} and png.palette(data[:40]) == b""


def test_a_class_with_two_colors_is_a_fault():
    red, green = (255, 0, 0), (0, 255, 0)
    fault = fault_of({0: red, 1: green}, {1: green}, {0: green, 1: red})
    assert "index 0 is #ff0000 in label 0 and #00ff00 in label 2" in fault
    assert not fault_of({0: red, 1: green}, {1: green})
    # The border's color has no meaning.
    assert not fault_of({0: red, 255: green}, {0: red, 255: red})


def test_reordered_grays_are_a_fault():
    def indexed(*values):
        return dict(enumerate(gray(*values)))

    assert "0 is gray 1, 1 is gray 2" in fault_of(indexed(1, 2, 0))
    assert "2 is gray 255" in fault_of(indexed(0, 1, 255)) and "0 is gray 2" in fault_of(indexed(2, 1))
    # The ids themselves, multiples for the eye, values that are no ids, and colors.
    for colors in (indexed(0, 1, 2), indexed(0, 2), indexed(0, 100, 200), {0: (0, 0, 0), 1: (9, 0, 0)}, {}):
        assert not fault_of(colors), colors
