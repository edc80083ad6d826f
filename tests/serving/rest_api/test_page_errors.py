"""Test how the server's page reports bad files, error responses, and a missing server."""

import numpy as np
import pytest

from kseg.images import drawing
from tests.helpers import browser
from tests.helpers.page_actions import draw, error_text, overlay, text, until, upload
from tests.helpers.page_servers import COLORS, IDS, Answers, FakeModels, png_of, serving, signature


def test_bad_files_are_rejected_and_the_page_continues(shown, tmp_path, answers):
    (tmp_path / "notes.txt").write_text("not a picture")
    upload(shown, tmp_path / "notes.txt", error=True)
    title, message = error_text(shown)
    assert title == "This is not a picture" and "notes.txt" in message
    (tmp_path / "cut.png").write_bytes(draw(tmp_path / "a.png").read_bytes()[:40])
    upload(shown, tmp_path / "cut.png", error=True)
    assert error_text(shown)[0] == "The picture cannot be read" and answers.requests == []
    upload(shown, tmp_path / "a.png")
    assert not shown.find_element("id", "error").is_displayed() and overlay(shown).any()
    assert browser.errors(shown) == []


LARGE = (
    "assertion failed: [picture of] [3000 4000] [pixels (height, width); at most this many are taken:] [1000000]"
    "\n\t [[{{node map/while/Assert}}]]"
)


@pytest.mark.parametrize(
    "status, message, title, explanation, retryable",
    [
        (400, LARGE, "The picture is too large", "4000 × 3000 pixels. This model accepts at most 1,000,000", False),
        (
            400,
            LARGE.replace("picture of", "image of").replace("at most this many are taken:", "maximum:"),
            "The picture is too large",
            "4000 × 3000 pixels. This model accepts at most 1,000,000",
            False,
        ),
        (
            400,
            "Unknown image file format.\n\t [[{{node Decode}}]]",
            "The server could not use this picture",
            "Unknown image file format.",
            False,
        ),
        (
            404,
            "Servable not found for request: Specific(street, 2)",
            "This model is no longer available",
            "It may have been replaced",
            True,
        ),
        (413, "too much", "The picture is too large", "The server refused a request of this size.", False),
        (429, "queue is full", "The server is busy", "Try again in a moment", True),
        (503, "draining", "The server is not ready", "It is starting, stopping or overloaded", True),
        (504, "Timed out waiting for notification", "The server took too long", "A smaller picture may work", True),
        (500, "Out of <b>memory</b>", "The server failed on this picture", "Out of <b>memory</b>", True),
    ],
)
def test_server_errors_are_explained(shown, tmp_path, answers, status, message, title, explanation, retryable):
    answers.choose = lambda *request: (status, message)
    upload(shown, draw(tmp_path / "a.png"), error=True)
    shown_title, shown_text = error_text(shown)
    assert shown_title == title and explanation in shown_text and "[[" not in shown_text
    assert shown.find_element("id", "retry").is_displayed() == retryable
    raw = shown.execute_script("return document.getElementById('error-server').textContent")
    assert raw == f"HTTP {status}: {message}"
    # The result of a previous picture is cleared.
    assert text(shown, "#latency") == "–" and not overlay(shown).any()


def test_response_of_another_size_or_format_is_an_error(shown, tmp_path, answers):
    answers.choose = lambda *request: png_of(IDS.T.copy())
    upload(shown, draw(tmp_path / "a.png"), error=True)
    assert error_text(shown)[1] == "The class ids are 10 × 6, the picture is 6 × 10."
    answers.choose = lambda *request: b"no PNG"
    upload(shown, draw(tmp_path / "a.png"), error=True)
    assert error_text(shown)[0] == "The response is invalid"


def test_oversized_request_is_not_sent(open_page, models, tmp_path):
    answers = Answers(lambda *request: png_of(IDS))
    with serving(models, answers, max_request_bytes=2000) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 1280, 900)
        upload(driver, draw(tmp_path / "noise.png", (40, 40)), error=True)
        title, message = error_text(driver)
        assert title == "The picture is too large" and message.endswith(" 2.0 kB.")
        assert answers.requests == []


def test_stopped_server_is_reported_and_can_be_retried_after_its_restart(open_page, models, tmp_path):
    answers = Answers(lambda *request: png_of(IDS))
    with serving(models, answers) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 1280, 900)
        upload(driver, draw(tmp_path / "a.png"))
    driver.find_element("id", "file").send_keys(str(tmp_path / "a.png"))
    until(driver, "!document.getElementById('error').hidden")
    title, message = error_text(driver)
    assert title == "The server does not answer" and f"127.0.0.1:{port}" in message
    with serving(models, answers, port):
        driver.find_element("id", "retry").click()
        until(driver, "document.getElementById('status').textContent.includes('found by')")
    assert np.array_equal(overlay(driver)[..., :3], drawing.colorize(IDS, COLORS))


def test_another_model_never_replaces_the_chosen_one_silently(open_page, tmp_path):
    models, answers = FakeModels({"one": {1: tmp_path}, "two": {1: tmp_path}}), Answers(lambda *request: png_of(IDS))
    with serving(models, answers) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 1280, 900)
        upload(driver, draw(tmp_path / "a.png"))
        models.versions["one"] = {}
        upload(driver, tmp_path / "a.png", error=True)
        assert error_text(driver) == (
            "The model is no longer available",
            "This server has stopped serving one. Try again to use two.",
        )
        driver.find_element("id", "retry").click()
        until(driver, "document.getElementById('status').textContent.includes('found by two')")
    assert [request[0] for request in answers.requests] == ["one", "two"]


def test_server_without_a_model_for_pictures_is_reported(open_page, tmp_path):
    models = FakeModels({"words": {1: tmp_path}, "none": {}}, {"words": {"other": signature()}})
    with serving(models, Answers(None)) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 390, 800)
        until(driver, "!document.getElementById('error').hidden")
        title, message = error_text(driver)
        assert title == "No usable model" and "words: it has no signature serving_default" in message
        assert "none: no version is available" in message and browser.errors(driver) == []
