"""Random numbers that are a function of what they are for."""

from __future__ import annotations

import torch
from torch import Tensor

GAMMA = -7046029254386353131
"""splitmix64's step: 2^64 divided by the golden ratio, made odd, as int64."""


def exponential(seed: Tensor, position: Tensor, draw: int, ids: Tensor) -> Tensor:
    """Return independent standard exponentials, one for each (seed, position, draw, id).

    They are splitmix64 streams (Steele, Lea and Flood, 2014), told apart by the first three.

    Args:
        seed, position: int64, [num_rows].
        draw: tells the draws for one position apart.
        ids: int64, broadcast with [num_rows, 1].

    Returns:
        float32, all of them above 0 and finite.
    """
    stream = _mix(seed ^ _mix(position + (draw << 32)))
    bits = _shift(_mix(stream[:, None] + ids * GAMMA), 32)
    # Small ones win races, so it is near 0 that the numbers must lie close.
    uniform = (bits.to(torch.float32) + 0.5) * 2.0**-32
    return -torch.log1p(-uniform.clamp_(max=1 - 2.0**-24))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros: torch has no unsigned arithmetic."""
    return (x >> by) & ((1 << (64 - by)) - 1)
