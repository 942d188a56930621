"""A section of YAML becomes a checked dataclass, and says what is wrong in config words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from pluribus import ConfigError, SamplingParams
from pluribus.config import choice, load, pick, section


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
        ({"max_btach_size": 4}, r"batcher.max_btach_size: Key 'max_btach_size' not in"),
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
        section(config, "cache.kv", StaticConfig)
    with pytest.raises(ConfigError, match=r"cache.kv.name must say which plugin"):
        choice(OmegaConf.create({"cache": {"kv": {}}}), "cache.kv")


def test_top_level_settings_are_checked_too() -> None:
    config = load("generate", ["prompt=hello", "max_tokens=3", "seed=7"])
    assert pick(config, SamplingParams) == SamplingParams(max_tokens=3, seed=7)
    with pytest.raises(ConfigError, match="max_tokens must be at least 1, got 0"):
        pick(load("generate", ["prompt=hello", "max_tokens=0"]), SamplingParams)


@pytest.mark.parametrize("override", ["batcher=nonsense", "no.such.key=1", "a b"])
def test_a_wrong_override_is_a_config_error(override: str) -> None:
    with pytest.raises(ConfigError):
        load("serve", [override])
