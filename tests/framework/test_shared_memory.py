"""What ranks of one host add up and put together: the same on all of them, whatever it is."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opt.ranks import run_on_ranks
from pluribus.parallel import shared_memory
from pluribus.parallel.exchange import Exchange, ProcessGroupExchange
from pluribus.parallel.group import TensorParallel, exchange_of
from pluribus.parallel.shared_memory import PIECE, Offer, RankLostError, SharedMemory

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64]
SMALL = 64
PR_SET_DUMPABLE = 4
NOBODY = 65534

Result = TypeVar("Result")
Call = tuple[str, list[Tensor]]
"""``all_reduce`` or ``all_gather``, and what each rank calls it with."""


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a rank that fails in a thread fail the others soon."""
    monkeypatch.setattr(shared_memory, "TIMEOUT", timedelta(seconds=20))


def ranks(size: int) -> list[SharedMemory]:
    """Return ranks for threads of this process, with small buffers."""
    memory = mmap.mmap(-1, SharedMemory.num_bytes(size, SMALL))
    return [SharedMemory(rank, size, memory, select.poll(), SMALL) for rank in range(size)]


def on_threads(
    ranks: Sequence[SharedMemory], function: Callable[[int, SharedMemory], Result]
) -> list[Result]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(function, range(len(ranks)), ranks))


def run(calls: Sequence[Call], rank: int, exchange: Exchange) -> list[Tensor]:
    """Make one rank's calls, one after another, and return what comes of each."""
    results = []
    for kind, xs in calls:
        x = xs[rank].clone()
        if kind == "all_reduce":
            exchange.all_reduce(x)
        else:
            x = exchange.all_gather(x)
        results.append(x)
    return results


def wanted(call: Call) -> Tensor:
    kind, [first, *others] = call
    if kind == "all_gather":
        return torch.cat([first, *others], dim=-1)
    total = first.clone()
    for other in others:
        total = total + other
    return total


def assert_same_bits(x: Tensor, expected: Tensor) -> None:
    assert (x.shape, x.dtype) == (expected.shape, expected.dtype)
    assert torch.equal(*(each.flatten().contiguous().view(torch.uint8) for each in (x, expected)))


def made(kind: str, shape: Sequence[int], dtype: torch.dtype, size: int, seed: int) -> Call:
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(*shape, generator=generator).mul(100).to(dtype) for _ in range(size)]
    return kind, xs


@st.composite
def calls(draw: st.DrawFn, size: int) -> list[Call]:
    shapes = st.lists(st.integers(0, 40), min_size=1, max_size=3)
    kinds = st.sampled_from(["all_reduce", "all_gather"])
    one = st.builds(
        made, kinds, shapes, st.sampled_from(DTYPES), st.just(size), st.integers(0, 2**32)
    )
    return draw(st.lists(one, min_size=1, max_size=6))


@settings(deadline=None, max_examples=30)
@given(data=st.data(), size=st.integers(2, 4))
def test_every_rank_gets_the_sum_in_the_order_of_ranks_and_all_parts(
    data: st.DataObject, size: int
) -> None:
    drawn = data.draw(calls(size))
    for results in on_threads(ranks(size), lambda rank, x: run(drawn, rank, x)):
        for call, result in zip(drawn, results, strict=True):
            assert_same_bits(result, wanted(call))


def test_what_is_not_contiguous_is_put_together_too() -> None:
    whole = torch.arange(60.0).view(5, 12)
    parts = [whole[:, :6], whole[:, 6:]]
    for [result] in on_threads(ranks(2), lambda rank, x: [x.all_gather(parts[rank])]):
        assert_same_bits(result, whole)


def test_what_has_come_stays_as_it_is() -> None:
    """A rank that is ahead must not write over what another one still reads."""

    def dawdle(rank: int, exchange: SharedMemory) -> list[Tensor]:
        results = []
        for turn in range(200):
            x = torch.full((16,), float(turn))
            if turn % 7 == 3 * rank:
                time.sleep(0.001)
            exchange.all_reduce(x)
            results.append(x)
        return results

    for results in on_threads(ranks(2), dawdle):
        assert [set(x.tolist()) for x in results] == [{2.0 * turn} for turn in range(200)]


