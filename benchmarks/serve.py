"""Load a server's ``/v1/completions`` with streamed requests and tell how it does.

    python benchmarks/serve.py --concurrency 1 16 64      closed loop: so many at all times
    python benchmarks/serve.py --rate 2 8                 open loop: so many a second, Poisson

Prints a line of JSON for each load, then a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

from http_client import Connection, Timed
from pluribus.bench.measurement import milliseconds
from pluribus.bench.workloads import WORKLOADS, Request

KEY_VARIABLE = "PLURIBUS_API_KEY"


async def ask(arguments: argparse.Namespace, request: Request, connection: Connection) -> Timed:
    """Have one request answered, every token of it."""
    body = {"prompt": request.prompt, "max_tokens": request.num_tokens, "ignore_eos": True}
    timed = await connection.stream({**body, "temperature": arguments.temperature})
    if timed.num_tokens != request.num_tokens:
        raise RuntimeError(f"asked for {request.num_tokens} tokens, got {timed.num_tokens}")
    return timed


async def closed_loop(
    arguments: argparse.Namespace, requests: Sequence[Request], num_clients: int
) -> list[Timed]:
    """Keep as many requests under way as there are clients."""
    waiting = iter(requests)
    answers: list[Timed] = []

    async def client() -> None:
        async with connect(arguments) as connection:
            for request in waiting:
                answers.append(await ask(arguments, request, connection))

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client())
    return answers


async def open_loop(
    arguments: argparse.Namespace, requests: Sequence[Request], rate: float
) -> list[Timed]:
    """Send ``rate`` requests a second, whether or not others have been answered."""
    rng = random.Random(arguments.seed)
    answers: list[Timed] = []

    async def client(request: Request) -> None:
        async with connect(arguments) as connection:
            answers.append(await ask(arguments, request, connection))

    async with asyncio.TaskGroup() as group:
        due = time.perf_counter()
        for request in requests:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(client(request))
    return answers


def connect(arguments: argparse.Namespace) -> Connection:
    """Return a connection that carries the key, if there is one."""
    key = os.environ.get(KEY_VARIABLE)
    return Connection(arguments.url, {"Authorization": f"Bearer {key}"} if key else None)


def measure(arguments: argparse.Namespace, load: float, round_: int) -> dict[str, Any]:
    """Run one load and return what there is to print."""
    workload = WORKLOADS[arguments.workload]
    bos = [arguments.bos] if arguments.bos is not None else []
    requests = workload.requests(round_, bos, arguments.vocabulary)[: arguments.num_requests]
    is_closed = arguments.concurrency is not None
    loop = closed_loop(arguments, requests, int(load)) if is_closed else None
    started = time.perf_counter()
    answers = asyncio.run(loop or open_loop(arguments, requests, load))
    seconds = time.perf_counter() - started
    decodes = [(a.last - a.first) / (a.num_tokens - 1) for a in answers if a.num_tokens > 1]
    return {
        "loop": "closed" if is_closed else "open",
        "load": load,
        "workload": arguments.workload,
        "requests": len(answers),
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(answers) / seconds, 3),
        "output_tokens_per_second": round(sum(a.num_tokens for a in answers) / seconds, 2),
        "ttft_ms": milliseconds([a.first for a in answers]),
        "tpot_ms": milliseconds(decodes),
        "e2e_ms": milliseconds([a.last for a in answers]),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line for each load, for people."""
    print(
        f"\n{'loop':>6} {'load':>6} {'req/s':>8} {'tok/s':>9}"
        f" {'TTFT p50':>9} {'p99':>9} {'TPOT p50':>9} {'p99':>9} {'e2e p50':>9} {'p99':>9}",
        file=sys.stderr,
    )
    for row in rows:
        spans = [row[name] or {"p50": 0, "p99": 0} for name in ("ttft_ms", "tpot_ms", "e2e_ms")]
        figures = " ".join(f"{span['p50']:9.1f} {span['p99']:9.1f}" for span in spans)
        rates = f"{row['requests_per_second']:8.2f} {row['output_tokens_per_second']:9.1f}"
        print(f"{row['loop']:>6} {row['load']:6g} {rates} {figures}", file=sys.stderr)


def main() -> None:
    """Run every load that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    loads = parser.add_mutually_exclusive_group(required=True)
    loads.add_argument("--concurrency", type=int, nargs="+", help="closed loop: requests at once")
    loads.add_argument("--rate", type=float, nargs="+", help="open loop: requests a second")
    parser.add_argument("--url", default="http://127.0.0.1:8020")
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="b64")
    parser.add_argument("--num-requests", type=int, help="of the workload's, the first so many")
    parser.add_argument("--vocabulary", type=int, default=8192, help="ids below this are sent")
    parser.add_argument("--bos", type=int, default=2, help="id that every prompt begins with")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals in an open loop")
    arguments = parser.parse_args()
    rows = []
    # Prompts that the server has not seen in an earlier run.
    for round_, load in enumerate(arguments.concurrency or arguments.rate, int(time.time())):
        rows.append(measure(arguments, load, round_))
        print(json.dumps(rows[-1]), flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
