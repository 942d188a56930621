"""What people are told of an error."""

from __future__ import annotations

import torch

from pluribus.errors import ConfigError, describe


def test_what_is_refused_is_said_as_it_is() -> None:
    assert describe(ConfigError("dtype=int3 is\n no dtype")) == "dtype=int3 is no dtype"


def test_what_is_a_bug_is_said_with_its_kind() -> None:
    assert describe(KeyError("slot")) == "KeyError: 'slot'"


def test_where_memory_is_out_settings_are_named() -> None:
    for error in (torch.OutOfMemoryError("Tried to allocate 2 GiB"), MemoryError()):
        said = describe(error)
        assert said.startswith(f"{type(error).__name__}: {error}; lower ")
        assert "cache.kv.memory" in said
        assert "batcher.max_batch_tokens" in said
