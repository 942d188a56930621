"""The playground works in a browser, for everybody, from this machine alone."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from pluribus.errors import QueueFullError
from pluribus.server.auth import Keyring
from pluribus.tenants import Tenant
from processes import serving
from server.browser import faults, find, hosts_asked, open_browser
from server.byte_tokens import FIRST_BYTE
from server.fakes import CONTINUATION, SPEC, FakeService, listening, logprob

PLURIBUS = [sys.executable, "-c", "from pluribus.cli import main; main()"]
SLOW = 0.05
"""Seconds a token, so that an answer is seen while it comes."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with open_browser() as browser:
        yield browser


@contextmanager
def playground(
    browser: Chrome, service: FakeService, keyring: Keyring | None = None
) -> Iterator[Chrome]:
    """Show the playground of ``service``."""
    with listening(service, keyring=keyring) as url:
        browser.get(url)
        find(browser, "#state[data-state=ready]")
        faults(browser)
        yield browser
        browser.get("about:blank")


def element(page: Chrome, id_: str) -> WebElement:
    return page.find_element(By.ID, id_)


def await_text(page: Chrome, id_: str, pattern: str) -> None:
    """Wait until an element says what ``pattern`` matches."""
    seen = ""

    def says(page: Chrome) -> bool:
        nonlocal seen
        seen = element(page, id_).text
        return re.search(pattern, seen) is not None

    WebDriverWait(page, 30).until(says, f"{id_} never said {pattern!r}")


def fill(page: Chrome, **fields: str) -> None:
    for id_, text in fields.items():
        element(page, id_).clear()
        element(page, id_).send_keys(text)


def run(page: Chrome) -> None:
    """Ask, and wait for the whole answer."""
    element(page, "run").click()
    await_text(page, "status", "Finished")


def shown(page: Chrome) -> str:
    text: str = element(page, "answer").get_property("textContent")  # type: ignore[assignment]
    return text


def find_violations(page: Chrome) -> list[tuple[str, list[str]]]:
    """Return what axe objects to, with the elements at fault."""
    package = find_spec("axe_core_python")
    if package is None or package.origin is None:
        if os.environ.get("PLURIBUS_REQUIRE_BROWSER") == "1":
            pytest.fail("axe-core-python is needed: install the dev extra")
        pytest.skip("no axe-core-python here")
    page.execute_script(Path(package.origin).with_name("axe.min.js").read_text("utf-8"))
    result: dict[str, Any] = page.execute_async_script("axe.run().then(arguments[0])")
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in result["violations"]]


def test_the_home_page_shows_what_is_served(browser: Chrome) -> None:
    with playground(browser, FakeService()) as page:
        await_text(page, "service", rf"ready\s+{SPEC.name}")


def test_an_answer_is_shown_while_it_comes(browser: Chrome) -> None:
    service = FakeService(say=lambda _: "slowly but surely " * 10, seconds_per_token=SLOW)
    with playground(browser, service) as page:
        element(page, "run").click()
        await_text(page, "answer", "slowly")
        assert element(page, "answer").get_attribute("aria-busy") == "true"
        assert len(shown(page)) < 100
        await_text(page, "status", "Generating")


def test_the_whole_answer_and_its_figures_are_shown(browser: Chrome) -> None:
    with playground(browser, FakeService(seconds_per_token=0.01)) as page:
        run(page)
        num_tokens = len(CONTINUATION)
        assert shown(page) == CONTINUATION
        assert f"{num_tokens} tokens" in element(page, "status").text
        assert element(page, "tokens").text == str(num_tokens)
        assert 20 < float(element(page, "speed").text) < 200
        assert element(page, "first").text.endswith(" ms")


def test_every_parameter_is_sent(browser: Chrome) -> None:
    service = FakeService()
    given = {"max_tokens": 77, "top_k": 5, "seed": 42}
    given_fractions = {"temperature": 0.3, "top_p": 0.5, "min_p": 0.25, "repetition_penalty": 1.5}
    with playground(browser, service) as page:
        fields = {name: str(value) for name, value in (given | given_fractions).items()}
        fill(page, prompt="Say", stop_texts="END\n\\n\\n", **fields)
        run(page)
    prompt, params, _ = service.calls[-1]
    assert prompt == "Say"
    assert {*params.stop} == {"END", "\n\n"}
    assert {name: getattr(params, name) for name in fields} == given | given_fractions


def test_a_slider_sets_its_number(browser: Chrome) -> None:
    with playground(browser, FakeService()) as page:
        page.execute_script(
            "const slider = document.querySelector('[data-for=top_p]');"
            "slider.value = 0.5; slider.dispatchEvent(new Event('input'));"
        )
        assert element(page, "top_p").get_property("value") == "0.5"


@pytest.mark.parametrize(
    "stop",
    [
        lambda page: element(page, "stop").click(),
        lambda page: ActionChains(page).send_keys(Keys.ESCAPE).perform(),
    ],
    ids=["button", "escape"],
)
def test_stopping_ends_the_generation(browser: Chrome, stop: Callable[[Chrome], None]) -> None:
    service = FakeService(say=lambda _: "on and on " * 100, seconds_per_token=SLOW)
    with playground(browser, service) as page:
        fill(page, max_tokens="1000")
        element(page, "run").click()
        await_text(page, "answer", "on")
        stop(page)
        await_text(page, "status", r"Stopped after \d+ tokens")
        assert service.engine.cancelled.wait(10)
        assert service.num_flights == 0
        assert element(page, "run").is_enabled()


