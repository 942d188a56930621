"""Sums over the ranks of one host in a single launch, through memory that all of them see.

One shot: every rank shows its numbers, waits until all have, and adds up everybody's by itself.
That moves more than a ring does, and takes one exchange of flags instead of many. Two shots, for
more numbers and more ranks: each adds up some rows, and takes the others' sums from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch
from pluribus.kernels.norm import normalise, warps_of_row

BLOCK = 2048
"""Numbers that a program moves at a time where they are in no rows."""
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


@dataclass(frozen=True, slots=True)
class Peers:
    """What a rank knows of the memory that all of them see.

    A program's flags count its turns, and numbers go into buffers by turns, one of two: who shows
    the next ones has read all of these, so nobody has to be waited for at the end.

    Attributes:
        addresses: of each rank's ``num_bytes``, zeros at first, int64, [size].
        turns: that this rank's programs have taken, int64, [MAX_PROGRAMS].
        rank: this one's.
        capacity: bytes of the largest tensor, a multiple of 16.
    """

    addresses: Tensor
    turns: Tensor
    rank: int
    capacity: int

    @classmethod
    def new(cls, addresses: Tensor, rank: int, capacity: int) -> Peers:
        """Return what a rank knows that has taken no turn."""
        turns = torch.zeros(MAX_PROGRAMS, dtype=torch.int64, device=addresses.device)
        return cls(addresses, turns, rank, capacity)


def all_reduce(x: Tensor, peers: Peers) -> None:
    """Sum ``x`` over the ranks in place, in float32 and in the order of ranks: alike on all.

    All ranks make the same calls of both functions, with the same shapes, in the same order.

    Args:
        x: contiguous, of ``peers.capacity`` bytes at most.
        peers: the ranks.
    """
    num = x.numel()
    options = {"NUMBERS": BLOCK, "NORMS": False, "AFFINE": False, "num_warps": 8}
    _launch(x, (x, x, x, x, x), 0.0, (num, BLOCK, triton.cdiv(num, BLOCK)), peers, options)


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
        x, delta: [num_rows, size], contiguous; ``delta`` of ``peers.capacity`` bytes at most, and
            lost.
        weight, bias: [size]; both or neither.
        eps: added to the variance. Statistics are in float32.
        peers: the ranks.
    """
    num_rows, size = x.shape
    total, normed = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(size)
    options = {"NUMBERS": block, "NORMS": True, "AFFINE": weight is not None}
    options["num_warps"] = warps_of_row(block)
    scale, shift = (x, x) if weight is None or bias is None else (weight, bias)
    tensors = (x, scale, shift, total, normed)
    _launch(delta, tensors, eps, (delta.numel(), size, num_rows), peers, options)
    return total, normed


def _launch(
    delta: Tensor,
    tensors: tuple[Tensor, ...],
    eps: float,
    shape: tuple[int, int, int],
    peers: Peers,
    options: dict[str, Any],
) -> None:
    size = len(peers.addresses)
    launch(
        _all_reduce,
        (min(shape[-1], MAX_PROGRAMS),),
        delta,
        *tensors,
        eps,
        *shape,
        peers.addresses,
        peers.turns,
        peers.rank,
        peers.capacity,
        SIZE=size,
        PEERS=triton.next_power_of_2(size),
        SHOTS=2 if size > 2 and delta.nbytes >= TWO_SHOTS else 1,
        FLAGS=MAX_PROGRAMS,
        **options,
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
    scale = 1.0
    shift = 0.0
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
    for row in range(program, num_rows, programs):
        if SHOTS == 1 or _owner(row, programs, SIZE) == rank:
            at = row * row_size + inner
            inside = in_row if NORMS else at < num
            added = tl.zeros((NUMBERS,), tl.float32)
            for peer in tl.static_range(SIZE):
                theirs = _buffer(peers, peer, start, numbers)
                # Past the nearest cache, which knows nothing of what others write.
                shown = tl.load(theirs + at, mask=inside, other=0.0, cache_modifier=".cg")
                added += shown.to(tl.float32)
            added = added.to(delta.dtype.element_ty)
            if SHOTS == 2:
                # In place of what nobody else reads: the others have rows of their own to add up.
                tl.store(mine + at, added, mask=inside)
            _finish(added, delta, x, total, normed, at, inside, row_size, eps, scale, shift, NORMS)
    if SHOTS == 2:
        _meet(peers, rank, program, 2 * turn + 1, SIZE, PEERS, FLAGS)
        for row in range(program, num_rows, programs):
            owner = _owner(row, programs, SIZE)
            if owner != rank:
                at = row * row_size + inner
                inside = in_row if NORMS else at < num
                sums = _buffer(peers, owner, start, numbers)
                added = tl.load(sums + at, mask=inside, other=0.0, cache_modifier=".cg")
                _finish(
                    added, delta, x, total, normed, at, inside, row_size, eps, scale, shift, NORMS
                )
    # Those that this call had no work for take their turn as well: all are in the same buffer.
    others = program + tl.arange(0, FLAGS) * programs
    tl.store(turns + others, turn, mask=others < FLAGS)


@triton.jit
def _owner(row, programs, SIZE: tl.constexpr):
    """Return the rank that adds up a row in two shots; a program's rows go by turns."""
    return (row + row // programs) % SIZE


@triton.jit
def _finish(
    added, delta, x, total, normed, at, inside, row_size, eps, scale, shift, NORMS: tl.constexpr
):
    """Keep a row's sum, or what comes of it."""
    if NORMS:
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + added.to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        result = normalise(rounded.to(tl.float32), inside, row_size, eps) * scale + shift
        tl.store(normed + at, result.to(normed.dtype.element_ty), mask=inside)
    else:
        tl.store(delta + at, added, mask=inside)


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
