"""What a sum over ranks, with its residual and norm, takes on GPUs that see each other's memory.

    python benchmarks/sums.py [--gpus 2 4] [--rows 1 8 64] [--size 9216]

Each GPU has a process of its own. In us, for so many rows of float16: the launch that the network
makes, in one shot and in two, and which of them it chooses; and NCCL's sum with a norm after it. By
turns, each replayed from a graph that holds many.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from kernels import EPS, MICRO, Device
from pluribus.kernels import all_reduce
from pluribus.parallel import device_memory
from pluribus.parallel.exchange import Exchange, ProcessGroupExchange

NUM_TURNS = 100
"""Sums of a graph: what ranks wait for each other at its start is spread over so many."""


def main() -> None:
    """Print a table for each number of GPUs that is asked for and there."""
    parser = argparse.ArgumentParser(description="Sums over GPUs, with their norms.")
    parser.add_argument("--gpus", nargs="+", type=int, help="2 4 8, as far as they are there")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 16, 32, 64, 128, 224])
    parser.add_argument("--size", type=int, default=9216, help="numbers of a row")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if min(*arguments.rows, arguments.size) < 1:
        parser.error("--rows and --size must be at least 1")
    if (present := torch.cuda.device_count()) < 2:
        sys.exit(f"sums take two GPUs at least, and there are {present}")
    counts = arguments.gpus or [count for count in (2, 4, 8) if count <= present]
    if wrong := [count for count in counts if not 2 <= count <= present]:
        parser.error(f"--gpus: {wrong[0]}, where 2 to {present} are possible")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            meeting = Path(folder) / "meeting"
            spawn(run_rank, (count, meeting, arguments), count)  # type: ignore[no-untyped-call]


def run_rank(rank: int, count: int, meeting: Path, arguments: argparse.Namespace) -> None:
    """Be one rank; the first prints."""
    # Multicast that goes wrong takes GPUs away from everybody on their host.
    os.environ.update(NCCL_NVLS_ENABLE="0", TORCH_SYMM_MEM_DISABLE_MULTICAST="1")
    torch.cuda.set_device(rank)
    place = torch.device("cuda", rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{meeting}", rank=rank, world_size=count, device_id=place
    )
    group = dist.group.WORLD
    assert group is not None
    # Whatever is asked for goes through memory, in the network what decoding sums.
    most = 2 * max(arguments.rows) * arguments.size
    device_memory.CAPACITY = max(device_memory.CAPACITY, -(-most // 16) * 16)
    shared = device_memory.share_device_memory(group, place)
    if shared is None:
        sys.exit("these GPUs do not see each other's memory")
    if rank == 0:
        print(f"\n| rows, {count} GPUs | one shot | two shots | chosen | NCCL |")
        print("|--:|--:|--:|--:|--:|", flush=True)
    device = Device(torch.float16, arguments.repeats)
    with torch.inference_mode():
        for num_rows in arguments.rows:
            x = device.random(num_rows, arguments.size)
            vectors = torch.ones_like(x[0]), torch.zeros_like(x[0])
            chosen = all_reduce.num_shots(count, x.nbytes)
            runs = [
                *(partial(in_shots, shots, shared, x, *vectors) for shots in (1, 2)),
                partial(sums, ProcessGroupExchange(group), x, *vectors),
            ]
            one, two, nccl = (f"{t / NUM_TURNS * MICRO:.1f}" for t in device.seconds(*runs))
            if rank == 0:
                print(f"| {num_rows} | {one} | {two} | {chosen} | {nccl} |", flush=True)
    dist.barrier()
    os._exit(0)  # graphs that hold NCCL's kernels are not to outlast their group


def in_shots(shots: int, exchange: Exchange, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Sum in one shot or two, whichever would be chosen."""
    choose, all_reduce.num_shots = all_reduce.num_shots, lambda size, num_bytes: shots
    try:
        sums(exchange, x, weight, bias)
    finally:
        all_reduce.num_shots = choose


def sums(exchange: Exchange, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Sum, add and normalise; what is normalised is summed next, as if by a linear."""
    normed = x.clone()
    for _ in range(NUM_TURNS):
        _, normed = exchange.add_layer_norm(x, normed, weight, bias, EPS)


if __name__ == "__main__":
    main()
