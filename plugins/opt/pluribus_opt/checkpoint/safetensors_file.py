"""Write safetensors a piece at a time; the library's own writer wants a whole file in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from pluribus_opt.checkpoint.dtypes import DTYPES
from pluribus_opt.checkpoint.shapes import Shape


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to write.

    Attributes:
        name: canonical; files have it with ``model.`` in front, as Hugging Face does.
        dtype: torch's name for what is to be written.
    """

    name: str
    shape: Shape
    dtype: str

    @property
    def stored_name(self) -> str:
        """Its name in the file."""
        return f"model.{self.name}" if self.name.startswith("decoder.") else self.name

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        itemsize: int = getattr(torch, self.dtype).itemsize
        return prod(self.shape) * itemsize


def header_of(tensors: Sequence[Planned]) -> bytes:
    """Return what comes before the numbers of ``tensors``, which follow in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        entries[tensor.stored_name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (start, start + tensor.num_bytes),
        }
        start += tensor.num_bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that numbers are aligned
    return len(header).to_bytes(8, "little") + header


def bytes_of(numbers: Tensor) -> memoryview:
    """Return the bytes of contiguous numbers, as they are in memory."""
    flat: Any = numbers.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
