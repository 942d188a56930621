"""Broken plugins stop the launch in words that name them; good ones are found by kind and name."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from importlib.metadata import Distribution, EntryPoint
from typing import Any

import pytest

from pluribus import Batch, Batcher, ConfigError, Generation, KVLedger, PluginError, hookimpl
from pluribus.plugins import BATCHER, MODEL, Plugins, Source, discover


class Fifo(Batcher):
    Config = object

    def __init__(self, config: Any, ledger: KVLedger) -> None: ...
    def add(self, generation: Generation) -> None: ...
    def next_batch(self) -> Batch | None:
        return None

    def finish(self, generation: Generation) -> None: ...

    @property
    def num_waiting(self) -> int:
        return 0

    @property
    def num_running(self) -> int:
        return 0


class Forgetful(Batcher):
    """Has only half of what a batcher needs."""

    Config = object

    def __init__(self, config: Any, ledger: KVLedger) -> None: ...
    def next_batch(self) -> Batch | None:
        return None

    @property
    def num_waiting(self) -> int:
        return 0

    @property
    def num_running(self) -> int:
        return 0


def plugin(**members: Any) -> types.ModuleType:
    module = types.ModuleType("static")
    for name, member in members.items():
        setattr(module, name, hookimpl(member) if callable(member) else member)
    return module


def offering(name: str, offered: object) -> types.ModuleType:
    def register_batchers() -> Any:
        return {name: offered}

    return plugin(register_batchers=register_batchers)


def load(*modules: object, names: tuple[str, ...] = ("static", "other")) -> Plugins:
    plugins = Plugins()
    for name, module in zip(names, modules, strict=False):
        plugins.add(Source(name, f"pluribus-{name}", "0.1"), module)
    plugins.collect()
    return plugins


def test_a_plugin_offers_a_class_under_a_name() -> None:
    plugins = load(offering("fifo", Fifo))
    plugins.check()
    assert plugins.find(BATCHER, "fifo") is Fifo


def test_an_unknown_name_is_answered_with_those_installed() -> None:
    plugins = load(offering("fifo", Fifo))
    with pytest.raises(
        ConfigError, match=r"batcher.name: no batcher is called 'fifa'; installed: fifo"
    ):
        plugins.find(BATCHER, "fifa")
    with pytest.raises(ConfigError, match="installed: none"):
        plugins.find(MODEL, "opt")


def _misspelt() -> types.ModuleType:
    def register_batcher() -> Mapping[str, type[Batcher]]:
        return {}

    return plugin(register_batcher=register_batcher)


def _wrong_argument() -> types.ModuleType:
    def step_finished(batsch: Batch) -> None: ...

    return plugin(step_finished=step_finished)


def _raising() -> types.ModuleType:
    def register_batchers() -> Mapping[str, type[Batcher]]:
        raise RuntimeError("no such library")

    return plugin(register_batchers=register_batchers)


def _async() -> types.ModuleType:
    async def register_batchers() -> Mapping[str, type[Batcher]]:
        return {}

    return plugin(register_batchers=register_batchers)


def _wrapper() -> types.ModuleType:
    module = types.ModuleType("static")

    @hookimpl(wrapper=True)
    def register_batchers() -> Any:
        return (yield)

    module.register_batchers = register_batchers  # type: ignore[attr-defined]
    return module


def _not_a_mapping() -> types.ModuleType:
    def register_batchers() -> Any:
        return [Fifo]

    return plugin(register_batchers=register_batchers)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        pytest.param(_misspelt, "unknown hook 'register_batcher'", id="misspelt hook"),
        pytest.param(_wrong_argument, "'batsch'", id="wrong argument"),
        pytest.param(_raising, "RuntimeError: no such library", id="raises"),
        pytest.param(_async, "must not be async", id="async"),
        pytest.param(_wrapper, "must not be a wrapper", id="wrapper"),
        pytest.param(_not_a_mapping, "must return a mapping", id="not a mapping"),
        pytest.param(
            lambda: offering("fifo", Fifo(None, None)),  # type: ignore[arg-type]
            "must be a subclass of pluribus.Batcher",
            id="instance, not class",
        ),
        pytest.param(
            lambda: offering("fifo", dict), "must be a subclass of pluribus.Batcher", id="other"
        ),
        pytest.param(lambda: offering("fifo", Forgetful), "lacks add, finish", id="abstract"),
        pytest.param(
            lambda: plugin(pluribus_api_version=2),
            "written for version 2 of the plugin API and this Pluribus has version 1",
            id="API version",
        ),
    ],
)
def test_a_broken_plugin_is_named_with_its_distribution_and_the_way_out(
    make: Callable[[], types.ModuleType], fault: str
) -> None:
    plugins = load(make())
    with pytest.raises(PluginError) as caught:
        plugins.check()
    message = str(caught.value)
    assert fault in message
    assert "plugin 'static' (pluribus-static 0.1)" in message
    assert "PLURIBUS_DISABLE_PLUGINS=static" in message


def test_two_plugins_cannot_offer_one_name() -> None:
    plugins = load(offering("fifo", Fifo), offering("fifo", Fifo))
    with pytest.raises(PluginError, match=r"'fifo' is offered by both .*static.* and .*other"):
        plugins.check()


def test_two_plugins_cannot_have_one_name() -> None:
    plugins = load(offering("fifo", Fifo), offering("lifo", Fifo), names=("static", "static"))
    with pytest.raises(PluginError, match="has the name of plugin 'static'"):
        plugins.check()


def test_a_good_plugin_beside_a_broken_one_is_still_listed() -> None:
    plugins = load(_misspelt(), offering("fifo", Fifo))
    assert [row["name"] for row in plugins.describe()] == ["fifo"]
    assert len(plugins.problems) == 1


def test_all_problems_are_told_at_once() -> None:
    plugins = load(_misspelt(), _raising())
    with pytest.raises(PluginError) as caught:
        plugins.check()
    assert "'static'" in str(caught.value)
    assert "'other'" in str(caught.value)


def test_search_paths_come_from_every_plugin() -> None:
    def config_search_path() -> list[str]:
        return ["pkg://static.conf"]

    assert load(plugin(config_search_path=config_search_path)).search_paths() == [
        "pkg://static.conf"
    ]


class _FakeDistribution(Distribution):
    def read_text(self, filename: str) -> str | None:
        return "Name: pluribus-static\nVersion: 0.1\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return path


def _entry(name: str, value: str) -> EntryPoint:
    entry = EntryPoint(name=name, value=value, group="pluribus")
    vars(entry).update(dist=_FakeDistribution())
    return entry


def test_a_plugin_that_cannot_be_imported_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = [_entry("broken", "no_such_module"), _entry("batchers", "pluribus_batchers")]
    plugins = discover(entries)
    assert "bucket" in plugins.choices(BATCHER)
    with pytest.raises(PluginError, match=r"plugin 'broken' \(pluribus-static 0.1\) could not be"):
        plugins.check()
    monkeypatch.setenv("PLURIBUS_DISABLE_PLUGINS", "broken, nothing")
    discover(entries).check()


def test_our_own_plugins_come_in_through_the_entry_points() -> None:
    plugins = discover()
    plugins.check()
    assert {"parallel", "opt", "batchers", "caches"} <= set(plugins.sources)
    rows = {(row["kind"], row["name"]): row for row in plugins.describe()}
    assert rows["batcher", "bucket"]["distribution"] == "pluribus"
    assert rows["KV cache", "contiguous"]["selected_by"] == "cache.kv.name=contiguous"
