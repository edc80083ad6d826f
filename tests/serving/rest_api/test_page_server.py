"""Test the page on the real server: a browser sends a picture over REST and shows its class ids."""

from dataclasses import replace

import numpy as np

from kseg.images import drawing, image_files
from tests.helpers import browser, small_servables
from tests.helpers.page_actions import draw, error_text, overlay, text, until, upload
from tests.helpers.running_servers import QUICK, running


def test_pictures_new_versions_and_errors_on_the_page(open_page, tmp_path):
    base = tmp_path / "models"
    base.mkdir()
    small_servables.segmentation(base, 1)
    with running(replace(QUICK, rest_api_port=-1, model_name="small", model_base_path=str(base))) as server:
        driver = open_page(f"http://127.0.0.1:{server.rest_port}/", 1280, 900)
        path = draw(tmp_path / "noise.png", (53, 31))
        upload(driver, path)
        ids = small_servables.ids_of(image_files.read_image(path))
        assert np.array_equal(overlay(driver)[..., :3], drawing.colorize(ids, small_servables.PALETTE))
        assert set(text(driver, "#legend").split("\n")[::2]) == set(small_servables.CLASSES)

        small_servables.segmentation(base, 2, shift=1)
        until(
            driver,
            "(fetch('page/models').then(r => r.text()).then(t => { window.models = t; }),"
            "(window.models ?? '').includes('\"version\":\"2\"'))",
        )
        upload(driver, path)
        assert text(driver, "#status").endswith("by small, version 2.")
        ids = small_servables.ids_of(image_files.read_image(path), shift=1)
        assert np.array_equal(overlay(driver)[..., :3], drawing.colorize(ids, small_servables.PALETTE))

        # The browser can draw this picture, but the model refuses it.
        side = int(small_servables.MAX_PIXELS**0.5) + 1
        upload(driver, draw(tmp_path / "large.jpg", (side, side)), error=True)
        title, text_shown = error_text(driver)
        assert title == "The picture is too large"
        assert f"{side} × {side} pixels" in text_shown and "1,000,000 pixels" in text_shown
        assert [message for message in browser.errors(driver) if "400" not in message] == []
