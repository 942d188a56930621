"""What a step takes the engine's thread, before a device that takes no time.

    python benchmarks/steps.py [--running 64 256 512] [--passes 1 2 8] [--repeats 5]

Prints microseconds, the least of all repeats, since whatever else a machine does adds to them: of
scheduling, running and updating where nobody joins or leaves, of the same where answers have 200
tokens, so that somebody nearly always does, and of telling the front.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import msgspec

from pluribus.engine.core import EngineCore, Observer
from pluribus.engine.messages import Stepped
from pluribus.generation import Generation, SamplingParams
from pluribus.interfaces import Executor, KVLedger, KVShape
from pluribus.step import Step, StepResult
from pluribus_batchers.continuous import ContinuousConfig
from pluribus_batchers.fair import FairBatcher

EOS, TOKEN = 2, 7
NUM_STEPS = 100
ENDLESS = 10**6
LENGTH = 200
MICRO = 1e6


class IdleDevice(Executor):
    """Answers every row with the same token, as often as it is run."""

    def __init__(self, num_slots: int, passes: int) -> None:
        self._shape = KVShape(
            num_layers=1,
            num_heads=1,
            head_dim=1,
            num_slots=num_slots,
            max_length=ENDLESS,
            num_tokens=ENDLESS * num_slots,
        )
        self._passes = passes
        self._answers = [(TOKEN,) * passes for passes in range(passes + 1)]

    @property
    def kv_shape(self) -> KVShape:
        return self._shape

    @property
    def lookahead(self) -> int:
        return 1

    @property
    def max_passes(self) -> int:
        return self._passes

    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Run nothing."""
        result = StepResult([self._answers[step.passes]] * len(step.rows))
        return lambda: result

    def shutdown(self) -> None:
        """Leave nothing behind."""


class BoundlessLedger(KVLedger):
    """Has room for everybody."""

    def fits(self, num_tokens: int) -> bool:
        return True

    def try_reserve(self, generation: Generation) -> bool:
        return True

    def placement(self, generation: Generation) -> tuple[int, ...]:
        return ()

    def release(self, generation: Generation) -> None:
        """Nothing was reserved."""

    @property
    def num_used_tokens(self) -> int:
        return 0

    def check_integrity(self) -> None:
        """There is nothing to check."""


def running(num_running: int, passes: int, lengths: Iterator[int]) -> EngineCore:
    """Return an engine that has so many running, and twice as many in all for each of them."""
    device = IdleDevice(num_running, passes)
    ledger = BoundlessLedger()
    config = ContinuousConfig(num_running, max(2048, num_running))
    batcher = FairBatcher(config, ledger)
    core = EngineCore(batcher, ledger, device, (EOS,), Observer(), device.lookahead)
    num_waiting = NUM_STEPS * passes * num_running // LENGTH + num_running
    for id_, length in zip(range(num_running + num_waiting), lengths, strict=False):
        core.add(
            Generation(id=id_, prompt=(TOKEN,), params=SamplingParams(max_tokens=length, seed=id_))
        )
    for _ in range(3):
        core.step()
    return core


def measure(core: EngineCore) -> tuple[float, float]:
    """Return the microseconds that a step takes, and that its outputs take to become a message."""
    encoder = msgspec.msgpack.Encoder()
    steps, messages = [], []
    for _ in range(NUM_STEPS):
        started = time.perf_counter()
        outputs = core.step()
        stepped = time.perf_counter()
        encoder.encode(Stepped(tuple(outputs), core.stats()))
        messages.append(time.perf_counter() - stepped)
        steps.append(stepped - started)
    return statistics.median(steps) * MICRO, statistics.median(messages) * MICRO


def staggered(num_running: int) -> Iterator[int]:
    """Yield lengths: as many end in every pass as in any other."""
    for index in range(num_running):
        yield 1 + LENGTH * (index + 1) // num_running
    yield from itertools.repeat(LENGTH)


def main() -> None:
    """Print a line for each number of generations and passes."""
    parser = argparse.ArgumentParser(description="What a step takes the engine's thread.")
    parser.add_argument("--running", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print("| running | passes | step us | a pass | who joins and leaves | message us |")
    print("|--:|--:|--:|--:|--:|--:|")
    for num, passes in itertools.product(arguments.running, arguments.passes):
        same, changing = [], []
        for _ in range(arguments.repeats):
            same.append(measure(running(num, passes, itertools.repeat(ENDLESS - 1))))
            changing.append(measure(running(num, passes, staggered(num))))
        step, message = map(min, zip(*same, strict=True))
        cells = [
            num,
            passes,
            *(f"{x:.0f}" for x in (step, step / passes, min(changing)[0], message)),
        ]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
