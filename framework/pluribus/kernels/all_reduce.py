"""Sums over the ranks of one host in a single launch, through memory that all of them see.

One shot: every rank shows its numbers, waits until all have, and adds up everybody's by itself.
That moves more than a ring does, and takes one exchange of flags instead of many. Two shots, for
more numbers and more ranks: each adds up some rows, and takes the others' sums from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch
from pluribus.kernels.norm import normalise, warps_of_row

BLOCK = 2048
"""Numbers that a program moves at a time where they are in no rows."""
MAX_PROGRAMS = 128
"""Each waits for one of every other rank, so there are never more than devices run at once."""
TWO_SHOTS = 2**19
"""Bytes from which on more than two ranks take two shots; measured on four H200s, with norms."""


def num_bytes(size: int, capacity: int) -> int:
    """Return how much memory each rank of a group shows the others.

    Args:
        size: ranks in the group.
        capacity: bytes of the largest tensor.
    """
    return 8 * size * MAX_PROGRAMS + 2 * capacity


@dataclass(frozen=True, slots=True, eq=False)
class Peers:
    """What a rank knows of the memory that all of them see.

    A program's flags count its turns, and numbers go into buffers by turns, one of two: who shows
    the next ones has read all of these, so nobody has to be waited for at the end.

    Attributes:
        addresses: of each rank's ``num_bytes``, zeros at first, int64, [size].
        turns: that this rank's programs have taken, int64, [MAX_PROGRAMS].
        rank: this one's.
        capacity: bytes of the largest tensor, a multiple of 16.
        num_programs: the most that every rank's device runs at once, up to MAX_PROGRAMS.
    """

    addresses: Tensor
    turns: Tensor
    rank: int
    capacity: int
    num_programs: int

    @classmethod
    def new(cls, addresses: Tensor, rank: int, capacity: int, num_processors: int) -> Peers:
        """Return what a rank knows that has taken no turn.

        Args:
            addresses, rank, capacity: see the attributes.
            num_processors: multiprocessors of the smallest of all ranks' devices.
        """
        turns = torch.zeros(MAX_PROGRAMS, dtype=torch.int64, device=addresses.device)
        return cls(addresses, turns, rank, capacity, min(MAX_PROGRAMS, num_processors))


def all_reduce(x: Tensor, peers: Peers) -> None:
    """Sum ``x`` over the ranks in place, in float32 and in the order of ranks: alike on all.

    All ranks make the same calls of both functions, with the same shapes, in the same order.

    Args:
        x: contiguous, of ``peers.capacity`` bytes at most.
        peers: the ranks.
    """
    _launch(x, x, None, None, (x, x), peers, row_size=BLOCK, num_warps=8)


def add_layer_norm(
    x: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    peers: Peers,
) -> tuple[Tensor, Tensor]:
    """Return ``x`` plus the sum of ``delta`` over the ranks, and its LayerNorm.

    To the bits, what ``all_reduce`` and then ``kernels.norm.add_layer_norm`` return.

    Args:
        x, delta: [num_rows, size], contiguous, of ``peers.capacity`` bytes at most.
        weight, bias: [size]; both or neither.
        eps: added to the variance. Statistics are in float32.
        peers: the ranks.
    """
    results = torch.empty_like(x), torch.empty_like(x)
    size = x.shape[1]
    num_warps = warps_of_row(triton.next_power_of_2(size))
    _launch(delta, x, weight, bias, results, peers, row_size=size, num_warps=num_warps, eps=eps)
    return results


def num_shots(size: int, num_bytes: int) -> int:
    """Return how many exchanges a sum of so many bytes takes, over a group of ``size``."""
    return 2 if size > 2 and num_bytes >= TWO_SHOTS else 1


def _launch(
    delta: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    results: tuple[Tensor, Tensor],
    peers: Peers,
    *,
    row_size: int,
    num_warps: int,
    eps: float | None = None,
) -> None:
    """Sum ``delta``; with ``eps``, add ``x`` and normalise as well, else leave the sum there."""
    num, size = delta.numel(), len(peers.addresses)
    num_rows = triton.cdiv(num, row_size)
    launch(
        _all_reduce,
        (min(num_rows, peers.num_programs),),
        delta,
        x,
        x if weight is None else weight,
        x if bias is None else bias,
        *results,
        eps or 0.0,
        num,
        row_size,
        num_rows,
        peers.addresses,
        peers.turns,
        peers.rank,
        peers.capacity,
        SIZE=size,
        PEERS=triton.next_power_of_2(size),
        SHOTS=num_shots(size, delta.nbytes),
        FLAGS=MAX_PROGRAMS,
        NUMBERS=triton.next_power_of_2(row_size),
        NORMS=eps is not None,
        AFFINE=weight is not None,
        num_warps=num_warps,
        **early(delta),
    )


@triton.jit(do_not_specialize=["num_rows", "rank"])
def _all_reduce(
    delta, x, weight, bias, total, normed, eps, num, row_size, num_rows,
    peers, turns, rank, capacity,
    SIZE: tl.constexpr, PEERS: tl.constexpr, SHOTS: tl.constexpr, FLAGS: tl.constexpr,
    NUMBERS: tl.constexpr, NORMS: tl.constexpr, AFFINE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    inner = tl.arange(0, NUMBERS)
    in_row = inner < row_size
    if AFFINE:
        scale = tl.load(weight + inner, mask=in_row, other=0.0).to(tl.float32)
        shift = tl.load(bias + inner, mask=in_row, other=0.0).to(tl.float32)
    follow(EARLY)
    turn = tl.load(turns + program) + 1
    numbers: tl.constexpr = tl.pointer_type(delta.dtype.element_ty)
    start = 8 * SIZE * FLAGS + turn % 2 * capacity
    mine = _buffer(peers, rank, start, numbers)
    for row in range(program, num_rows, programs):
        at = row * row_size + inner
        inside = in_row if NORMS else at < num
        tl.store(mine + at, tl.load(delta + at, mask=inside), mask=inside)
    _meet(peers, rank, program, 2 * turn, SIZE, PEERS, FLAGS)
    if SHOTS == 2:
        for row in range(program, num_rows, programs):
            if _owner(row, programs, SIZE) == rank:
                at = row * row_size + inner
                inside = in_row if NORMS else at < num
                # In place of what nobody else reads: the others have rows of their own to add up.
                tl.store(mine + at, _sum(peers, start, at, inside, numbers, SIZE), mask=inside)
        _meet(peers, rank, program, 2 * turn + 1, SIZE, PEERS, FLAGS)
    for row in range(program, num_rows, programs):
        at = row * row_size + inner
        inside = in_row if NORMS else at < num
        if SHOTS == 2:
            sums = _buffer(peers, _owner(row, programs, SIZE), start, numbers)
            added = tl.load(sums + at, mask=inside, other=0.0, cache_modifier=".cg")
        else:
            added = _sum(peers, start, at, inside, numbers, SIZE)
        if NORMS:
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + added.to(tl.float32)
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + at, rounded, mask=inside)
            result = normalise(rounded.to(tl.float32), inside, row_size, eps)
            if AFFINE:
                result = result * scale + shift
            tl.store(normed + at, result.to(normed.dtype.element_ty), mask=inside)
        else:
            tl.store(delta + at, added, mask=inside)
    # Those that this call had no work for take their turn as well: all are in the same buffer.
    others = program + tl.arange(0, FLAGS) * programs
    tl.store(turns + others, turn, mask=others < FLAGS)


@triton.jit
def _owner(row, programs, SIZE: tl.constexpr):
    """Return the rank that adds up a row in two shots; a program's rows go by turns."""
    return (row % programs + row // programs) % SIZE


@triton.jit
def _sum(peers, start, at, inside, numbers: tl.constexpr, SIZE: tl.constexpr):
    """Return the sum of what all ranks show, past the nearest cache, which knows nothing of it."""
    total = tl.zeros(at.shape, tl.float32)
    for peer in tl.static_range(SIZE):
        theirs = _buffer(peers, peer, start, numbers)
        shown = tl.load(theirs + at, mask=inside, other=0.0, cache_modifier=".cg")
        total += shown.to(tl.float32)
    return total.to(numbers.element_ty)


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
