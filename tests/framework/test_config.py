"""A section of YAML becomes a checked dataclass, and says what is wrong in config words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pluribus import ConfigError, SamplingParams
from pluribus.composition import add_search_paths, load
from pluribus.config import choice, pick, section
from pluribus.offline import GenerateConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticConfig:
    max_batch_size: int = 16
    pinned: list[dict[str, Any]] = field(default_factory=list)
    memory: str | None = None

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigError(
                f"batcher.max_batch_size must be at least 1, got {self.max_batch_size}"
            )


def read(**settings: object) -> StaticConfig:
    config = OmegaConf.create({"batcher": {"name": "static", **settings}})
    return section(config, "batcher", StaticConfig)


def test_what_is_not_said_takes_its_default() -> None:
    assert read(max_batch_size=4) == StaticConfig(max_batch_size=4)


def test_nested_values_are_plain_python() -> None:
    assert type(read(pinned=[{"prompt": "a"}]).pinned[0]) is dict


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_btach_size": 4},
            r"^batcher.max_btach_size: there is no such.*did you mean max_batch_size",
        ),
        ({"max_batch_size": "many"}, r"batcher.max_batch_size: Value 'many' of type 'str'"),
        ({"max_batch_size": None}, r"batcher.max_batch_size"),
        ({"max_batch_size": 0}, r"^batcher.max_batch_size must be at least 1, got 0$"),
        ({"memory": "${nowhere}"}, r"batcher: Interpolation key 'nowhere' not found"),
    ],
    ids=["unknown key", "wrong type", "null", "refused", "interpolation"],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(**settings)


def test_a_section_that_is_not_there_says_how_to_choose_one() -> None:
    config = OmegaConf.create({"cache": {"kv": None}})
    with pytest.raises(ConfigError, match=r"cache.kv must be a section, got None.*cache/kv=NAME"):
        choice(config, "cache.kv")
    with pytest.raises(ConfigError, match=r"got None; its settings are cache.kv.max_batch_size, "):
        section(config, "cache.kv", StaticConfig)
    with pytest.raises(ConfigError, match=r"cache.kv.name must say which plugin"):
        choice(OmegaConf.create({"cache": {"kv": {}}}), "cache.kv")


def test_top_level_settings_are_checked_too() -> None:
    config = load("generate", ["prompt=hello", "max_tokens=3", "seed=7"])
    assert pick(config, GenerateConfig).params() == SamplingParams(max_tokens=3, seed=7)
    with pytest.raises(ConfigError, match="max_tokens must be at least 1, got 0"):
        pick(load("generate", ["prompt=hello", "max_tokens=0"]), GenerateConfig).params()
    with pytest.raises(ConfigError, match="max_tokens: Value 'many' of type 'str'"):
        pick(load("generate", ["prompt=hello", "max_tokens=many"]), GenerateConfig)


@dataclass(frozen=True, slots=True)
class Outer:
    inner: StaticConfig = field(default_factory=StaticConfig)


def test_frozen_dataclasses_may_be_nested() -> None:
    config = OmegaConf.create({"outer": {"inner": {"max_batch_size": 3}}})
    assert section(config, "outer", Outer).inner.max_batch_size == 3


@pytest.mark.parametrize(
    "override", ["batcher=nonsense", "no.such.key=1", "a b", "+foo=bar", "+sever.port=1"]
)
def test_a_wrong_override_is_a_config_error(override: str) -> None:
    with pytest.raises(ConfigError):
        load("serve", [override])


@pytest.fixture
def plugin_folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder of choices that a plugin brings, Hydra having been told."""
    add_search_paths([f"file://{tmp_path}"])
    yield tmp_path
    add_search_paths([])


def test_a_plugin_may_bring_a_section_of_its_own(plugin_folder: Path) -> None:
    (plugin_folder / "guard").mkdir()
    (plugin_folder / "guard" / "strict.yaml").write_text("limit: 5\n")
    assert load("serve", ["+guard=strict", "guard.limit=6"]).guard == {"limit": 6}
    with pytest.raises(ConfigError, match="garud: there is no such setting; did you mean guard"):
        load("serve", ["+garud.limit=6"])


def test_a_folder_that_is_gone_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="the current folder cannot be used: No such file"):
        load("serve", [])
