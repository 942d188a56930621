"""The documentation works in a browser, from this machine alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import presence_of_element_located
from selenium.webdriver.support.wait import WebDriverWait

from server.fakes import CONTINUATION, FakeService, listening

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
GENERATION = "#operations-Text-generate"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
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


@pytest.fixture
def page(browser: Chrome) -> Iterator[Chrome]:
    """A browser that shows the documentation of a fake service."""
    with listening(FakeService()) as url:
        browser.get_log("browser")  # type: ignore[no-untyped-call]
        browser.get(f"{url}/docs")
        find(browser, GENERATION)
        yield browser
        browser.get("about:blank")


def find(browser: Chrome, selector: str) -> WebElement:
    """Return the first element that matches, once there is one."""
    return WebDriverWait(browser, 30).until(
        presence_of_element_located((By.CSS_SELECTOR, selector)), f"nothing matches {selector}"
    )


def try_it_out(browser: Chrome) -> str:
    """Send the prepared request to /generation; return what the page shows of the answer."""
    find(browser, f"{GENERATION} .opblock-summary-control").click()
    find(browser, f"{GENERATION} .try-out__btn").click()
    find(browser, f"{GENERATION} .execute").click()
    return find(browser, f"{GENERATION} .live-responses-table .response").text


def test_every_operation_is_shown(page: Chrome) -> None:
    paths = [e.text for e in page.find_elements(By.CSS_SELECTOR, ".opblock-summary-path")]
    assert paths == ["/generation", "/livez", "/readyz", "/health", "/version", "/plugins"]


def test_try_it_out_works_as_prepared(page: Chrome) -> None:
    shown = try_it_out(page)
    assert shown.startswith("200")
    assert "Once upon a time" + CONTINUATION in shown


def test_nothing_is_asked_of_another_host(page: Chrome) -> None:
    try_it_out(page)
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    asked: list[str] = page.execute_script(script)
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith("data:")}
    assert hosts == {urlsplit(page.current_url).netloc}


def test_the_browser_finds_no_fault(page: Chrome) -> None:
    try_it_out(page)
    faults: list[dict[str, Any]] = page.get_log("browser")  # type: ignore[no-untyped-call]
    assert faults == []


def test_the_browser_would_stop_requests_to_other_hosts(page: Chrome) -> None:
    script = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", e => done(e.violatedDirective));
        fetch("http://192.0.2.1/").catch(() => {});
    """
    assert page.execute_async_script(script) == "connect-src"


def test_the_home_page_leads_to_the_documentation(page: Chrome) -> None:
    url = urlsplit(page.current_url)
    page.get(f"{url.scheme}://{url.netloc}/")
    find(page, GENERATION)
    assert page.current_url.endswith("/docs")
