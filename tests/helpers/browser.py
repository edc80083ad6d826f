"""Open pages in a headless Chromium; tests skip with a reason if it or its driver is not installed."""

import contextlib
import shutil
import tempfile

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # Scrollbars take no width, as on a phone.
    "--hide-scrollbars",
)


@contextlib.contextmanager
def started():
    """Start a browser with its own profile, yield `open_page`, and quit the browser afterwards.

    `open_page(url, width, height, colors="light")` loads a page in a window whose inner size is exactly that in CSS
    pixels, for a user who prefers the color scheme "light" or "dark". It clears the console log and returns Selenium's
    driver.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed: pip install -e '.[dev]'")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if not path]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on the PATH (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The browser may still write to its profile while it exits.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs["chromedriver"]))
        try:
            yield lambda url, width, height, colors="light": _open(driver, url, width, height, colors)
        finally:
            driver.quit()


def _open(driver, url, width, height, colors):
    # The window size itself cannot be set below 500 pixels.
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": colors}]}
    )
    # Reading the log removes the messages of the previous page.
    driver.get_log("browser")
    driver.get(url)
    return driver


def console(driver):
    """Return the console messages of the page, including uncaught exceptions and refused requests."""
    return [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")]


def errors(driver):
    """Return the console messages that are errors."""
    return [message for message in console(driver) if message.startswith("SEVERE")]


def overflow(driver):
    """Return the number of pixels by which the page is wider than its window."""
    return driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")


def image_widths(driver):
    """Load all images and return their natural widths, 0 for an image that cannot be shown."""
    return driver.execute_async_script("""
        const images = [...document.images], done = arguments[0];
        images.forEach(image => { image.loading = "eager"; });
        Promise.allSettled(images.map(image => image.decode()))
            .then(() => done(images.map(image => image.naturalWidth)));""")
