"""Two GPUs that see each other's memory sum, add and normalise to the bits of three launches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from pluribus.kernels import all_reduce, norm
from pluribus.parallel import device_memory
from pluribus.parallel.exchange import Exchange

NUM_RANKS = 2
SHAPES = ((1, 768), (57, 9216), (224, 9216), (512, 1024), (1, 12288), (300, 9216))
"""Rows and their sizes, from one program's work to more than the memory that is shared."""
EPS = 1e-5

Result = tuple[Tensor, Tensor, Tensor]
"""A plain sum; a sum with the residual; and that normalised."""


def numbers(rank: int, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + sum(shape))
    return torch.randn(shape, generator=generator).half().cuda()


def in_one_launch(exchange: Exchange, rank: int, shape: tuple[int, int]) -> Result:
    added = numbers(rank, shape)
    exchange.all_reduce(added)
    weight, bias = numbers(9, (2, shape[1]))
    residual, delta = numbers(8, shape), numbers(rank, shape)
    return added, *exchange.add_layer_norm(residual, delta, weight, bias, EPS)


def in_several(shape: tuple[int, int]) -> Result:
    # Of two numbers there is one sum, whoever adds them up.
    added = (numbers(0, shape).float() + numbers(1, shape).float()).half()
    weight, bias = numbers(9, (2, shape[1]))
    return added, *norm.add_layer_norm(numbers(8, shape), added, weight, bias, EPS)


def run_rank(rank: int, meeting: Path, shots: int, results: Connection) -> None:
    os.environ.update(NCCL_NVLS_ENABLE="0", TORCH_SYMM_MEM_DISABLE_MULTICAST="1")
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{meeting}", rank=rank, world_size=NUM_RANKS, device_id=device
    )
    all_reduce.num_shots = lambda size, num_bytes: shots
    group = dist.group.WORLD
    assert group is not None
    exchange = device_memory.share_device_memory(group, device)
    assert exchange is not None, "the GPUs do not see each other's memory"
    alike = []
    # Calls of many programs and of few follow each other, through both halves of the memory.
    for shape in (*SHAPES, *reversed(SHAPES)):
        pairs = zip(in_one_launch(exchange, rank, shape), in_several(shape), strict=True)
        alike.append((shape, [torch.equal(ours, expected) for ours, expected in pairs]))
    results.send(alike)
    results.recv()  # until the other has what it reads of this one's


@pytest.fixture(params=[1, 2], ids=["one shot", "two shots"])
def alike(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[object]]:
    """Run both ranks; yield what each of them found alike."""
    if torch.cuda.device_count() < NUM_RANKS:
        pytest.skip(f"{NUM_RANKS} GPUs are needed")
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(NUM_RANKS)]
    meeting = tmp_path / "meeting"
    ranks = [
        context.Process(target=run_rank, args=(rank, meeting, request.param, pipe[1]), daemon=True)
        for rank, pipe in enumerate(pipes)
    ]
    for rank in ranks:
        rank.start()
    try:
        found = []
        for ours, _ in pipes:
            assert ours.poll(120), "a rank waits for ever"
            found.append(ours.recv())
        yield found
        for ours, _ in pipes:
            ours.send(None)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


@pytest.mark.gpu
def test_they_are_alike(alike: list[object]) -> None:
    expected = [(shape, [True] * 3) for shape in (*SHAPES, *reversed(SHAPES))]
    assert alike == [expected] * NUM_RANKS
