"""Sizes in bytes, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluribus import ConfigError
from pluribus.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1B", 1),
        ("512MiB", 512 * 2**20),
        ("4GiB", 4 * 2**30),
        ("4 GiB", 4 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("0.5KiB", 512),
        ("80GB", 80 * 10**9),
        ("2TiB", 2**41),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert parse_bytes(text, "cache.kv.memory") == num_bytes


@pytest.mark.parametrize(
    "text",
    ["", "4", "GiB", "4gib", "-1GiB", "0GiB", "0.1B", "1e3MiB", "4GiB ", "\u0661GiB", "4GiBs"],
)
def test_what_is_no_size_is_refused_with_the_setting_to_change(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_bytes(text, "cache.kv.memory")
    said = f"cache.kv.memory must be a size such as 512MiB or 4GiB, got {text!r}"
    assert str(refused.value) == said


def test_a_refusal_tells_what_else_the_setting_may_be() -> None:
    with pytest.raises(ConfigError, match=r"^x must be auto or a size such as"):
        parse_bytes("lots", "x", or_else="auto")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (3 * 2**29, "1.5GiB"),
        (512 * 2**20, "512MiB"),
        (5000 * 2**40, "5000TiB"),
    ],
)
def test_sizes_are_told_in_the_largest_unit_they_fill(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(st.integers(1, 2**60))
def test_what_is_told_can_be_written_back(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes), "x") == pytest.approx(num_bytes, rel=0.05)
