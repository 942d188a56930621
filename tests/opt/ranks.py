"""Run a function on several ranks of this machine that can exchange tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pluribus.parallel.group import TensorParallel, exchange_of
from processes import environment

RankFunction = Callable[[TensorParallel, Any], Any]


def run_on_ranks(size: int, function: RankFunction, argument: Any, folder: Path) -> list[Any]:
    """Return what ``function(tp, argument)`` returns on each rank, each in its own process.

    Args:
        function: of a module that a new process can import.
        folder: empty; holds the ranks' meeting point and results.
    """
    torch.save((function, argument), folder / "task.pt")
    env = environment(PYTHONPATH=os.pathsep.join(sys.path))
    # Not multiprocessing's: it would leave a process that other tests take for a lost rank.
    processes = [
        subprocess.Popen([sys.executable, "-m", __name__, str(rank), str(size), folder], env=env)
        for rank in range(size)
    ]
    assert [process.wait() for process in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _run(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    function, argument = torch.load(folder / "task.pt", weights_only=False)
    try:
        assert dist.group.WORLD is not None
        exchange = exchange_of(dist.group.WORLD, torch.device("cpu"))
        result = function(TensorParallel(rank, size, exchange), argument)
    finally:
        dist.destroy_process_group()
    torch.save(result, folder / f"{rank}.pt")


if __name__ == "__main__":
    _run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
