"""Broken plugins stop the launch in words that name them; good ones are found by kind and name."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pluribus import Batch, Batcher, ConfigError, Generation, KVLedger, PluginError, hookimpl
from pluribus.assembly import assemble
from pluribus.plugins import BATCHER, MODEL, Plugins, Source, discover


@dataclass(frozen=True, slots=True)
class FifoConfig:
    max_batch_size: int = 4


class Fifo(Batcher):
    Config = FifoConfig

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

    Config = FifoConfig

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


def returning(hook: str, value: object) -> types.ModuleType:
    return plugin(**{hook: lambda: value})


def _forgotten() -> types.ModuleType:
    """Return a plugin that marks one of its hooks only."""
    module = offering("fifo", Fifo)
    module.register_models = dict  # type: ignore[attr-defined]
    module.generation_finished = lambda generation: None  # type: ignore[attr-defined]
    return module


def _leaving() -> types.ModuleType:
    def register_batchers() -> Mapping[str, type[Batcher]]:
        raise SystemExit(3)

    return plugin(register_batchers=register_batchers)


def configured(config: object) -> types.ModuleType:
    return offering("fifo", type("Fifo", (Fifo,), {"Config": config}))


@dataclass(frozen=True)
class Unlimited:
    max_bach_size: int = 4


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        pytest.param(_misspelt, "unknown hook 'register_batcher'", id="misspelt hook"),
        pytest.param(_wrong_argument, "'batsch'", id="wrong argument"),
        pytest.param(_raising, "RuntimeError: no such library", id="raises"),
        pytest.param(_async, "must not be async", id="async"),
        pytest.param(_wrapper, "must not be a wrapper", id="wrapper"),
        pytest.param(
            lambda: returning("register_batchers", [Fifo]),
            "must return a mapping of names to classes, not [",
            id="not a mapping",
        ),
        pytest.param(_leaving, "register_batchers failed: SystemExit: 3", id="leaves"),
        pytest.param(lambda: 5, "its entry point must name a module, not 5", id="number"),
        pytest.param(lambda: None, "its entry point must name a module, not None", id="None"),
        pytest.param(lambda: Fifo, "its entry point must name a module, not <class", id="class"),
        pytest.param(
            lambda: types.ModuleType("bare"), "no function in bare is a hook", id="no hook"
        ),
        pytest.param(
            _forgotten,
            "hook generation_finished must be marked with @pluribus.hookimpl",
            id="forgotten mark",
        ),
        pytest.param(
            lambda: returning("register_batchers", {5: Fifo}),
            "batcher 5 must have a text for a name",
            id="name is a number",
        ),
        pytest.param(
            lambda: returning("register_batchers", {"": Fifo}),
            "batcher '' must have a text for a name",
            id="no name",
        ),
        pytest.param(
            lambda: configured(None),
            "must have a dataclass called Config for the settings in the batcher section, not None",
            id="no Config",
        ),
        pytest.param(lambda: configured(dict), "must have a dataclass called", id="other Config"),
        pytest.param(
            lambda: configured(FifoConfig()), "must have a dataclass called", id="made Config"
        ),
        pytest.param(
            lambda: configured(Unlimited),
            "must have max_batch_size in its Config, Unlimited",
            id="no max_batch_size",
        ),
        *(
            pytest.param(
                lambda value=value: returning("config_search_path", value),
                f"config_search_path must return a list of folders such as "
                f"pkg://package.conf, not {value!r}",
                id=f"search path {value!r}",
            )
            for value in (5, [5], "pkg://static.conf")
        ),
        *(
            pytest.param(
                lambda folder=folder: returning("config_search_path", [folder]),
                f"cannot bring the config choices in {folder!r}: {why}",
                id=f"folder {folder!r}",
            )
            for folder, why in {
                "pkg://no_such_package.conf": "ModuleNotFoundError: No module named 'no_such",
                "file:///no/such/folder": "ValueError: there is no such folder",
                "conf": "ValueError: a folder is given as pkg://package.conf or file:///path",
            }.items()
        ),
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
        pytest.param(
            lambda: plugin(pluribus_api_version="1"),
            "written for version '1' of the plugin API and this Pluribus has version 1",
            id="API version in quotes",
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


def test_one_module_cannot_be_two_plugins() -> None:
    module = offering("fifo", Fifo)
    with pytest.raises(PluginError, match=r"'other'.* is the same module as plugin 'static'"):
        load(module, module).check()


def bringing(folder: Path, *files: str) -> types.ModuleType:
    """Return a plugin with a folder of config choices."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("name: fifo\n")
    return returning("config_search_path", [f"file://{folder}"])


