"""Move 13 numbers by a kernel that reads and writes as many as it is told.

    python stray.py NUM_READ NUM_WRITTEN

More than 13 are more than there are.
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl

from kernels import guard


@triton.jit
def move(source, target, num_read, num_written, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    numbers = tl.load(source + at, mask=at < num_read, other=0.0)
    tl.store(target + at, numbers, mask=at < num_written)


def main() -> None:
    """Move them under guard."""
    guard.install()
    source, target = torch.arange(13.0), torch.zeros(13)
    move[(1,)](source, target, int(sys.argv[1]), int(sys.argv[2]), WIDTH=16)
    assert target.equal(source)


if __name__ == "__main__":
    main()
