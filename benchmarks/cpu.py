"""Pluribus beside transformers, and beside itself, on a CPU: every figure from one run.

    python benchmarks/cpu.py [--repeats 3] [SECTION ...]

What is compared runs by turns, so that a machine's moods meet both sides. Prints a line of JSON
for each result, then a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection as Connected
from pathlib import Path

import torch
from transformers import OPTConfig, OPTForCausalLM

import pluribus_opt
from front import asking
from http_client import Connection
from pluribus import composition
from pluribus.assembly import assemble
from pluribus.bench.engine import BenchEngine, timed_core
from pluribus.bench.measurement import between
from pluribus.bench.stopwatch import ForwardPass
from pluribus.bench.workloads import Lengths, Request, Workload, fixed
from pluribus.engine.loop import EngineLoop
from pluribus.plugins import discover
from server import serving

BUNDLED = Path(pluribus_opt.__file__).parent / "bundled" / "opt-stories-14m"
OPT_125M = ("model=opt-125m", "model.checkpoint=random", f"model.tokenizer={BUNDLED}")
OURS = (*OPT_125M, "batcher=continuous", "cache/kv=paged", "cache.kv.memory=2GiB")
BUCKET = (*OPT_125M, "batcher=bucket", "cache/kv=contiguous", "cache.kv.memory=2GiB")

MIXED = Workload(48, Lengths(48, 1.0, 256), Lengths(32, 0.9, 192), seed=1)
ALONE = fixed(1, 32, 64)
SIXTEEN = fixed(16, 32, 64)
FULL = fixed(64, 32, 48)
NUM_FULL = 40  # steps at the end of FULL, in every one of which all 64 take part
ONE_TOKEN = fixed(50, 8, 1)
SHORT = Workload(2000, Lengths(24, 0.5, 96), Lengths(8, 0.5, 32), seed=2)
BATCH_SIZE = 16
SECONDS_IDLE = 3
SECONDS_OF_PAUSE = 0.004
MILLI, MEBIBYTE = 1000, 1 << 20

Sides = Mapping[str, Callable[[list[Request]], object]]


@dataclass(frozen=True, slots=True)
class Result:
    """A figure, what it is compared with, and what it should be."""

    what: str
    ours: float
    other: float | None
    figure: str
    target: str
    is_met: bool


def faster(what: str, ours: Sequence[float], other: Sequence[float], target: float) -> Result:
    """Return how many times as fast ours is, by medians of tokens per second."""
    mine, theirs = statistics.median(ours), statistics.median(other)
    ratio = mine / theirs
    return Result(what, mine, theirs, f"{ratio:.2f} x", f">= {target} x", ratio >= target)


def below(what: str, ours: float, other: float | None, figure: float, most: float) -> Result:
    """Return milliseconds that should not be more than ``most``."""
    return Result(what, ours, other, f"{figure:.2f} ms", f"<= {most:g} ms", figure <= most)


def load(*overrides: str) -> BenchEngine:
    """Return an engine, to be entered."""
    return BenchEngine(composition.load("serve", overrides), discover())


@contextmanager
def load_apart(*overrides: str) -> Iterator[Callable[[list[Request]], None]]:
    """Yield what answers requests in a process of its own: ranks share a host's processors."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(overrides, theirs))
    process.start()
    theirs.close()

    def run(requests: list[Request]) -> None:
        ours.send(requests)
        ours.recv()

    ours.recv()
    yield run
    ours.send([])
    process.join()


def answer(overrides: Sequence[str], pipe: Connected) -> None:
    """Say when an engine is loaded, and when it has answered each list of requests."""
    with load(*overrides) as engine:
        pipe.send(None)
        while requests := pipe.recv():
            engine.measure(requests)
            pipe.send(None)


