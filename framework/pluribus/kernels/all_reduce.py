"""A sum over the ranks of one host in a single launch, through memory that all of them see.

One shot: every rank shows its numbers, waits until all have, and adds up everybody's by itself.
That moves more than a ring does, and takes one exchange of flags instead of many. Two shots, for
more numbers and more ranks: each adds up a part, and takes the others' parts from them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch

BLOCK = 2048
"""Numbers that a program moves at a time."""
MAX_PROGRAMS = 128
TWO_SHOTS = 2**20
"""Bytes from which on more than two ranks take two shots; measured on four H200s."""


def num_bytes(size: int, capacity: int) -> int:
    """Return how much memory each rank of a group shows the others.

    Args:
        size: ranks in the group.
        capacity: bytes of the largest tensor.
    """
    return 8 * size * MAX_PROGRAMS + 2 * capacity


def all_reduce(x: Tensor, peers: Tensor, turns: Tensor, rank: int, capacity: int) -> None:
    """Sum ``x`` over the ranks in place, in float32 and in the order of ranks: alike on all.

    All ranks make the same calls in the same order. A program's flags count its turns, and
    numbers go into buffers by turns, one of two: who shows the next ones has read all of these,
    so nobody has to be waited for at the end.

    Args:
        x: contiguous, of ``capacity`` bytes at most.
        peers: addresses of each rank's ``num_bytes``, zeros at first, int64, [size].
        turns: that this rank's programs have taken, int64, [MAX_PROGRAMS].
        rank: this one's.
        capacity: bytes of the largest tensor, the same for all calls, a multiple of 16.
    """
    size, num = len(peers), x.numel()
    shots = 2 if size > 2 and x.nbytes >= TWO_SHOTS else 1
    # A rank's part, and of that a program's share: whole blocks, so that they are aligned.
    num_blocks = triton.cdiv(triton.cdiv(num, size if shots == 2 else 1), BLOCK)
    share = triton.cdiv(num_blocks, MAX_PROGRAMS) * BLOCK
    launch(
        _all_reduce,
        (triton.cdiv(num_blocks * BLOCK, share),),
        x,
        peers,
        turns,
        rank,
        num,
        num_blocks * BLOCK,
        share,
        capacity,
        SIZE=size,
        PEERS=triton.next_power_of_2(size),
        SHOTS=shots,
        NUMBERS=BLOCK,
        FLAGS=MAX_PROGRAMS,
        num_warps=8,
        **early(x),
    )


@triton.jit(do_not_specialize=["rank"])
def _all_reduce(
    x, peers, turns, rank, num, part, share, capacity,
    SIZE: tl.constexpr, PEERS: tl.constexpr, SHOTS: tl.constexpr, NUMBERS: tl.constexpr,
    FLAGS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    first = program * share
    end = tl.minimum(first + share, part)
    follow(EARLY)
    turn = tl.load(turns + program) + 1
    numbers: tl.constexpr = tl.pointer_type(x.dtype.element_ty)
    start = 8 * SIZE * FLAGS + turn % 2 * capacity
    mine = _buffer(peers, rank, start, numbers)
    PARTS: tl.constexpr = SIZE if SHOTS == 2 else 1
    for each in tl.static_range(PARTS):
        for block in range(first, end, NUMBERS):
            at = each * part + block + tl.arange(0, NUMBERS)
            tl.store(mine + at, tl.load(x + at, mask=at < num), mask=at < num)
    _meet(peers, rank, program, 2 * turn, SIZE, PEERS, FLAGS)
    own = rank * part if SHOTS == 2 else 0
    for block in range(first, end, NUMBERS):
        at = own + block + tl.arange(0, NUMBERS)
        total = tl.zeros((NUMBERS,), tl.float32)
        for peer in tl.static_range(SIZE):
            theirs = _buffer(peers, peer, start, numbers)
            # Past the nearest cache, which knows nothing of what others write.
            total += tl.load(theirs + at, mask=at < num, cache_modifier=".cg").to(tl.float32)
        tl.store(x + at, total.to(x.dtype.element_ty), mask=at < num)
        if SHOTS == 2:
            # In place of what nobody else reads: the others have parts of their own to add up.
            tl.store(mine + at, total.to(x.dtype.element_ty), mask=at < num)
    if SHOTS == 2:
        _meet(peers, rank, program, 2 * turn + 1, SIZE, PEERS, FLAGS)
        for peer in tl.static_range(SIZE):
            if peer != rank:
                sums = _buffer(peers, peer, start, numbers)
                for block in range(first, end, NUMBERS):
                    at = peer * part + block + tl.arange(0, NUMBERS)
                    total = tl.load(sums + at, mask=at < num, cache_modifier=".cg")
                    tl.store(x + at, total, mask=at < num)
    # Those that this call had no work for take their turn as well: all are in the same buffer.
    others = program + tl.arange(0, FLAGS) * tl.num_programs(0)
    tl.store(turns + others, turn, mask=others < FLAGS)


@triton.jit
def _buffer(peers, rank, start, numbers: tl.constexpr):
    """Return where a rank's buffer begins: at a multiple of what a thread reads at once."""
    return tl.multiple_of((tl.load(peers + rank) + start).to(numbers), 16)


@triton.jit
def _meet(peers, rank, program, turn, SIZE: tl.constexpr, PEERS: tl.constexpr, FLAGS: tl.constexpr):
    """Wait until this program has come as far on every rank; a thread each tells and looks."""
    flags = tl.pointer_type(tl.int64)
    peer = tl.arange(0, PEERS)
    is_peer = peer < SIZE
    shown = tl.load(peers + peer, mask=is_peer, other=0).to(flags) + rank * FLAGS + program
    seen = tl.load(peers + rank).to(flags) + peer * FLAGS + program
    tl.debug_barrier()
    tl.atomic_xchg(shown, turn, mask=is_peer, sem="release", scope="sys")
    behind = 1
    while behind > 0:
        at = tl.atomic_add(seen, 0, mask=is_peer, sem="acquire", scope="sys")
        behind = tl.sum((is_peer & (at < turn)).to(tl.int32), 0)
    tl.debug_barrier()


def no_turns(device: torch.device) -> Tensor:
    """Return the turns of a rank that has taken none."""
    return torch.zeros(MAX_PROGRAMS, dtype=torch.int64, device=device)
