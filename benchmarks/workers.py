"""What HTTP costs, in one process and in several, before an engine that takes no time to think.

    python benchmarks/workers.py --workers 1 2 4

Streams are answered as fast as may be. Prints a line of JSON for each number of workers: tokens
a second, and of how many tokens each process takes care in a second of a processor. The fewest are
the limit of what goes through where every process has a processor, which clients and the engine do
not leave it on a small machine: there this says more than what went through.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from http_client import Connection
from pluribus import assembly, composition
from pluribus import config as conf
from pluribus.engine.async_channel import connect
from pluribus.engine.channel import Channel
from pluribus.engine.client import EngineClient, EngineHost
from pluribus.engine.loop import EngineChannel
from pluribus.engine.messages import Cancel, FromFront, Output, Ready, Stats, Stepped, Stop, Submit
from pluribus.generation import FinishReason
from pluribus.logs import configure_logging
from pluribus.plugins import discover
from pluribus.server.config import ServerConfig
from pluribus.server.run import run_server, run_with_workers
from pluribus.service import Service

NUM_CLIENTS = 4
SECONDS = 8.0
TOKEN = 262
STATS = Stats(1, 0, 0, 0, 0, 0, 1, 1, 0.0)


class SwiftHost(EngineHost):
    """Runs an engine that says the same token for ever, in a process of its own."""

    def __init__(self, passes: int, seconds: float) -> None:
        self._pace = ("--passes", str(passes), "--seconds-per-step", str(seconds))
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> EngineClient:
        ours, theirs = socket.socketpair()
        command = [sys.executable, __file__, "--engine", str(theirs.fileno()), *self._pace]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        return EngineClient(*await connect(ours))

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def run_engine(number: int, passes: int, seconds: float) -> None:
    """Give each generation ``passes`` tokens every ``seconds`` until told to stop."""
    channel: EngineChannel = Channel(socket.socket(fileno=number), FromFront)
    left: dict[int, int] = {}
    channel.send(Ready(1 << 20))
    while True:
        for message in channel.receive(block=not left):
            match message:
                case Submit():
                    left[message.id] = message.params.max_tokens
                case Cancel():
                    left.pop(message.id, None)
                case Stop():
                    return
        started = time.monotonic()
        outputs = []
        for id_, num_left in list(left.items()):
            tokens = (TOKEN,) * min(passes, num_left)
            left[id_] -= len(tokens)
            reason = None if left[id_] else FinishReason.LENGTH
            outputs.append(Output(id_, tokens, (), (), reason, None))
            if reason:
                del left[id_]
        channel.send(Stepped(tuple(outputs), STATS))
        time.sleep(max(0.0, started + seconds - time.monotonic()))


def run_front(num_workers: int, port: int, passes: int, seconds: float) -> int:
    """Serve such an engine."""
    plugins = discover()
    composition.add_search_paths(plugins.search_paths)
    overrides = [f"server.workers={num_workers}", f"server.port={port}", "server.log_level=error"]
    config = composition.load("serve", [*overrides, "batcher.max_batch_size=512"])
    parts = assembly.assemble(config, plugins)
    server, host = conf.section(config, "server", ServerConfig), SwiftHost(passes, seconds)
    configure_logging(server.log_format, server.log_level)
    if num_workers > 1:
        service = Service(parts, plugins, host, reads_answers=False)
        return run_with_workers(service, server)
    return run_server(Service(parts, plugins, host), server)


async def load(url: str, num_streams: int, num_tokens: int) -> int:
    """Keep so many streams under way for a while, and return how many tokens came."""
    until = time.monotonic() + SECONDS
    body = {"prompt": "Once upon a time", "max_tokens": num_tokens, "ignore_eos": True}

    async def client() -> int:
        num_tokens = 0
        async with Connection(url) as connection:
            while time.monotonic() < until:
                answer = await connection.stream(body)
                num_tokens += answer.num_tokens
        return num_tokens

    return sum(await asyncio.gather(*(client() for _ in range(num_streams))))


@contextmanager
def front(arguments: argparse.Namespace, num_workers: int) -> Iterator[psutil.Process]:
    """Run a front in a process of its own, and yield that once it is ready."""
    command = [sys.executable, __file__, "--front", str(num_workers)]
    for name in ("port", "passes", "seconds_per_step"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    with subprocess.Popen(command) as process:
        try:
            while not is_ready(arguments.port):
                if process.poll() is not None:
                    raise RuntimeError(f"the front ended with exit code {process.returncode}")
                time.sleep(0.2)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def is_ready(port: int) -> bool:
    """Return whether requests are answered."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def measure(arguments: argparse.Namespace, num_workers: int) -> dict[str, Any]:
    """Load a front of so many workers, and return what there is to print."""
    with front(arguments, num_workers) as first:
        workers = [each for each in first.children() if "--engine" not in each.cmdline()]
        before = [busy(process) for process in (first, *workers)]
        streams = str(arguments.streams // NUM_CLIENTS)
        command = [sys.executable, __file__, "--client", streams, "--port", str(arguments.port)]
        command += ["--tokens", str(arguments.tokens)]
        started = time.perf_counter()
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(NUM_CLIENTS)]
        num_tokens = sum(int(client.communicate()[0]) for client in clients)
        seconds = time.perf_counter() - started
        spent = [
            busy(process) - each for process, each in zip((first, *workers), before, strict=True)
        ]
    per_second = [round(num_tokens / each) for each in spent]
    return {
        "workers": num_workers,
        "streams": arguments.streams,
        "tokens_per_second": round(num_tokens / seconds),
        "limit_tokens_per_second": min(per_second),
        "tokens_per_busy_second_of_first": per_second[0],
        "tokens_per_busy_second_of_workers": per_second[1:],
        "busy": [round(each / seconds, 2) for each in spent],
    }


def busy(process: psutil.Process) -> float:
    """Return the seconds of a processor that a process has taken."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every number of workers, or be one of the processes that takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--streams", type=int, default=64, help="under way at all times")
    parser.add_argument("--tokens", type=int, default=512, help="of each answer")
    parser.add_argument("--passes", type=int, default=8, help="tokens of a stream in each step")
    parser.add_argument("--seconds-per-step", type=float, default=0.004)
    parser.add_argument("--port", type=int, default=8029)
    for role in ("--front", "--engine", "--client"):
        parser.add_argument(role, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.engine is not None:
        run_engine(given.engine, given.passes, given.seconds_per_step)
    elif given.front is not None:
        return run_front(given.front, given.port, given.passes, given.seconds_per_step)
    elif given.client is not None:
        url = f"http://127.0.0.1:{given.port}"
        print(asyncio.run(load(url, given.client, given.tokens)))
    else:
        for num_workers in given.workers:
            print(json.dumps(measure(given, num_workers)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
