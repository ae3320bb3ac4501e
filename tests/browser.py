"""A headless Chromium for tests of pages; Debian's packages are chromium and chromium-driver."""

import shutil
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service


@contextmanager
def chromium(scheme="light", offline=False, size=(1280, 1600)):
    """Yield a browser; skip the test where none is installed.

    Args:
        scheme: ``light`` or ``dark``: what the user's system prefers.
        offline: Let it reach no network.
        size: Of the window, in pixels.
    """
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={size[0]},{size[1]}")
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        if offline:
            browser.execute_cdp_cmd("Network.enable", {})
            conditions = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            browser.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
        yield browser
    finally:
        browser.quit()


def complaints(browser):
    """Return what the page has written to the console as warnings and errors since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
