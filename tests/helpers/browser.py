"""A headless browser for tests that look at pages; without Chromium and its driver they skip with a reason."""

import base64
import contextlib
import shutil
import tempfile

import pytest

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         # As on a phone, where they take no room.
         "--hide-scrollbars")


@contextlib.contextmanager
def started():
    """Start one browser with a profile of its own; give `open_page` for as many pages as wanted, and end it after.

    `open_page(url, width, height, colours="light")` loads a page in a window of exactly that inner size in CSS pixels,
    for a reader who prefers "light" or "dark", with an empty console log, and returns Selenium's driver.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed: pip install -e '.[dev]'")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if not path]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on the PATH (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The browser may still write to its profile while it ends.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
        try:
            yield lambda url, width, height, colours="light": _open(driver, url, width, height, colours)
        finally:
            driver.quit()


def _open(driver, url, width, height, colours):
    # Asked for through the window's size, a page is never narrower than 500 pixels.
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia",
                           {"features": [{"name": "prefers-color-scheme", "value": colours}]})
    # Reading the log empties it of what the page before left.
    driver.get_log("browser")
    driver.get(url)
    return driver


def console(driver):
    """Return the console messages since the page was opened, uncaught exceptions and refused requests included."""
    return [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")]


def errors(driver):
    """Return those of `console` that are errors."""
    return [message for message in console(driver) if message.startswith("SEVERE")]


def overflow(driver):
    """Return by how many pixels the page is wider than its window."""
    return driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")


def image_widths(driver):
    """Return each picture's own width once it is loaded, lazy ones too; 0 where it cannot be shown."""
    return driver.execute_async_script("""
        const pictures = [...document.images], done = arguments[0];
        pictures.forEach(picture => { picture.loading = "eager"; });
        Promise.allSettled(pictures.map(picture => picture.decode()))
            .then(() => done(pictures.map(picture => picture.naturalWidth)));""")


def screenshot(driver, path):
    """Write the whole page, however long, as PNG."""
    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    data = driver.execute_cdp_cmd("Page.captureScreenshot", {
        "captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"],
                                                "scale": 1}})["data"]
    path.write_bytes(base64.b64decode(data))
