"""Large models over several GPUs, on random weights made on the devices: no checkpoint is read.

    python benchmarks/gpus.py [--models opt-30b opt-66b] [--repeats 3]

Runs every split that the GPUs present allow, each in processes of its own, and tells how long it
takes to load, milliseconds a step with 1 and with 64 generations, output tokens per second, and the
memory that each GPU has in use beside what ``pluribus plan`` says. Prints a line of JSON for each
split, then a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pluribus_opt
from pluribus import composition
from pluribus.bench.engine import BenchEngine
from pluribus.bench.measurement import Measurement
from pluribus.bench.workloads import fixed
from pluribus.errors import PluribusError
from pluribus.plugins import discover

BUNDLED = Path(pluribus_opt.__file__).parent / "bundled" / "opt-stories-14m"
COMMON = (
    "model.checkpoint=random",
    f"model.tokenizer={BUNDLED}",
    "dtype=float16",
    "device=cuda",
    "cache.kv.prefix_caching=false",
    "batcher.max_batch_size=64",
)
SINGLE, TENSOR, PIPELINE = "parallel=single", "parallel=tensor", "parallel=pipeline"
HYBRID = ("parallel=hybrid", "parallel.tensor_size=2", "parallel.pipeline_size=2")
SPLITS = {
    "opt-30b": (
        (1, (SINGLE,)),
        (2, (TENSOR, "parallel.size=2")),
        (4, (TENSOR, "parallel.size=4")),
        (2, (PIPELINE, "parallel.size=2")),
        (4, HYBRID),
    ),
    "opt-66b": ((4, (TENSOR, "parallel.size=4")),),
    "opt-175b": ((4, (TENSOR, "parallel.size=4")),),
}
ALONE, MANY = fixed(1, 32, 128), fixed(64, 128, 128)
MEBIBYTE, GIBIBYTE = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one split.

    Attributes:
        load_seconds: until it could take requests, weights made at random.
        step_ms, step_ms_64: from token to token, with 1 and 64 generations.
        tokens_per_second: of output, with 64 generations, prompts included in the time.
        memory, planned: GiB in use on the fullest GPU, and what ``plan`` says of a rank.
    """

    model: str
    split: str
    load_seconds: float
    step_ms: float
    step_ms_64: float
    tokens_per_second: float
    memory: float
    planned: float


def main() -> None:
    """Measure what the command line asks for; a split is measured in a process of its own."""
    parser = argparse.ArgumentParser(description="Large models over several GPUs.")
    parser.add_argument("--models", nargs="*", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--repeats", type=int, default=3, help="rounds, besides one to warm up")
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asdict(measure(arguments.one[0], arguments.one[1:], arguments.repeats))))
        return
    results = []
    for model in arguments.models:
        for count, split in SPLITS[model]:
            if count <= num_gpus() and (result := measure_apart(model, split, arguments.repeats)):
                print(json.dumps(asdict(result)), flush=True)
                results.append(result)
    print_table(results)


def measure_apart(model: str, split: Sequence[str], repeats: int) -> Result | None:
    """Measure a split in a process of its own; None where it does not run."""
    command = [sys.executable, __file__, "--repeats", str(repeats), "--one", model, *split]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{model} {' '.join(split)}: failed", file=sys.stderr, flush=True)
        return None
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def measure(model: str, split: Sequence[str], repeats: int) -> Result:
    """Load a model over the GPUs and run both workloads."""
    overrides = (f"model={model}", *COMMON, *split)
    expected = planned(overrides)  # while the GPUs are free: it is planned for what is left
    started = time.perf_counter()
    with BenchEngine(composition.load("serve", overrides), discover()) as engine:
        loaded = time.perf_counter() - started
        alone = [engine.measure(engine.requests(ALONE, at)) for at in range(repeats + 1)][1:]
        many = [engine.measure(engine.requests(MANY, at)) for at in range(repeats + 1)][1:]
        used = max(memory_in_use())
    return Result(
        model=model,
        split=" ".join(split).replace("parallel=", "").replace("parallel.", ""),
        load_seconds=round(loaded, 1),
        step_ms=round(statistics.median(map(step_ms, alone)), 3),
        step_ms_64=round(statistics.median(map(step_ms, many)), 3),
        tokens_per_second=round(statistics.median(m.num_tokens / m.seconds for m in many)),
        memory=round(used * MEBIBYTE / GIBIBYTE, 1),
        planned=round(expected, 1),
    )


def step_ms(measurement: Measurement) -> float:
    """Return the median time from token to token."""
    courses = measurement.courses
    return 1000 * float(
        statistics.median([(c.last - c.first) / (c.num_tokens - 1) for c in courses])
    )


def planned(overrides: Sequence[str]) -> float:
    """Return the GiB that ``pluribus plan`` expects the fullest rank to take."""
    command = [sys.executable, "-c", "from pluribus.cli import main; main()", "plan"]
    done = subprocess.run(
        [*command, *overrides, "format=json"], capture_output=True, text=True, check=False
    )
    if not done.stdout:
        raise PluribusError(done.stderr)
    return float(max(rank["total"] for rank in json.loads(done.stdout)["ranks"])) / GIBIBYTE


def memory_in_use() -> list[int]:
    """Return the MiB that every GPU has in use."""
    return [int(line) for line in query("memory.used")]


def num_gpus() -> int:
    """Return how many GPUs there are."""
    return len(query("index"))


def query(field: str) -> list[str]:
    """Return what the driver says of each GPU that ``CUDA_VISIBLE_DEVICES`` leaves."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def print_table(results: Sequence[Result]) -> None:
    """Print one line for each split, for people and for README.md."""
    print("\n| model | split | load s | ms/step B=1 | B=64 | tok/s B=64 | GiB | planned |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for each in results:
        cells = (each.load_seconds, each.step_ms, each.step_ms_64, each.tokens_per_second)
        memory = f"{each.memory} | {each.planned}"
        print(f"| {each.model} | {each.split} | {' | '.join(map(str, cells))} | {memory} |")


if __name__ == "__main__":
    main()
