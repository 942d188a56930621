"""Ranks that show each other their numbers add up alike."""

from __future__ import annotations

from multiprocessing.connection import Connection

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from kernels.device import DEVICE
from pluribus.kernels import all_reduce as kernel
from pluribus.kernels.all_reduce import all_reduce, no_turns, num_bytes

BLOCK = 32
MAX_PROGRAMS = 4
TWO_SHOTS = 4 * BLOCK
CAPACITY = 40 * BLOCK
LENGTHS = (1, BLOCK, BLOCK - 1, 10 * BLOCK, 3, 7 * BLOCK + 5, 1, 2 * BLOCK, 1, 10 * BLOCK - 1)
"""Of sums, one after another; the longest takes all there is of float32.

There are some of a block, of less, and of more than programs have one each, in one shot and in two.
"""
CPU = torch.device("cpu")


def numbers(rank: int, turn: int, length: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(100 * turn + rank)
    return torch.randn(length, generator=generator).to(dtype)


def run_rank(rank: int, memories: Tensor, dtype: torch.dtype, results: Connection) -> None:
    """Be one rank; Triton's interpreter has one kernel at a time, so each is a process."""
    kernel.BLOCK, kernel.MAX_PROGRAMS, kernel.TWO_SHOTS = BLOCK, MAX_PROGRAMS, TWO_SHOTS
    peers = torch.tensor([each.data_ptr() for each in memories])
    turns = no_turns(CPU)
    sums = []
    for turn, length in enumerate(LENGTHS):
        x = numbers(rank, turn, length, dtype)
        all_reduce(x, peers, turns, rank, CAPACITY)
        sums.append(x.float().tolist())
    results.send(sums)


@pytest.mark.parametrize(
    ("size", "dtype"), [(2, torch.float16), (3, torch.float32), (4, torch.float16)], ids=str
)
@pytest.mark.skipif(DEVICE.type == "cuda", reason="tests/gpu sum over as many GPUs as there are")
def test_every_rank_has_the_same_sum(size: int, dtype: torch.dtype) -> None:
    context = multiprocessing.get_context("spawn")
    memories = torch.zeros(size, num_bytes(size, CAPACITY), dtype=torch.uint8)  # of more programs
    memories.share_memory_()  # type: ignore[no-untyped-call]
    pipes = [context.Pipe() for _ in range(size)]
    ranks = [
        context.Process(target=run_rank, args=(rank, memories, dtype, pipe[1]), daemon=True)
        for rank, pipe in enumerate(pipes)
    ]
    for rank in ranks:
        rank.start()
    try:
        for received, _ in pipes:
            assert received.poll(60), "a rank waits for ever"
        sums = [received.recv() for received, _ in pipes]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    for turn, length in enumerate(LENGTHS):
        total = torch.zeros(length)
        for number in range(size):
            total += numbers(number, turn, length, dtype).float()
        for each in sums:
            assert each[turn] == total.to(dtype).float().tolist()
