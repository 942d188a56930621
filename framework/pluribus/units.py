"""Sizes in bytes: as people write them, and of numbers."""

from __future__ import annotations

import re
from decimal import Decimal

from pluribus.errors import ConfigError

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
_ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SIZE = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(_UNITS)})")


def parse_bytes(text: str, setting: str, *, or_else: str | None = None) -> int:
    """Return the bytes in a size such as ``512MiB``, ``1.5GiB`` or ``80GB``.

    Args:
        text: what the user wrote.
        setting: where, in config words.
        or_else: another value the setting may have, for the message only.

    Raises:
        ConfigError: ``text`` is no size, or less than a byte.
    """
    match = _SIZE.fullmatch(text)
    num_bytes = int(Decimal(match[1]) * _UNITS[match[2]]) if match else 0
    if num_bytes < 1:
        allowed = "a size such as 512MiB or 4GiB"
        if or_else is not None:
            allowed = f"{or_else} or {allowed}"
        raise ConfigError(f"{setting} must be {allowed}, got {text!r}")
    return num_bytes


def item_size(dtype: str) -> int:
    """Return the bytes of one number of a dtype by its name, such as ``bfloat16``."""
    return _ITEM_SIZES[dtype]


def format_bytes(num_bytes: int) -> str:
    """Return ``num_bytes`` in the largest binary unit that it fills, such as ``1.5GiB``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if num_bytes >= _UNITS[unit]:
            return f"{num_bytes / _UNITS[unit]:.1f}".removesuffix(".0") + unit
    return f"{num_bytes}B"
