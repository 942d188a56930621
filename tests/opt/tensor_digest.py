"""Compare tensors across processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return what differs whenever a name, a shape or a number differs; a tied head left out."""
    total = hashlib.sha256()
    for name in sorted(tensors.keys() - {"lm_head.weight"}):
        total.update(f"{name} {list(tensors[name].shape)}".encode())
        total.update(tensors[name].numpy().tobytes())
    return total.hexdigest()
