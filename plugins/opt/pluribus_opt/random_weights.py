"""Random weights, for trying out speed and memory without a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from pluribus.interfaces import Progress
    from pluribus_opt.config import OPTConfig
    from pluribus_opt.parts import Part

STANDARD_DEVIATION = 0.02


class RandomSource:
    """What ``model.checkpoint=random`` stands for; used like a checkpoint's Source."""

    where = "random weights"
    config: dict[str, Any] | None = None
    config_where: str | None = None
    tokenizer_folder: Path | None = None
    fingerprint = "random"

    def open(self, architecture: OPTConfig) -> RandomSource:
        """Return itself: there is nothing to fetch."""
        return self

    def read_into(self, parts: Sequence[Part], progress: Progress) -> None:
        """Fill every part with its piece of a tensor that only its name decides.

        So ranks agree on what they share, however the network is split. As transformers
        starts OPT: matrices are normal, norms 1, biases 0.
        """
        total = sum(part.target.nbytes for part in parts)
        done = 0
        for part in parts:
            _fill(part)
            done += part.target.nbytes
            progress(done, total)


def _fill(part: Part) -> None:
    if len(part.shape) == 1:
        part.target.fill_(1 if part.name.endswith("norm.weight") else 0)
    else:
        whole = _normal(part)
        part.fill(part.plain_dtype, lambda index, target: _copy(whole[index], target))


def _copy(piece: Tensor, target: Tensor) -> None:
    target.copy_(piece)


def _normal(part: Part) -> Tensor:
    import torch

    generator = torch.Generator(part.target.device)
    generator.manual_seed(int.from_bytes(hashlib.sha256(part.name.encode()).digest()[:8], "big"))
    whole = torch.empty(part.shape, dtype=part.plain_dtype, device=part.target.device)
    return whole.normal_(std=STANDARD_DEVIATION, generator=generator)