def test_search_paths_come_from_every_plugin(tmp_path: Path) -> None:
    plugins = load(
        bringing(tmp_path / "a", "batcher/fifo.yaml"), bringing(tmp_path / "b", "batcher/lifo.yaml")
    )
    plugins.check()
    assert plugins.search_paths == [f"file://{tmp_path}/a", f"file://{tmp_path}/b"]


def test_a_config_choice_cannot_stand_in_for_one_of_ours(tmp_path: Path) -> None:
    plugins = load(bringing(tmp_path, "batcher/fifo.yaml", "batcher/bucket.yaml"))
    with pytest.raises(PluginError) as caught:
        plugins.check()
    assert str(caught.value).startswith(
        f"plugin 'static' (pluribus-static 0.1): batcher/bucket.yaml in file://{tmp_path} is the "
        "name of a file of Pluribus itself; "
    )


def test_a_config_choice_cannot_stand_in_for_another_plugin_s(tmp_path: Path) -> None:
    plugins = load(
        bringing(tmp_path / "a", "cache/kv/x.yaml"), bringing(tmp_path / "b", "cache/kv/x.yaml")
    )
    with pytest.raises(PluginError, match=r"'other'.*cache/kv/x.yaml in .* of plugin 'static'"):
        plugins.check()


def test_a_plugin_that_offers_no_choice_is_listed_with_its_hooks() -> None:
    plugins = load(
        plugin(step_finished=lambda batch, seconds: None, register_routes=lambda service: []),
        plugin(pluribus_api_version=2),
    )
    assert plugins.describe() == []
    assert plugins.describe_sources() == [
        {
            "plugin": "static",
            "distribution": "pluribus-static",
            "version": "0.1",
            "hooks": ["register_routes", "step_finished"],
        },
        {"plugin": "other", "distribution": "pluribus-other", "version": "0.1", "hooks": []},
    ]


def refusing(error: BaseException) -> types.ModuleType:
    """Return a plugin whose Config does not take its own defaults."""

    @dataclass(frozen=True)
    class Refusing:
        max_batch_size: int = 4

        def __post_init__(self) -> None:
            raise error

    return configured(Refusing)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            ValueError("max_batch_size must\nbe odd"),
            ConfigError,
            r"^batcher: max_batch_size must be odd, says plugin 'static' \(pluribus-static 0.1\)$",
        ),
        (ConfigError("batcher.max_batch_size must be odd"), ConfigError, "^batcher.max_batch_size"),
        (
            ZeroDivisionError("division by zero"),
            PluginError,
            r"^plugin 'static' .*: batcher 'fifo' failed on the settings in batcher: "
            "ZeroDivisionError: division by zero; fix or uninstall pluribus-static",
        ),
        (SystemExit(1), PluginError, "batcher 'fifo' failed on .*: SystemExit: 1"),
    ],
    ids=repr,
)
def test_settings_that_a_plugin_refuses_are_refused_in_its_name(
    error: BaseException, kind: type[Exception], message: str
) -> None:
    config = OmegaConf.create({"batcher": {"name": "fifo"}})
    with pytest.raises(kind, match=message):
        assemble(config, load(refusing(error)))


class _FakeDistribution(Distribution):
    def read_text(self, filename: str) -> str | None:
        return "Name: pluribus-static\nVersion: 0.1\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return path


def test_a_plugin_cannot_end_the_launch_by_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving_plugin.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"'leaving' .*could not be loaded: SystemExit: 0; fix"):
        discover([_entry("leaving", "leaving_plugin")]).check()


def test_an_interrupt_is_no_plugin_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted_plugin.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        discover([_entry("interrupted", "interrupted_plugin")])


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
    with pytest.raises(PluginError, match=r"plugin 'broken' \(pluribus-static 0.1\): could not be"):
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
