"""The evaluation report in a browser, on a phone and on a desktop: layout, console and sorting."""

import itertools

import pytest

from kseg.evaluation import metrics
from tests.helpers import browser
from tests.helpers.report_pages import AWKWARD, NAN, PUBLISHED, many_classes, sample, written


@pytest.fixture(scope="module")
def open_page():
    with browser.started() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The URLs of two pages: one with many classes, one with few and awkward names."""
    directory = tmp_path_factory.mktemp("pages with <spaces>")
    matrix, names, palette = many_classes()
    (directory / "many").mkdir()
    written(
        directory / "many",
        matrix,
        names,
        palette,
        [sample("x" * 300, size=(200, 900)), sample("b", "typical", NAN)],
        published=PUBLISHED,
    )
    (directory / "few").mkdir()
    written(
        directory / "few",
        classes=(AWKWARD, "car", "a very long name " * 20),
        samples=[sample(AWKWARD)],
        published=PUBLISHED | {"config": "long_" * 60},
    )
    return {name: (directory / name / "report.html").as_uri() for name in ("many", "few")}


@pytest.mark.parametrize("page, size", itertools.product(("many", "few"), ((390, 844), (1280, 900))))
def test_nothing_overflows_fails_or_is_fetched(open_page, pages, page, size):
    driver = open_page(pages[page], *size)
    assert driver.execute_script("return window.innerWidth") == size[0]
    assert browser.overflow(driver) <= 0
    widths = browser.image_widths(driver)
    assert len(widths) == {"many": 8, "few": 4}[page] and min(widths) > 0
    fetched = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert browser.console(driver) == []


def column(driver, index):
    return driver.execute_script(
        "return [...document.querySelectorAll('#class-table tbody tr')]"
        ".map(row => row.cells[arguments[0]].textContent.trim())",
        index,
    )


def test_a_click_sorts_the_classes(open_page, pages):
    matrix, names, _ = many_classes()
    rows = metrics.summarize(matrix, names)["classes"]
    driver = open_page(pages["many"], 1280, 900)
    assert column(driver, 0) == list(names)

    def click(index):
        driver.find_elements("css selector", "#class-table thead button")[index].click()
        return driver.find_elements("css selector", "#class-table thead th")[index].get_attribute("aria-sort")

    defined = sorted((name for name in names if name != "class 7"), key=lambda name: rows[name]["iou"])
    assert click(1) == "ascending" and column(driver, 0) == defined + ["class 7"]
    assert click(1) == "descending" and column(driver, 0) == defined[::-1] + ["class 7"]
    assert column(driver, 1)[-1] == "–"
    assert click(0) == "ascending" and column(driver, 0) == sorted(names)
    assert browser.errors(driver) == []


def test_the_browser_helper_reports_errors_and_overflow(open_page, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><div style='width: 2000px'>wide</div><img src='data:,'><script>missing()</script>",
        encoding="utf-8",
    )
    driver = open_page(path.as_uri(), 390, 844)
    assert browser.overflow(driver) > 1000
    assert browser.image_widths(driver) == [0]
    assert any("missing is not defined" in message for message in browser.errors(driver))
    assert browser.errors(open_page("data:text/html,<p>good", 390, 844)) == []
