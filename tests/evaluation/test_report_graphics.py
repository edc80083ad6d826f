"""The charts and images of the report, read back: lengths, cells, numbers and colors by hand."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from kseg.evaluation import report_graphics

NAN = float("nan")
PALETTE = ((10, 20, 30), (200, 0, 0))


def decoded(embedded):
    head, _, data = embedded["uri"].partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{image.format.lower()}"
    assert image.size == (embedded["width"], embedded["height"])
    return image


def test_lengths_of_bars():
    (chart,) = report_graphics.bar_charts(["half", "whole", "undefined"], [0.5, 1.0, NAN], NAN)
    bars = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--accent\)"', chart)
    spans = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", bar)] for bar in bars]
    half, whole, undefined = (max(span) - min(span) for span in spans)
    assert half == pytest.approx(whole / 2, abs=1e-3) and whole > 200 and undefined == 0


def test_heat_map_by_hand():
    fractions = np.array([[0.75, 0.25, 0.0], [0.004, 0.996, 0.0], [NAN, NAN, NAN]])
    chart = report_graphics.heat_map(fractions, ["a", "b", "c"])
    cells = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,\s*([^\"]+)", chart).group(1)))))
    assert cells.shape == (3, 3, 4)
    assert cells[0, 0].tolist() == [*report_graphics.CORRECT, round(0.75 * 0.75 * 255)]
    assert cells[0, 1].tolist() == [*report_graphics.WRONG, round(0.9 * 0.5 * 255)]
    assert cells[0, 2, 3] == 0 and cells[2, :, 3].tolist() == [0, 0, 0]
    # Fractions below 1% have no number.
    assert re.findall(r">(\d+)</text>", chart) == ["75", "25", "100"]


def test_error_map_by_hand():
    image = np.full((2, 3, 3), 200, np.uint8)
    image[0, 0] = 0
    image[1, 2] = 255
    label = np.array([[0, 1, 255], [1, 255, 0]], np.uint8)
    prediction = np.array([[0, 0, 0], [0, 255, 0]], np.uint8)
    red, ignored = list(report_graphics.ERROR_COLOR), [report_graphics.IGNORED_GRAY] * 3
    assert report_graphics.error_map(image, label, prediction).tolist() == [
        [[120] * 3, red, ignored],
        [red, ignored, [255] * 3],
    ]


@pytest.mark.parametrize(
    "palette, expected",
    [(PALETTE, (0, 0, 0)), (((0, 0, 0),), (255, 255, 255)), (((0, 0, 0), (255, 255, 255)), (128, 128, 128))],
)
def test_no_class_has_the_color_of_ignored_pixels(palette, expected):
    assert report_graphics.ignored_color(palette) == expected


def test_255_classes_and_the_ignored_label_have_different_colors():
    palette = [(index, 255 - index, 7) for index in range(255)]
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = decoded(report_graphics.png_label_map(ids, palette))
    assert image.format == "PNG" and image.mode == "P"
    assert np.asarray(image.convert("RGB")).reshape(256, 3).tolist() == [*map(list, palette), [0, 0, 0]]


def test_a_reduced_label_map_has_no_new_classes():
    # The mean of class 0 and class 2 would be class 1, which does not occur.
    ids = np.random.default_rng(0).choice([0, 2], (700, 1400)).astype(np.uint8)
    image = decoded(report_graphics.png_label_map(ids, (*PALETTE, (0, 200, 0))))
    assert {color for _, color in image.convert("RGB").getcolors()} == {PALETTE[0], (0, 200, 0)}


@pytest.mark.parametrize(
    "size, expected",
    [((320, 20), (320, 20)), ((2048, 1024), (480, 240)), ((600, 1200), (240, 480)), ((1, 5000), (1, 480))],
)
def test_images_are_reduced_to_fit_and_never_enlarged(size, expected):
    width, height = size
    assert decoded(report_graphics.jpeg_image(np.zeros((height, width, 3), np.uint8))).size == expected
    assert decoded(report_graphics.png_label_map(np.zeros((height, width), np.uint8), PALETTE)).size == expected
