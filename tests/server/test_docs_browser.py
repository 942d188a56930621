"""The documentation works in a browser, from this machine alone."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from server.browser import faults, find, hosts_asked, open_browser
from server.fakes import CONTINUATION, FakeService, listening

GENERATION = "#operations-Text-generate"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Chrome) -> Iterator[Chrome]:
    """A browser that shows the documentation of a fake service."""
    with listening(FakeService()) as url:
        faults(browser)
        browser.get(f"{url}/docs")
        find(browser, GENERATION)
        yield browser
        browser.get("about:blank")


def try_it_out(browser: Chrome) -> str:
    """Send the prepared request to /generation; return what the page shows of the answer."""
    find(browser, f"{GENERATION} .opblock-summary-control").click()
    find(browser, f"{GENERATION} .try-out__btn").click()
    find(browser, f"{GENERATION} .execute").click()
    return find(browser, f"{GENERATION} .live-responses-table .response").text


def test_every_operation_is_shown(page: Chrome) -> None:
    shown = {e.text for e in page.find_elements(By.CSS_SELECTOR, ".opblock-summary-path")}
    text = {"/generation", "/v1/completions", "/tokenize", "/detokenize"}
    models = {"/v1/models", "/v1/models/{model}"}
    assert shown == text | models | {"/livez", "/readyz", "/health", "/version", "/plugins"}


def test_try_it_out_works_as_prepared(page: Chrome) -> None:
    shown = try_it_out(page)
    assert shown.startswith("200")
    assert "Once upon a time" + CONTINUATION in shown


def test_nothing_is_asked_of_another_host(page: Chrome) -> None:
    try_it_out(page)
    assert hosts_asked(page) == {urlsplit(page.current_url).netloc}


def test_the_browser_finds_no_fault(page: Chrome) -> None:
    try_it_out(page)
    assert faults(page) == []


def test_the_browser_would_stop_requests_to_other_hosts(page: Chrome) -> None:
    script = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", e => done(e.violatedDirective));
        fetch("http://192.0.2.1/").catch(() => {});
    """
    assert page.execute_async_script(script) == "connect-src"
