"""A browser for tests of the pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import presence_of_element_located
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = Path("/usr/bin/chromium")
CHROMEDRIVER = Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
)


@contextmanager
def open_browser() -> Iterator[Chrome]:
    """Yield a browser; where there is none, skip, or fail if PLURIBUS_REQUIRE_BROWSER is 1."""
    if not (CHROMIUM.exists() and CHROMEDRIVER.exists()):
        if os.environ.get("PLURIBUS_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{CHROMIUM} and {CHROMEDRIVER} are needed")
        pytest.skip("no Chromium here")
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    with Chrome(options, ChromeService(str(CHROMEDRIVER))) as browser:
        yield browser


def find(browser: Chrome, selector: str) -> WebElement:
    """Return the first element that matches, once there is one."""
    return WebDriverWait(browser, 30).until(
        presence_of_element_located((By.CSS_SELECTOR, selector)), f"nothing matches {selector}"
    )


def faults(browser: Chrome) -> list[dict[str, Any]]:
    """Return what the console says, and forget it."""
    found: list[dict[str, Any]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return found


def hosts_asked(browser: Chrome) -> set[str]:
    """Return the hosts that the page has asked for anything."""
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    asked: list[str] = browser.execute_script(script)
    return {urlsplit(url).netloc for url in asked if not url.startswith("data:")}
