"""Test the server's page in a browser: pictures, overlays, legend, window sizes and color schemes."""

import io
import itertools
import re
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageOps

from kseg.datasets import class_names
from kseg.images import drawing, image_files, picture_reader
from serving.rest_api import page
from tests.helpers import browser
from tests.helpers.page_actions import draw, overlay, text, until, upload
from tests.helpers.page_servers import COLORS, IDS, NAMES, Answers, FakeModels, png_of, serving


def test_a_picture_gets_its_overlay_legend_and_figures(shown, tmp_path, answers):
    path = draw(tmp_path / "street.png", (6, 10))
    upload(shown, path)
    assert answers.requests == [("street", "2", path.read_bytes())]
    assert np.array_equal(overlay(shown), np.dstack([drawing.colorize(IDS, COLORS), np.full(IDS.shape, 255, np.uint8)]))
    assert text(shown, "#legend").split("\n") == ["sky", "50.0 %", "road", "41.7 %", NAMES[2], "8.3 %"]
    assert text(shown, "#absent-title") == "1 not in this picture"
    assert re.fullmatch(r"\d+(\.\d)? ms", text(shown, "#latency"))
    assert re.fullmatch(r"\d+(\.\d kB| B)", text(shown, "#sent")) and "B" in text(shown, "#received")
    assert text(shown, ".under") == "street.png · 6 × 10 3 classes found by street, version 2."
    colors = shown.execute_script(
        "return [...document.querySelectorAll('#legend input')].map(input => getComputedStyle(input).backgroundColor)"
    )
    assert colors == ["rgb(70, 130, 180)", "rgb(128, 64, 128)", "rgb(250, 240, 20)"]
    assert browser.console(shown) == []


def test_page_fetches_only_from_its_server_and_shows_all_samples(shown, port):
    assert browser.image_widths(shown)[-3:] == [256, 256, 256]
    urls = shown.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert {urlsplit(url).netloc for url in urls} == {f"127.0.0.1:{port}"} and len(urls) >= 8
    assert browser.console(shown) == []


def test_sample_is_sent_unchanged(shown, answers):
    sample = page.FILES / "samples/shapes-2.jpg"
    answers.choose = lambda *request: png_of(np.ones((128, 256), np.uint8))
    shown.find_elements("css selector", "#samples button")[1].click()
    until(shown, "document.getElementById('status').textContent.includes('found by')")
    assert answers.requests == [("street", "2", sample.read_bytes())]
    buttons = shown.find_elements("css selector", "#samples button")
    assert [button.get_attribute("aria-pressed") for button in buttons] == ["false", "true", "false"]
    assert text(shown, "#legend").split("\n") == ["road", "100.0 %"]


def test_all_ids_reach_the_screen_unchanged(shown, tmp_path, answers):
    ids = np.random.default_rng(1).permutation(np.arange(256, dtype=np.uint8)).reshape(16, 16)
    answers.choose = lambda *request: png_of(ids)
    shown.execute_script("""const model = document.getElementById("model");
                            model.value = "unnamed"; model.dispatchEvent(new Event("change"));""")
    upload(shown, draw(tmp_path / "a.png", (16, 16)))
    assert answers.requests[0][:2] == ("unnamed", "5")
    expected = np.array([class_names.class_palette(number + 1) for number in range(256)], np.uint8)[ids]
    pixels = overlay(shown)
    assert np.array_equal(pixels[..., :3], expected) and (pixels[..., 3] == 255).all()
    lines = text(shown, "#legend").split("\n")
    assert lines[:2] == ["class 0", "0.4 %"] and lines[-2] == "class 255"
    assert text(shown, "#legend-note") == "This model has no class names."
    assert shown.execute_script("return document.getElementById('absent').hidden")


