"""Run a function on several ranks of this machine that can exchange tensors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pluribus.parallel.group import TensorParallel, exchange_of

RankFunction = Callable[[TensorParallel, Any], Any]


def run_on_ranks(size: int, function: RankFunction, argument: Any, folder: Path) -> list[Any]:
    """Return what ``function(tp, argument)`` returns on each rank, each in its own process.

    Args:
        function: of a module that a new process can import.
        folder: empty; holds the ranks' meeting point and results.
    """
    torch.save(argument, folder / "argument.pt")
    context = get_context("spawn")
    processes = [
        context.Process(target=_run, args=(rank, size, function, folder), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _run(rank: int, size: int, function: RankFunction, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    argument = torch.load(folder / "argument.pt", weights_only=False)
    try:
        assert dist.group.WORLD is not None
        exchange = exchange_of(dist.group.WORLD, torch.device("cpu"))
        result = function(TensorParallel(rank, size, exchange), argument)
    finally:
        dist.destroy_process_group()
    torch.save(result, folder / f"{rank}.pt")
