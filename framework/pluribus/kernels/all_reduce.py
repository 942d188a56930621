"""A sum over the ranks of one host in a single launch, through memory that all of them see.

One shot: every rank shows its numbers, waits until all have, and adds up everybody's by itself.
That moves more than a ring does, and takes one exchange of flags instead of many.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch

BLOCK = 2048
"""Numbers of a program."""
MAX_PROGRAMS = 1024


def num_bytes(size: int, capacity: int) -> int:
    """Return how much memory each rank of a group shows the others.

    Args:
        size: ranks in the group.
        capacity: bytes of the largest tensor.
    """
    return 8 * size * MAX_PROGRAMS + 2 * capacity


def all_reduce(x: Tensor, peers: Tensor, turns: Tensor, rank: int, capacity: int) -> None:
    """Sum ``x`` over the ranks in place, in float32 and in the order of ranks: alike on all.

    All ranks make the same calls in the same order. A program's flags count its turns, and its
    numbers go into one of two buffers by turns: who shows the next ones has read all of these, so
    nobody has to be waited for twice.

    Args:
        x: contiguous, of ``capacity`` bytes at most and ``BLOCK * MAX_PROGRAMS`` numbers.
        peers: addresses of each rank's ``num_bytes``, zeros at first, int64, [size].
        turns: that this rank's programs have taken, int64, [MAX_PROGRAMS].
        rank: this one's.
        capacity: bytes of the largest tensor, the same for all calls.
    """
    launch(
        _all_reduce,
        (triton.cdiv(x.numel(), BLOCK),),
        x,
        peers,
        turns,
        rank,
        x.numel(),
        capacity,
        SIZE=len(peers),
        NUMBERS=BLOCK,
        FLAGS=MAX_PROGRAMS,
        num_warps=8,
        **early(x),
    )


@triton.jit(do_not_specialize=["rank"])
def _all_reduce(
    x, peers, turns, rank, num, capacity,
    SIZE: tl.constexpr, NUMBERS: tl.constexpr, FLAGS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    at = program * NUMBERS + tl.arange(0, NUMBERS)
    inside = at < num
    follow(EARLY)
    turn = tl.load(turns + program) + 1
    start = 8 * SIZE * FLAGS + (turn % 2) * capacity
    numbers = tl.pointer_type(x.dtype.element_ty)
    flags = tl.pointer_type(tl.int64)
    here = tl.load(peers + rank)
    mine = (here + start).to(numbers)
    tl.store(mine + at, tl.load(x + at, mask=inside), mask=inside)
    tl.debug_barrier()
    for peer in tl.static_range(SIZE):
        shown = tl.load(peers + peer).to(flags) + rank * FLAGS + program
        tl.atomic_xchg(shown, turn, sem="release", scope="sys")
    for peer in tl.static_range(SIZE):
        seen = here.to(flags) + peer * FLAGS + program
        while tl.atomic_add(seen, 0, sem="acquire", scope="sys") < turn:
            pass
    tl.debug_barrier()
    total = tl.zeros((NUMBERS,), tl.float32)
    for peer in tl.static_range(SIZE):
        theirs = (tl.load(peers + peer) + start).to(numbers)
        # Past the nearest cache, which knows nothing of what others write.
        total += tl.load(theirs + at, mask=inside, cache_modifier=".cg").to(tl.float32)
    tl.store(x + at, total.to(x.dtype.element_ty), mask=inside)
    tl.store(turns + program, turn)


def no_turns(device: torch.device) -> Tensor:
    """Return the turns of a rank that has taken none."""
    return torch.zeros(MAX_PROGRAMS, dtype=torch.int64, device=device)
