"""What a value must be to go into a field, by the field's annotation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

# Exact types: to Python a bool is an int, and what only acts like one cannot be sent on.


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_int_or_none(value: Any) -> bool:
    return value is None or type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _are_texts(value: Any) -> bool:
    return _is_list(value) and all(type(text) is str for text in value)


def _are_ints(value: Any) -> bool:
    return _is_list(value) and all(map(_is_int, value))


def _are_biases(value: Any) -> bool:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    return _is_list(pairs) and all(
        _is_list(pair) and len(pair) == 2 and _is_int(pair[0]) and _is_number(pair[1])
        for pair in pairs
    )


TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = MappingProxyType(
    {
        "int": (_is_int, "a whole number"),
        "int | None": (_is_int_or_none, "a whole number or None"),
        "float": (_is_number, "a number"),
        "bool": (_is_bool, "True or False"),
        "tuple[str, ...]": (_are_texts, "a tuple of texts"),
        "tuple[int, ...]": (_are_ints, "a tuple of whole numbers"),
        "tuple[tuple[int, float], ...]": (_are_biases, "a tuple of (id, number) pairs"),
    }
)
"""For each annotation: whether a value is one, and how to say what is one."""
