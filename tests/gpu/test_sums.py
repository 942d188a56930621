"""GPUs that see each other's memory sum, add and normalise to the bits of three launches."""

from __future__ import annotations

import math
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

SHAPES = ((1, 768), (57, 9216), (224, 9216), (512, 1024), (1, 12288), (300, 9216))
"""Rows and their sizes, from one program's work to more than the memory that is shared."""
EPS = 1e-5

Result = tuple[Tensor, Tensor, Tensor]
"""A plain sum; a sum with the residual; and that normalised."""


def numbers(seed: int, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(shape, generator=generator).half().cuda()


def shown(rank: int, shape: tuple[int, int]) -> Tensor:
    """Return a rank's part of a sum: large, small, the first one's opposite, and small.

    What is left of it depends on the order in which they are added.
    """
    if rank % 2:
        return numbers(rank, shape) / 64
    return numbers(0, shape) * (4096 if rank == 0 else -4096)


def in_one_launch(exchange: Exchange, rank: int, shape: tuple[int, int]) -> Result:
    added = shown(rank, shape)
    exchange.all_reduce(added)
    weight, bias = numbers(9, (2, shape[1]))
    residual, delta = numbers(8, shape), shown(rank, shape)
    return added, *exchange.add_layer_norm(residual, delta, weight, bias, EPS)


def in_several(num_ranks: int, shape: tuple[int, int]) -> Result:
    added = torch.zeros(shape, device="cuda")
    for rank in range(num_ranks):
        added += shown(rank, shape)
    added = added.half()
    weight, bias = numbers(9, (2, shape[1]))
    return added, *norm.add_layer_norm(numbers(8, shape), added, weight, bias, EPS)


def sums(num_ranks: int) -> list[tuple[int, int]]:
    """Return what is summed: by few programs and by many in turn, through both halves of memory."""
    # NCCL, which sums what is too large, rounds in between: of two numbers there is one sum.
    shapes = [s for s in SHAPES if num_ranks == 2 or 2 * math.prod(s) <= device_memory.CAPACITY]
    return [*shapes, *reversed(shapes)]


def run_rank(rank: int, num_ranks: int, meeting: Path, shots: int, results: Connection) -> None:
    os.environ.update(NCCL_NVLS_ENABLE="0", TORCH_SYMM_MEM_DISABLE_MULTICAST="1")
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{meeting}", rank=rank, world_size=num_ranks, device_id=device
    )
    all_reduce.num_shots = lambda size, num_bytes: shots
    group = dist.group.WORLD
    assert group is not None
    exchange = device_memory.share_device_memory(group, device)
    assert exchange is not None, "the GPUs do not see each other's memory"
    alike = []
    for shape in sums(num_ranks):
        expected = in_several(num_ranks, shape)
        pairs = zip(in_one_launch(exchange, rank, shape), expected, strict=True)
        alike.append((shape, [torch.equal(*pair) for pair in pairs]))
    results.send(alike)
    results.recv()  # until the others have what they read of this one's


@pytest.fixture(params=[1, 2], ids=["one shot", "two shots"])
def shots(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=[2, 4], ids="{} GPUs".format)
def num_ranks(request: pytest.FixtureRequest) -> int:
    if torch.cuda.device_count() < request.param:
        pytest.skip(f"{request.param} GPUs are needed")
    return int(request.param)


@pytest.fixture
def alike(num_ranks: int, shots: int, tmp_path: Path) -> Iterator[list[object]]:
    """Run all ranks; yield what each of them found alike."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(num_ranks)]
    meeting = tmp_path / "meeting"
    ranks = [
        context.Process(target=run_rank, args=(rank, num_ranks, meeting, shots, end), daemon=True)
        for rank, (_, end) in enumerate(pipes)
    ]
    for rank in ranks:
        rank.start()
    for _, end in pipes:
        end.close()  # so that a rank's end shows
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
def test_they_are_alike(alike: list[object], num_ranks: int) -> None:
    assert alike == [[(shape, [True] * 3) for shape in sums(num_ranks)]] * num_ranks
