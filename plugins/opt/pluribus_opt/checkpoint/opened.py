"""What one file of weights holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Opened:
    """What one file of weights holds, its tensors mapped.

    Attributes:
        entries: by the file's own names: tensors, unless something is wrong.
        is_pickle: written by ``torch.save``; safetensors otherwise.
        is_wrapped: a trainer put the entries under ``model``.
        shard_metadata: what FSDP put beside them, as the file has it.
    """

    entries: Mapping[str, object]
    is_pickle: bool = False
    is_wrapped: bool = False
    shard_metadata: object = None