def test_models_and_versions_can_be_chosen(shown, tmp_path, answers):
    def choices(name):
        return shown.execute_script(
            "return [...document.getElementById(arguments[0]).options]"
            ".map(option => [option.value, option.text, option.disabled])",
            name,
        )

    assert choices("model") == [
        ["street", "street", False],
        ["unnamed", "unnamed", False],
        ["words", "words (not for pictures)", True],
    ]
    assert choices("version") == [["", "newest (2)", False], ["2", "2", False], ["1", "1", False]]
    upload(shown, draw(tmp_path / "a.png"))
    shown.execute_script("""const version = document.getElementById("version");
                            version.value = "1"; version.dispatchEvent(new Event("change"));""")
    until(shown, "document.getElementById('status').textContent.includes('version 1.')")
    assert [request[:2] for request in answers.requests] == [("street", "2"), ("street", "1")]
    # Version 1 names only one class; the other ids appear with their numbers.
    assert text(shown, "#legend").split("\n")[::2] == ["first", "class 1", "class 2"]


def test_versions_show_their_labels(open_page, tmp_path):
    models = FakeModels({"seg": {1: tmp_path, 2: tmp_path}}, version_labels={"stable": 1, "canary": 2})
    with serving(models, Answers(None)) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 390, 800)
        until(driver, "document.getElementById('version').options.length === 3")
        assert text(driver, "#version").split("\n") == ["newest (2)", "2 · canary", "1 · stable"]


def test_one_class_or_all_classes_can_be_hidden(shown, tmp_path):
    upload(shown, draw(tmp_path / "a.png"))
    shown.find_elements("css selector", "#legend input")[1].click()
    assert np.array_equal(overlay(shown)[..., 3] == 0, IDS == 1)
    shown.find_element("id", "hide-all").click()
    assert not overlay(shown).any()
    shown.find_element("id", "show-all").click()
    assert (overlay(shown)[..., 3] == 255).all()


def test_opacity_slider_responds_to_keys(shown, tmp_path):
    upload(shown, draw(tmp_path / "a.png"))
    slider = shown.find_element("id", "opacity")
    slider.send_keys("\ue011")
    assert shown.execute_script("return document.getElementById('overlay').style.opacity") == "0"
    slider.send_keys("\ue014" * 25)
    assert shown.execute_script("return getComputedStyle(document.getElementById('overlay')).opacity") == "0.25"
    assert text(shown, "#opacity-text") == "25 %"


def test_pointer_names_the_class_by_mouse_and_by_key(shown, tmp_path):
    upload(shown, draw(tmp_path / "a.png"))

    def point_at(column, row):
        shown.execute_script(
            """
            const frame = document.getElementById("frame"), box = frame.getBoundingClientRect();
            frame.dispatchEvent(new PointerEvent("pointermove", {
                clientX: box.left + box.width * (arguments[0] + .5) / 6,
                clientY: box.top + box.height * (arguments[1] + .5) / 10}));""",
            column,
            row,
        )
        return text(shown, "#tip-text"), text(shown, "#legend li.pointed .name")

    for row, column in np.ndindex(IDS.shape):
        assert point_at(column, row) == (NAMES[IDS[row, column]],) * 2
    frame = shown.find_element("id", "frame")
    frame.send_keys("\ue012")
    assert text(shown, "#tip-text") == NAMES[IDS[9, 5]] and " at 5, 9" in text(shown, "#status")
    frame.send_keys("\ue012" * 90)
    assert text(shown, "#status") == "sky at 0, 9"
    frame.send_keys("\ue00c")
    assert not shown.find_element("id", "tip").is_displayed()


def test_saved_files(shown, tmp_path):
    (tmp_path / "saved").mkdir()
    shown.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "saved")})
    path = draw(tmp_path / "street.view.png")
    upload(shown, path)
    shown.find_elements("css selector", "#legend input")[1].click()
    ids, mixed = (tmp_path / "saved" / f"street.view-{kind}.png" for kind in ("ids", "overlay"))
    for name, file in {"save-ids": ids, "save-overlay": mixed}.items():
        shown.find_element("id", name).click()
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline, list((tmp_path / "saved").iterdir())
            time.sleep(0.02)
    assert ids.read_bytes() == png_of(IDS)
    expected = drawing.overlay(image_files.read_image(path), IDS, COLORS, 0.6)
    expected[IDS == 1] = image_files.read_image(path)[IDS == 1]
    assert np.abs(image_files.read_image(mixed).astype(int) - expected).max() <= 1