def many_calls(size: int) -> list[Call]:
    """Return calls with as much as takes several pieces, and many small ones between them."""
    large = PIECE // 4 + 5
    shapes = [(3,), (16, 768), (1, 1), (2, large), (17, 33), (large,)]
    return [
        made(kind, shapes[(7 * number) % len(shapes)], dtype, size, number)
        for number in range(20)
        for dtype in DTYPES
        for kind in ("all_reduce", "all_gather")
    ]


def run_many(tp: TensorParallel, argument: None) -> list[Tensor]:
    assert isinstance(tp.exchange, SharedMemory)
    done = many_calls(tp.size)
    results = run(done, tp.rank, tp.exchange)
    for call, result in zip(done, results, strict=True):
        assert_same_bits(result, wanted(call))
    return []


@pytest.mark.parametrize("size", [2, 3])
def test_processes_of_one_host_share_memory(size: int, tmp_path: Path) -> None:
    assert run_on_ranks(size, run_many, None, tmp_path) == [[]] * size


def sum_apart(tp: TensorParallel, obstacle: str) -> Tensor:
    """Exchange where a processor is of another kind, or nobody may look into the first rank."""
    if obstacle == "processor":
        shared_memory.CAN_SHARE = False
    elif tp.rank == 0:
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    elif os.geteuid() == 0:
        os.seteuid(NOBODY)  # root may look into any
    assert dist.group.WORLD is not None
    exchange = exchange_of(dist.group.WORLD, torch.device("cpu"))
    if os.getuid() == 0:
        os.seteuid(0)
    assert isinstance(exchange, ProcessGroupExchange)
    x = torch.tensor([1.0, tp.rank])
    exchange.all_reduce(x)
    return torch.cat([x, exchange.all_gather(x + tp.rank)])


@pytest.mark.parametrize("obstacle", ["processor", "permission"])
def test_where_memory_cannot_be_shared_ranks_send_instead(obstacle: str, tmp_path: Path) -> None:
    for result in run_on_ranks(2, sum_apart, obstacle, tmp_path):
        assert result.tolist() == [2, 1, 2, 1, 3, 2]


def test_a_file_of_another_process_of_that_number_is_not_taken() -> None:
    file = os.memfd_create("pluribus-ranks-1")
    os.ftruncate(file, 4096)
    try:
        Offer(os.getpid(), file, 1).open(4096).close()
        for stranger in (Offer(os.getpid(), file, 2), Offer(os.getpid(), -1, 1)):
            with pytest.raises(FileNotFoundError):
                stranger.open(4096)
    finally:
        os.close(file)


def test_a_rank_that_ends_is_noticed_by_those_who_wait_for_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as partner:
        end = os.pidfd_open(partner.pid)
        watched = select.poll()
        watched.register(end, select.POLLIN)
        memory = mmap.mmap(-1, SharedMemory.num_bytes(2, SMALL))
        threading.Timer(0.3, partner.kill).start()
        start = time.monotonic()
        with pytest.raises(RankLostError):
            SharedMemory(0, 2, memory, watched, SMALL).all_reduce(torch.ones(1))
        assert 0.2 < time.monotonic() - start < 5
    os.close(end)


def test_a_rank_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "TIMEOUT", timedelta(seconds=0.1))
    with pytest.raises(TimeoutError, match="rank 1"):
        ranks(2)[0].all_reduce(torch.ones(1))


def test_who_waits_long_leaves_the_processor_to_others() -> None:
    def wait(rank: int, exchange: SharedMemory) -> float:
        if rank == 1:
            time.sleep(1)
        before = time.thread_time()
        exchange.all_reduce(torch.ones(1))
        return time.thread_time() - before

    waiting, _ = on_threads(ranks(2), wait)
    assert waiting < 0.2