def test_the_keyboard_is_enough(browser: Chrome) -> None:
    service = FakeService()
    with playground(browser, service) as page:
        assert page.switch_to.active_element == element(page, "prompt")
        keys = ActionChains(page).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL)
        keys.send_keys("Typed").key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL)
        keys.perform()
        await_text(page, "status", "Finished")
    assert service.calls[-1][0] == "Typed"


def test_tokens_are_coloured_by_their_probability(browser: Chrome) -> None:
    with playground(browser, FakeService(say=lambda _: "a~")) as page:
        run(page)
        likely, unlikely = page.find_elements(By.CSS_SELECTOR, "#answer .token")[:2]
        for token, text in ((likely, "a"), (unlikely, "~")):
            probability = math.exp(logprob(FIRST_BYTE + ord(text)))
            assert token.get_property("textContent") == text
            assert token.get_attribute("title") == f"{100 * probability:.0f} %"
        assert likely.get_attribute("data-level") == "4"
        assert unlikely.get_attribute("data-level") == "3"
        assert likely.value_of_css_property("background-color") != (
            unlikely.value_of_css_property("background-color")
        )
        assert "underline" in unlikely.value_of_css_property("text-decoration")


def test_colours_can_be_left_out(browser: Chrome) -> None:
    with playground(browser, FakeService()) as page:
        run(page)
        element(page, "colour").click()
        token = find(page, "#answer .token")
        assert token.value_of_css_property("background-color") == "rgba(0, 0, 0, 0)"
        assert not element(page, "legend").is_displayed()


def test_a_table_tells_every_token_and_its_alternatives(browser: Chrome) -> None:
    with playground(browser, FakeService(say=lambda _: "a b")) as page:
        run(page)
        find(page, "#table summary").click()
        find(page, "#rows tr")
        rows = page.find_elements(By.CSS_SELECTOR, "#rows tr")
        assert [row.find_element(By.TAG_NAME, "th").text for row in rows[:3]] == ["a", "␣", "b"]
        assert "90 %" in rows[0].text
        assert rows[0].text.count("%") == 1 + 5


def test_characters_of_several_tokens_stay_whole(browser: Chrome) -> None:
    text = "naïve 🎈 “quoted”"
    with playground(browser, FakeService(say=lambda _: text, seconds_per_token=SLOW / 5)) as page:
        run(page)
        assert shown(page) == text


def test_text_of_the_model_is_text_and_nothing_else(browser: Chrome) -> None:
    text = "<img src=x onerror=alert(1)><b>bold</b>"
    with playground(browser, FakeService(say=lambda _: text)) as page:
        run(page)
        assert shown(page) == text
        assert not page.find_elements(By.CSS_SELECTOR, "#answer b, #answer img")


def test_the_answer_can_become_part_of_the_prompt(browser: Chrome) -> None:
    with playground(browser, FakeService()) as page:
        fill(page, prompt="Once")
        run(page)
        element(page, "continue").click()
        assert element(page, "prompt").get_property("value") == "Once" + CONTINUATION
        assert shown(page) == ""


def test_a_refusal_is_shown_in_words(browser: Chrome) -> None:
    service = FakeService(refusal=QueueFullError("too many are waiting", retry_after=7))
    with playground(browser, service) as page:
        element(page, "run").click()
        await_text(page, "error", r"too many are waiting.* 7 s")
        assert element(page, "run").is_enabled()


def test_an_answer_that_breaks_off_is_told_in_words(browser: Chrome) -> None:
    service = FakeService(say=lambda _: "on and on " * 100, seconds_per_token=SLOW, dies_after=9)
    with playground(browser, service) as page:
        fill(page, max_tokens="1000")
        element(page, "run").click()
        await_text(page, "error", "the engine died")
        assert shown(page).startswith("on and")


def test_notes_on_the_model_are_shown(browser: Chrome) -> None:
    with playground(browser, FakeService(notes=("The weights are random.",))) as page:
        run(page)
        assert element(page, "note").text == "The weights are random."


def test_a_key_lets_its_holder_in_and_is_kept_in_the_tab_alone(browser: Chrome) -> None:
    keyring = Keyring.of({"sesame": Tenant(name="alice")})
    with playground(browser, FakeService(), keyring) as page:
        await_text(page, "error", "key")
        fill(page, key="sesame")
        run(page)
        assert shown(page) == CONTINUATION
        page.refresh()
        await_text(page, "service", SPEC.name)
        assert element(page, "key").get_property("value") == "sesame"
        assert page.execute_script("return localStorage.length + document.cookie.length") == 0


def test_nothing_is_asked_of_another_host(browser: Chrome) -> None:
    with playground(browser, FakeService()) as page:
        run(page)
        assert hosts_asked(page) == {urlsplit(page.current_url).netloc}


def test_the_browser_finds_no_fault(browser: Chrome) -> None:
    with playground(browser, FakeService()) as page:
        run(page)
        assert faults(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing(browser: Chrome, scheme: str, width: int) -> None:
    with playground(browser, FakeService(say=lambda _: "a~" * 10)) as page:
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": False},
        )
        run(page)
        find(page, "#table summary").click()
        assert find_violations(page) == []
        root = find(page, ":root")
        assert root.get_property("scrollWidth") == root.get_property("clientWidth")
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_bundled_model_answers(browser: Chrome, tmp_path: Path) -> None:
    with serving([*PLURIBUS, "serve", "server.port=0"], tmp_path) as url:
        browser.get(url)
        find(browser, "#state[data-state=ready]")
        fill(browser, max_tokens="24", temperature="0")
        run(browser)
        assert element(browser, "tokens").text == "24"
        assert len(shown(browser).split()) > 5
        assert len({e.get_attribute("data-level") for e in tokens(browser)}) > 1
        browser.get("about:blank")


def tokens(page: Chrome) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, "#answer .token")
