"""The kinds of number that weights may be of; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DTYPES: Mapping[str, str] = MappingProxyType(
    {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
)
"""Torch's names, and safetensors' names for the same; what else there is cannot be served."""
