"""kseg.evaluation.report_graphics: errors and colours by hand, sizes, and that what is embedded can be decoded again."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from kseg.evaluation import report_graphics

PALETTE = ((10, 20, 30), (200, 0, 0))


def decoded(embedded):
    head, _, data = embedded["uri"].partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{picture.format.lower()}"
    assert picture.size == (embedded["width"], embedded["height"])
    return picture


def test_errors_by_hand():
    image = np.full((2, 3, 3), 200, np.uint8)
    image[0, 0] = 0
    image[1, 2] = 255
    truth = np.array([[0, 1, 255], [1, 255, 0]], np.uint8)
    prediction = np.array([[0, 0, 0], [0, 255, 0]], np.uint8)
    red, void = [224, 16, 32], [72, 72, 72]
    assert report_graphics.errors(image, truth, prediction).tolist() == [
        [[120] * 3, red, void], [red, void, [255] * 3]]


def test_grey_of_a_right_pixel_is_its_luminance_made_pale():
    image = np.array([[[0, 255, 0], [255, 0, 0]]], np.uint8)
    nothing = np.zeros((1, 2), np.uint8)
    # ITU-R 601: green weighs 0.587, red 0.299; 135 levels remain above 120.
    assert report_graphics.errors(image, nothing, nothing)[0, :, 0].tolist() == [
        round(120 + 150 * 135 / 255), round(120 + 76 * 135 / 255)]


@pytest.mark.parametrize("palette, expected", [
    (PALETTE, (0, 0, 0)), (((0, 0, 0),), (255, 255, 255)), (((0, 0, 0), (255, 255, 255)), (128, 128, 128)),
    (((0, 0, 0), (255, 255, 255), (128, 128, 128)), (129, 129, 129))])
def test_what_is_not_labelled_has_a_colour_of_its_own(palette, expected):
    assert report_graphics.void_colour(palette) == expected


def test_a_map_has_the_colours_of_its_classes():
    ids = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    picture = decoded(report_graphics.label_map(ids, PALETTE))
    assert picture.format == "PNG" and picture.mode == "P"
    first, second, void = [10, 20, 30], [200, 0, 0], [0, 0, 0]
    assert np.asarray(picture.convert("RGB")).tolist() == [[first, second, void], [second, second, first]]


def test_255_classes_each_keep_their_colour():
    palette = [(index, 255 - index, 7) for index in range(255)]
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = decoded(report_graphics.label_map(ids, palette))
    assert np.asarray(picture.convert("RGB")).reshape(256, 3).tolist() == [list(one) for one in palette] + [[0, 0, 0]]


@pytest.mark.parametrize("size, expected", [
    ((480, 360), (480, 360)), ((320, 20), (320, 20)), ((2048, 1024), (480, 240)), ((600, 1200), (240, 480)),
    ((961, 1), (480, 1)), ((1, 5000), (1, 480))])
def test_pictures_fit_the_box_and_are_never_enlarged(size, expected):
    width, height = size
    assert decoded(report_graphics.photograph(np.zeros((height, width, 3), np.uint8))).size == expected
    assert decoded(report_graphics.label_map(np.zeros((height, width), np.uint8), PALETTE)).size == expected


def test_a_reduced_map_mixes_no_colours():
    # The mean of classes 0 and 2 would be class 1, which is not there.
    ids = np.random.default_rng(0).choice([0, 2], (700, 1400)).astype(np.uint8)
    picture = decoded(report_graphics.label_map(ids, (*PALETTE, (0, 200, 0))))
    assert {colour for _, colour in picture.convert("RGB").getcolors()} == {PALETTE[0], (0, 200, 0)}


def test_a_reduced_photograph_averages_and_stays_near_its_pixels():
    image = np.zeros((960, 960, 3), np.uint8)
    image[::2] = 200, 100, 50
    assert np.abs(np.asarray(decoded(report_graphics.photograph(image))).astype(int) - (100, 50, 25)).max() <= 3