class Transformers:
    """OPT-125M's shape, as transformers runs it."""

    def __init__(self) -> None:
        self.model = OPTForCausalLM(OPTConfig()).eval()  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> None:
        """Answer in batches, each padded to its longest prompt and run to its longest answer."""
        for start in range(0, len(requests), BATCH_SIZE):
            batch = requests[start : start + BATCH_SIZE]
            width = max(len(request.prompt) for request in batch)
            pads = [width - len(request.prompt) for request in batch]
            ids = [[1] * pad + list(each.prompt) for pad, each in zip(pads, batch, strict=True)]
            mask = [[0] * pad + [1] * (width - pad) for pad in pads]
            num_tokens = max(request.num_tokens for request in batch)
            self.model.generate(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
            )


def by_turns(
    sides: Sides, make: Callable[[int], list[Request]], repeats: int
) -> dict[str, list[float]]:
    """Return each side's tokens per second, the first round left out."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(repeats + 1):
        requests = make(round_)
        for name, run in sides.items():
            started = time.perf_counter()
            run(requests)
            seconds = time.perf_counter() - started
            if round_:
                rates[name].append(sum(each.num_tokens for each in requests) / seconds)
    return rates


def throughput(repeats: int) -> Iterator[Result]:
    """Have sixteen of many requests of mixed lengths run at all times."""
    size = f"batcher.max_batch_size={BATCH_SIZE}"
    with load(*OURS, size) as ours, load(*BUCKET, size) as bucket:
        sides: Sides = {
            "ours": ours.measure,
            "bucket": bucket.measure,
            "transformers": Transformers().generate,
        }
        rates = by_turns(sides, lambda round_: ours.requests(MIXED, round_), repeats)
    yield faster("16 mixed: over bucket + contiguous", rates["ours"], rates["bucket"], 2.0)
    yield faster("16 mixed: over transformers", rates["ours"], rates["transformers"], 2.5)


def alone(repeats: int) -> Iterator[Result]:
    """Have one request run."""
    with load(*OURS) as ours:
        sides: Sides = {"ours": ours.measure, "transformers": Transformers().generate}
        rates = by_turns(sides, lambda round_: ours.requests(ALONE, round_), repeats)
    yield faster("1 alone: over transformers", rates["ours"], rates["transformers"], 1.2)


def tensor(repeats: int) -> Iterator[Result]:
    """Have sixteen run on two ranks of a core each, and on one rank with both cores."""
    split = ("parallel=tensor", "parallel.size=2")
    with load(*OURS) as single, load_apart(*OURS, *split) as halves:
        sides: Sides = {"halves": halves, "single": single.measure}
        rates = by_turns(sides, lambda round_: single.requests(SIXTEEN, round_), repeats)
    yield faster("16 at once: tensor 2 over one rank", rates["halves"], rates["single"], 0.9)


def engine(repeats: int) -> Iterator[Result]:
    """Tell the engine's own part of a step in which 64 generations run."""
    own: list[float] = []
    steps: list[float] = []
    passes: list[ForwardPass] = []
    plugins = discover()
    parts = assemble(composition.load("serve", (*OURS, "batcher.max_batch_size=64")), plugins)
    core = timed_core(parts, plugins, passes, [])
    ids = parts.model.spec.num_token_ids
    for round_ in range(repeats + 1):
        passes.clear()
        with asking(FULL.requests(round_, parts.model.tokenizer().encode(""), ids)) as channel:
            EngineLoop(channel, core).run()
        if round_:
            last = passes[-NUM_FULL - 1 :]
            own += between(last)
            steps += [after.started - before.started for before, after in pairwise(last)]
    mine, step = (statistics.median(each) * MILLI for each in (own, steps))
    yield below("64 running: a step outside the model", step, None, mine, 1)


def http(repeats: int) -> Iterator[Result]:
    """Tell what HTTP, and all behind it, adds to a step of the bundled model."""
    whole: list[float] = []
    bare: list[float] = []
    with serving() as server, load() as ours, asyncio.Runner() as runner:
        for round_ in range(repeats + 1):
            requests = ours.requests(ONE_TOKEN, round_)
            seconds = runner.run(one_by_one(server.url, requests))
            if round_:
                whole += seconds
                bare += [bare_step(ours, request) for request in requests]
    mine, step = (statistics.median(each) * MILLI for each in (whole, bare))
    yield below("1 token over HTTP: over the bare step", mine, step, mine - step, 3)


