"""Ranks that show each other their numbers add up alike, and normalise what they have added."""

from __future__ import annotations

import math
from multiprocessing.connection import Connection

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from kernels.device import DEVICE
from pluribus.kernels import all_reduce as kernel
from pluribus.kernels.all_reduce import Peers, all_reduce, num_bytes
from pluribus.kernels.norm import add_layer_norm

BLOCK = 32
MAX_PROGRAMS = 4
TWO_SHOTS = 4 * BLOCK
CAPACITY = 96 * BLOCK
LENGTHS = (1, BLOCK, BLOCK - 1, 10 * BLOCK, 3, 7 * BLOCK + 5, 1, 2 * BLOCK, 0, 10 * BLOCK - 1)
"""Of sums, one after another.

There are some of a block, of less, and of more than programs have one each, in one shot and in two;
and one of nothing.
"""
ROWS = ((1, 5), (3, 64), (4, 100), (2, 1), (9, 33), (0, 40), (6, 128), (4, 12), (2, 300), (10, 64))
"""And of rows of so many numbers, in between; the largest take all there is of float32."""
EPS = 1e-5


def numbers(rank: int, turn: int, length: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(100 * turn + rank)
    return torch.randn(length, generator=generator).to(dtype)


def affine(turn: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return a norm's weight and bias, every other time."""
    if turn % 2:
        return None, None
    weight, bias = numbers(60, turn, 2 * ROWS[turn][1], dtype).chunk(2)
    return weight, bias


def run_rank(
    rank: int, memories: Tensor, num_processors: int, dtype: torch.dtype, results: Connection
) -> None:
    """Be one rank; Triton's interpreter has one kernel at a time, so each is a process."""
    kernel.BLOCK, kernel.MAX_PROGRAMS, kernel.TWO_SHOTS = BLOCK, MAX_PROGRAMS, TWO_SHOTS
    addresses = torch.tensor([each.data_ptr() for each in memories])
    peers = Peers.new(addresses, rank, CAPACITY, num_processors)
    sums = []
    for turn, (length, rows) in enumerate(zip(LENGTHS, ROWS, strict=True)):
        x = numbers(rank, turn, length, dtype)
        all_reduce(x, peers)
        residual = numbers(50, turn, math.prod(rows), dtype).view(rows)
        delta = numbers(10 + rank, turn, math.prod(rows), dtype).view(rows)
        normed = kernel.add_layer_norm(residual, delta, *affine(turn, dtype), EPS, peers)
        sums.append([each.float().tolist() for each in (x, *normed)])
    results.send((sums, peers.turns.tolist()))


@pytest.mark.parametrize(
    ("size", "num_processors", "dtype"),
    [(2, 132, torch.float16), (3, 132, torch.float32), (4, 132, torch.float16), (4, 3, torch.half)],
    ids=str,
)
@pytest.mark.skipif(DEVICE.type == "cuda", reason="tests/gpu/test_sums.py has GPUs sum")
def test_every_rank_has_the_same_sum(size: int, num_processors: int, dtype: torch.dtype) -> None:
    context = multiprocessing.get_context("spawn")
    memories = torch.zeros(size, num_bytes(size, CAPACITY), dtype=torch.uint8)  # of more programs
    memories.share_memory_()  # type: ignore[no-untyped-call]
    pipes = [context.Pipe() for _ in range(size)]
    ranks = [
        context.Process(
            target=run_rank, args=(rank, memories, num_processors, dtype, pipe[1]), daemon=True
        )
        for rank, pipe in enumerate(pipes)
    ]
    for rank in ranks:
        rank.start()
    try:
        for received, _ in pipes:
            assert received.poll(60), "a rank waits for ever"
        sums, turns = zip(*(received.recv() for received, _ in pipes), strict=True)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    # Programs that a call had no work for have taken their turn as well.
    num_turns = sum(map(bool, LENGTHS)) + sum(bool(num_rows) for num_rows, _ in ROWS)
    assert all(each == [num_turns] * MAX_PROGRAMS for each in turns)
    for turn, (length, rows) in enumerate(zip(LENGTHS, ROWS, strict=True)):
        total = sum_of(range(size), turn, length, dtype)
        delta = sum_of(range(10, 10 + size), turn, math.prod(rows), dtype).view(rows)
        residual = numbers(50, turn, math.prod(rows), dtype).view(rows)
        expected = total, *add_layer_norm(residual, delta, *affine(turn, dtype), EPS)
        for each in sums:
            assert each[turn] == [part.float().tolist() for part in expected]


def sum_of(ranks: range, turn: int, length: int, dtype: torch.dtype) -> Tensor:
    total = torch.zeros(length)
    for rank in ranks:
        total += numbers(rank, turn, length, dtype).float()
    return total.to(dtype)


@pytest.mark.parametrize(
    ("size", "num_bytes", "shots"),
    [(2, 2**22, 1), (3, 2**19 - 2, 1), (3, 2**19, 2), (8, 2**22, 2)],
)
def test_many_numbers_of_many_ranks_take_two_shots(size: int, num_bytes: int, shots: int) -> None:
    assert kernel.num_shots(size, num_bytes) == shots
