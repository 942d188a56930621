"""Every hook does what docs/plugins.md says of it; observers are tested beside the engine."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Route
from starlette.testclient import TestClient

from pluribus import Batch, PluginError, hookimpl
from pluribus.parallel.local import LocalLauncher
from pluribus.parallel.single import SingleRank
from pluribus.plugins import (
    BATCHER,
    KV_CACHE,
    LAUNCHER,
    MODEL,
    PARALLELISM,
    RESPONSE_CACHE,
    Kind,
    Plugins,
    Source,
    discover,
)
from pluribus.runtime import PluginObserver
from pluribus.server.app import create_app
from pluribus.server.config import ServerConfig
from pluribus.service import Service
from server.fakes import FakeService


def plugins_with(**hooks: Callable[..., Any]) -> Plugins:
    """Return the plugins of a launch where one module has these hooks."""
    module = types.ModuleType("mine")
    for name, hook in hooks.items():
        setattr(module, name, hookimpl(hook))
    plugins = Plugins()
    plugins.add(Source("mine", "pluribus-mine", "0.1"), module)
    plugins.collect()
    return plugins


@pytest.mark.parametrize(
    ("hook", "kind"),
    [
        ("register_models", MODEL),
        ("register_parallelisms", PARALLELISM),
        ("register_launchers", LAUNCHER),
        ("register_batchers", BATCHER),
        ("register_kv_caches", KV_CACHE),
        ("register_response_caches", RESPONSE_CACHE),
    ],
)
def test_a_class_is_offered_under_its_name(hook: str, kind: Kind[Any]) -> None:
    abstract = kind.interface.__abstractmethods__
    config = make_dataclass("Config", [(setting, int, 1) for setting in kind.settings])
    cls = type("Mine", (kind.interface,), {**dict.fromkeys(abstract), "Config": config})
    plugins = plugins_with(**{hook: lambda: {"mine": cls}})
    plugins.check()
    assert plugins.find(kind, "mine") is cls


def test_what_ships_with_the_framework_comes_in_through_the_same_hooks() -> None:
    plugins = discover()
    assert plugins.find(PARALLELISM, "single") is SingleRank
    assert plugins.find(LAUNCHER, "local") is LocalLauncher
    assert plugins.sources["parallel"].distribution == "pluribus"


def test_routes_of_a_plugin_are_served_beside_ours() -> None:
    def register_routes(service: Service) -> Sequence[BaseRoute]:
        async def model(_: Request) -> PlainTextResponse:
            return PlainTextResponse(service.spec.name)

        return [Route("/model", model), Route("/livez", model)]

    service = FakeService()
    routes = plugins_with(register_routes=register_routes).routes(service)
    client = TestClient(create_app(service, ServerConfig(), routes))
    assert client.get("/model").text == "fake"
    assert client.get("/livez").text != "fake", "a plugin replaced one of our routes"


async def _answer(_: Request) -> PlainTextResponse:
    return PlainTextResponse("mine")


@pytest.mark.parametrize("offered", [Route("/mine", _answer), ["r"], "/mine", {"/mine": _answer}])
def test_routes_that_are_none_are_refused_in_the_plugin_s_name(offered: object) -> None:
    with pytest.raises(PluginError, match=r"'mine' .*: register_routes must return a list of rout"):
        plugins_with(register_routes=lambda: offered).routes(FakeService())


def test_a_plugin_that_fails_to_make_its_routes_is_named() -> None:
    def register_routes() -> Sequence[BaseRoute]:
        raise OSError("no disk")

    plugins = plugins_with(register_routes=register_routes)
    with pytest.raises(PluginError, match=r"'mine' \(pluribus-mine 0.1\): register_routes failed"):
        plugins.routes(FakeService())


@pytest.mark.parametrize("error", [OSError("no disk"), SystemExit(1)], ids=repr)
def test_a_plugin_that_fails_to_observe_is_logged_and_lets_the_others_observe(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[float] = []

    def fail() -> None:
        raise error

    plugins = plugins_with(step_finished=fail)
    module = types.ModuleType("other")
    module.step_finished = hookimpl(lambda seconds: heard.append(seconds))  # type: ignore[attr-defined]
    plugins.add(Source("other", "pluribus-other", "0.1"), module)
    plugins.check()
    PluginObserver(plugins).step_finished(Batch({}), 0.5)
    assert heard == [0.5]
    assert caplog.messages == ["plugin 'mine' failed in step_finished"]
