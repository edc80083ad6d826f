"""The server's page in a browser where something is wrong: files, answers, the server."""

import numpy as np
import pytest

from kseg.images import drawing
from tests.helpers import browser
from tests.helpers.page_actions import draw, error_text, overlay, text, until, upload
from tests.helpers.page_servers import COLOURS, IDS, Answers, FakeModels, png_of, serving, signature


def test_a_text_file_and_a_damaged_picture_are_refused_and_the_page_goes_on(shown, tmp_path, answers):
    (tmp_path / "notes.txt").write_text("no picture")
    upload(shown, tmp_path / "notes.txt", error=True)
    assert error_text(shown) == ("This is not a picture", "notes.txt is of a kind that this browser cannot show. "
                                 "Choose a JPEG or a PNG.")
    (tmp_path / "cut.png").write_bytes(draw(tmp_path / "a.png").read_bytes()[:40])
    upload(shown, tmp_path / "cut.png", error=True)
    assert error_text(shown)[0] == "The picture cannot be read" and answers.seen == []
    upload(shown, tmp_path / "a.png")
    assert not shown.find_element("id", "error").is_displayed() and overlay(shown).any()
    assert browser.errors(shown) == []


LARGE = ("assertion failed: [picture of] [3000 4000] [pixels (height, width); at most this many are taken:] [1000000]"
         "\n\t [[{{node map/while/Assert}}]]")


@pytest.mark.parametrize("status, message, title, told, again", [
    (400, LARGE, "The picture is too large", "It has 4000 × 3000 pixels; this model takes at most 1,000,000", False),
    (400, "Unknown image file format.\n\t [[{{node Decode}}]]", "The server could not use this picture",
     "Unknown image file format.", False),
    (404, "Servable not found for request: Specific(street, 2)", "This model is not available any more",
     "It may have been replaced", True),
    (413, "too much", "The picture is too large", "The server refused a request of this size.", False),
    (429, "queue is full", "The server is busy", "Try again in a moment", True),
    (503, "draining", "The server is not ready", "It is starting, stopping or overloaded", True),
    (504, "Timed out waiting for notification", "The server took too long", "A smaller one may work", True),
    (500, "Out of <b>memory</b>", "The server failed on this picture", "Out of <b>memory</b>", True)])
def test_errors_of_the_server_in_plain_words(shown, tmp_path, answers, status, message, title, told, again):
    answers.choose = lambda *request: (status, message)
    upload(shown, draw(tmp_path / "a.png"), error=True)
    found = error_text(shown)
    assert found[0] == title and told in found[1] and "[[" not in found[1]
    assert shown.find_element("id", "retry").is_displayed() == again
    raw = shown.execute_script("return document.getElementById('error-server').textContent")
    assert raw == f"HTTP {status}: {message}"
    # Nothing of another picture stays beside it.
    assert text(shown, "#latency") == "–" and not overlay(shown).any()


def test_an_answer_of_another_size_or_kind_is_an_error(shown, tmp_path, answers):
    answers.choose = lambda *request: png_of(IDS.T.copy())
    upload(shown, draw(tmp_path / "a.png"), error=True)
    assert error_text(shown)[1] == "The class ids are 10 × 6, the picture is 6 × 10."
    answers.choose = lambda *request: b"no PNG"
    upload(shown, draw(tmp_path / "a.png"), error=True)
    assert error_text(shown)[0] == "The answer makes no sense"


def test_a_request_that_is_too_large_is_not_sent(open_page, models, tmp_path):
    answers = Answers(lambda *request: png_of(IDS))
    with serving(models, answers, max_request_bytes=2000) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 1280, 900)
        upload(driver, draw(tmp_path / "noise.png", (40, 40)), error=True)
        title, told = error_text(driver)
        assert title == "The picture is too large" and told.endswith("this server takes at most 2.0 kB.")
        assert answers.seen == []


def test_a_stopped_server_is_told_and_asked_again_when_it_is_back(open_page, models, tmp_path):
    answers = Answers(lambda *request: png_of(IDS))
    with serving(models, answers) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 1280, 900)
        upload(driver, draw(tmp_path / "a.png"))
    driver.find_element("id", "file").send_keys(str(tmp_path / "a.png"))
    until(driver, "!document.getElementById('error').hidden")
    assert error_text(driver) == ("The server does not answer", f"Nothing came back from 127.0.0.1:{port}. It may have "
                                  "been stopped, or the network is down.")
    with serving(models, answers, port):
        driver.find_element("id", "retry").click()
        until(driver, "document.getElementById('status').textContent.includes('found by')")
    assert np.array_equal(overlay(driver)[..., :3], drawing.colour(IDS, COLOURS))


def test_no_other_model_is_asked_without_a_word(open_page, tmp_path):
    models, answers = FakeModels({"one": {1: tmp_path}, "two": {1: tmp_path}}), Answers(lambda *request: png_of(IDS))
    with serving(models, answers) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 1280, 900)
        upload(driver, draw(tmp_path / "a.png"))
        models.versions["one"] = {}
        upload(driver, tmp_path / "a.png", error=True)
        assert error_text(driver) == ("The model is not available any more",
                                      "This server no longer has one ready. Try again to ask two.")
        driver.find_element("id", "retry").click()
        until(driver, "document.getElementById('status').textContent.includes('found by two')")
    assert [each[0] for each in answers.seen] == ["one", "two"]


def test_a_server_without_a_model_for_pictures_says_so(open_page, tmp_path):
    models = FakeModels({"words": {1: tmp_path}, "none": {}}, {"words": {"other": signature()}})
    with serving(models, Answers(None)) as port:
        driver = open_page(f"http://127.0.0.1:{port}/", 390, 800)
        until(driver, "!document.getElementById('error').hidden")
        title, told = error_text(driver)
        assert title == "No model to ask" and "words: it has no signature serving_default, but other" in told
        assert "none: no version is available" in told and browser.errors(driver) == []