def test_picture_dropped_onto_the_page(shown, answers):
    shown.execute_script("""
        const canvas = new OffscreenCanvas(6, 10);
        canvas.getContext("2d").fillRect(0, 0, 2, 2);
        return canvas.convertToBlob({type: "image/png"}).then(blob => {
            const dropped = new DataTransfer();
            dropped.items.add(new File([blob], "dropped.png"));
            document.getElementById("empty").dispatchEvent(
                new DragEvent("drop", {dataTransfer: dropped, bubbles: true, cancelable: true}));
        });""")
    until(shown, "document.getElementById('status').textContent.includes('found by')")
    assert "dropped.png" in text(shown, ".under") and len(answers.requests) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_rotated_by_exif_is_sent_upright(shown, tmp_path, answers, orientation):
    exif = Image.Exif()
    exif[picture_reader.EXIF_ORIENTATION] = orientation
    path = draw(tmp_path / "lying.jpg", (24, 16), exif=exif, quality=100, subsampling=0)
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    answers.choose = lambda *request: png_of(np.zeros(upright.shape[:2], np.uint8))
    upload(shown, path)
    sent = answers.requests[0][2]
    if orientation == 1:
        assert sent == path.read_bytes()
    else:
        with Image.open(io.BytesIO(sent)) as image:
            assert image.format == "PNG" and image.size == upright.shape[1::-1]
            # The browser and Pillow decode JPEG slightly differently.
            assert np.abs(np.array(image.convert("RGB")).astype(int) - upright).max() <= 3
        assert "rotated upright" in text(shown, ".under")


def test_picture_of_another_format_is_sent_as_png(shown, tmp_path, answers):
    path = draw(tmp_path / "a.webp", lossless=True)
    upload(shown, path)
    assert np.array_equal(image_files.read_image(io.BytesIO(answers.requests[0][2])), image_files.read_image(path))


@pytest.mark.parametrize("size, color_scheme", itertools.product(((390, 800), (1280, 900)), ("light", "dark")))
def test_layout_fits_phones_and_screens_in_light_and_dark(open_page, port, answers, tmp_path, size, color_scheme):
    answers.choose = lambda *request: png_of(np.repeat(IDS, 64, axis=1))
    driver = open_page(f"http://127.0.0.1:{port}/", *size, color_scheme)
    until(driver, "document.querySelectorAll('#samples img').length === 3")
    assert browser.overflow(driver) <= 0
    upload(driver, draw(tmp_path / f"{'a long name ' * 12}.png", (384, 10)))
    assert browser.overflow(driver) <= 0
    answers.choose = lambda *request: (500, "x" * 900)
    upload(driver, draw(tmp_path / "a.png", (384, 10)), error=True)
    assert browser.overflow(driver) <= 0
    colors = driver.execute_script("""const style = getComputedStyle(document.body);
                                      return [style.backgroundColor, style.color];""")
    background, text_color = (sum(map(int, re.findall(r"\d+", color)[:3])) / 765 for color in colors)
    is_light, is_dark = background > 0.9 and text_color < 0.4, background < 0.15 and text_color > 0.6
    assert is_light if color_scheme == "light" else is_dark


def test_controls_have_names_and_are_reachable_by_keyboard(shown, tmp_path):
    upload(shown, draw(tmp_path / "a.png"))
    shown.execute_cdp_cmd("Accessibility.enable", {})
    nodes = [node for node in shown.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"] if not node["ignored"]]
    controls = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if node["role"]["value"] in ("button", "checkbox", "combobox", "slider", "image")
    ]
    assert all(name for _, name in controls)
    assert {role for role, _ in controls} >= {"button", "checkbox", "combobox", "slider"}
    shown.execute_script("document.activeElement.blur()")
    reached = []
    for _ in range(25):
        shown.switch_to.active_element.send_keys("\ue004")
        reached.append(shown.switch_to.active_element.get_attribute("id"))
    assert {"model", "version", "frame", "opacity", "save-ids", "save-overlay", "hide-all"} <= set(reached)
