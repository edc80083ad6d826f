"""Operate the server's page through Selenium's driver."""

import time

import numpy as np
from PIL import Image

from tests.helpers import browser


def until(driver, expression, seconds=60):
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return Boolean({expression})"):
        assert time.monotonic() < end, f"{expression} stays false; {text(driver, 'main')}; {browser.console(driver)}"
        time.sleep(0.02)


def text(driver, selector):
    return driver.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def upload(driver, path, error=False):
    """Choose a file, and wait for its result or for an error."""
    driver.execute_script("document.getElementById('status').textContent = '';")
    driver.find_element("id", "file").send_keys(str(path))
    until(
        driver,
        "!document.getElementById('error').hidden"
        if error
        else "document.getElementById('status').textContent.includes('found by')",
    )


def draw(path, size=(6, 10), **values):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path, **values)
    return path


def overlay(driver):
    """Return the overlay canvas as RGBA, uint8 (H, W, 4)."""
    width, height, values = driver.execute_script("""
        const canvas = document.getElementById("overlay");
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, [...data]];""")
    return np.array(values, np.uint8).reshape(height, width, 4)


def error_text(driver):
    return text(driver, "#error-title"), text(driver, "#error-text")