def bare_step(engine: BenchEngine, request: Request) -> float:
    """Return the seconds of the network's own work, after a pause such as HTTP makes."""
    time.sleep(SECONDS_OF_PAUSE)
    [timed] = engine.measure([request]).passes
    return timed.ended - timed.started


def memory(_: int) -> Iterator[Result]:
    """Tell what 2,000 requests leave behind."""
    with serving() as server, load() as ours:
        asyncio.run(all_answered(server.url, ours.requests(replace(SHORT, num_requests=200), 0)))
        before = server.resident_bytes() / MEBIBYTE
        asyncio.run(all_answered(server.url, ours.requests(SHORT, 1)))
        time.sleep(SECONDS_IDLE)
        after = server.resident_bytes() / MEBIBYTE
        held = asyncio.run(kv_tokens_held(server.url))
    growth = after / before - 1
    is_met = growth <= 0.05
    yield Result("2,000 requests: MiB after", after, before, f"{growth:+.1%}", "<= +5 %", is_met)
    yield Result("2,000 requests: KV tokens held", held, None, f"{held:g}", "0", held == 0)


def body_of(request: Request) -> dict[str, object]:
    """Return what to send for a request."""
    sampling = {"temperature": 0, "ignore_eos": True}
    return {"prompt": request.prompt, "max_tokens": request.num_tokens, **sampling}


async def one_by_one(url: str, requests: Sequence[Request]) -> list[float]:
    """Return the seconds that each request takes."""
    seconds = []
    async with Connection(url) as connection:
        for request in requests:
            started = time.perf_counter()
            await connection.complete(body_of(request))
            seconds.append(time.perf_counter() - started)
    return seconds


async def all_answered(url: str, requests: Sequence[Request]) -> None:
    """Have all requests answered, several at a time."""
    waiting = iter(requests)

    async def client() -> None:
        async with Connection(url) as connection:
            for request in waiting:
                await connection.stream(body_of(request))

    async with asyncio.TaskGroup() as group:
        for _ in range(2 * BATCH_SIZE):
            group.create_task(client())


async def kv_tokens_held(url: str) -> float:
    """Return what the server's metrics say of its KV cache."""
    async with Connection(url) as connection:
        metrics = await connection.get("/metrics")
    match = re.search(r"^pluribus_kv_cache_used_tokens (\S+)$", metrics, re.MULTILINE)
    assert match, "the metrics do not tell how much of the KV cache is used"
    return float(match[1])


SECTIONS = {
    "throughput": throughput,
    "alone": alone,
    "tensor": tensor,
    "engine": engine,
    "http": http,
    "memory": memory,
}


def print_table(results: Sequence[Result]) -> None:
    """Print one line for each result, for people and for README.md."""
    print("\n| what | ours | other | result | target | met |", file=sys.stderr)
    print("|---|--:|--:|--:|--:|---|", file=sys.stderr)
    for each in results:
        other = "" if each.other is None else f"{each.other:.1f}"
        cells = (
            f"{each.ours:.1f}",
            other,
            each.figure,
            each.target,
            "yes" if each.is_met else "no",
        )
        print(f"| {each.what} | {' | '.join(cells)} |", file=sys.stderr)


def measured_apart(section: str, repeats: int) -> Iterator[Result]:
    """Run a section in a process of its own: what another has left there would slow it down."""
    command = [sys.executable, __file__, "--section", section, "--repeats", str(repeats)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            yield Result(**json.loads(line))
    if process.returncode:
        sys.exit(f"{section} failed")


def main() -> None:
    """Run the sections that the command line asks for."""
    parser = argparse.ArgumentParser(description="Pluribus beside transformers, on a CPU.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=" ".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=3, help="rounds, besides one to warm up")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(unknown)}; choose of {', '.join(SECTIONS)}")
    if arguments.section:
        for result in SECTIONS[arguments.section](arguments.repeats):
            print(json.dumps(asdict(result)), flush=True)
        return
    sections = arguments.sections or SECTIONS
    print_table([each for name in sections for each in measured_apart(name, arguments.repeats)])


if __name__ == "__main__":
    main()
