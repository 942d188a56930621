"""One rank on a CUDA device: decoding is replayed from graphs, everything else is launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pluribus.cuda.graphs import DecodeGraphs
from pluribus.cuda.sampler import ADJUSTED, CudaSampler
from pluribus.cuda.state import CudaSlotState
from pluribus.interfaces import KVShape, ModelSpec, Network
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.kernels.passes import Rows, begin_pass, end_pass
from pluribus.kernels.upload import upload
from pluribus.logits_plan import Outcome
from pluribus.step import Row, Step, StepResult
from pluribus.worker import Worker

MAX_PASSES = 8
SECONDS_OF_PASSES = 0.004
"""What passes of one step should take together: new generations wait for no longer than that."""


class CudaWorker(Worker):
    """Runs steps as they are submitted, none waiting for the result of another."""

    def __init__(
        self,
        network: Network,
        store: DeviceKVStore,
        spec: ModelSpec,
        shape: KVShape,
        device: torch.device,
    ) -> None:
        super().__init__(network, store, spec, shape, device)
        self.device_store = store
        self.device = device
        self.state: CudaSlotState = CudaSlotState(shape, spec.num_token_ids, device)
        self.sampler: CudaSampler = CudaSampler(self.state)
        self._padding = shape.num_slots
        self._rows = Rows.make(shape.num_slots, MAX_PASSES, device)
        self._rows.asked.fill_(self._padding)
        self._asked: tuple[int, ...] = ()
        self._max_passes = 1
        self._graphs = DecodeGraphs(self._pass, shape.num_slots, device)
        with torch.inference_mode():
            self._graphs.capture_all()

    @property
    def lookahead(self) -> int:
        return 1

    @property
    def max_passes(self) -> int:
        return self._max_passes

    @torch.inference_mode()
    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Start a step; see Executor.submit."""
        for slot in step.evicted:
            self.store.evict(slot)
        self.state.admit_all(step.admitted)
        for admission in step.admitted:
            self.store.admit(admission)
        self.device_store.flush()
        replayed = [index for index, row in enumerate(step.rows) if self._can_replay(row)]
        if len(replayed) == len(step.rows):
            return self._replay(step.rows, step.passes)
        chosen = set(replayed)
        others = [row for index, row in enumerate(step.rows) if index not in chosen]
        results = [self._launch(others, number) for number in range(step.passes)]
        if replayed:
            burst = self._replay([step.rows[index] for index in replayed], step.passes)
            return lambda: _merged(step.rows, chosen, burst(), _joined([r() for r in results]))
        return lambda: _joined([result() for result in results])

    def _can_replay(self, row: Row) -> bool:
        if row.num_tokens > 1 or not row.samples or row.scores:
            return False
        return not (
            self.state.needs[row.slot] & ADJUSTED or self.state.params[row.slot].wants_logprobs
        )

    def _launch(self, rows: Sequence[Row], number: int) -> Callable[[], StepResult]:
        """Run rows once, in a pass that comes so many after the step's first."""
        outcome = self._run([replace(row, start=row.start + number) for row in rows])
        return _on_its_way(outcome, self.device)

    def _replay(self, rows: Sequence[Row], passes: int) -> Callable[[], StepResult]:
        """Run rows that only decode, several times over."""
        slots = tuple(row.slot for row in rows)
        num_rows = self._graphs.bucket(len(slots))
        self._ask(slots, num_rows)
        self._rows.counter.zero_()
        started = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        started.record()
        self._graphs.replay(num_rows, passes, is_ranked=self.sampler.is_ranked(slots))
        answers = self._rows.answers[:passes, : len(slots)].to("cpu", non_blocking=True)
        ended.record()

        def read() -> StepResult:
            ended.synchronize()
            seconds = started.elapsed_time(ended) / 1000 / passes
            self._max_passes = max(1, min(MAX_PASSES, int(SECONDS_OF_PASSES / seconds)))
            return StepResult(answers.T.tolist())

        return read

    def _ask(self, slots: tuple[int, ...], num_rows: int) -> None:
        """Put slots into the first rows, and padding into the rest of what will run."""
        asked = slots + (self._padding,) * (num_rows - len(slots))
        if self._asked[:num_rows] != asked:
            [column] = upload(self.device, asked)
            self._rows.asked[:num_rows] = column
            self._asked = asked + self._asked[num_rows:]

    def _pass(self, num_rows: int, is_ranked: bool) -> None:
        """Launch a pass that decodes the slots in the first rows."""
        rows, texts = self._rows.first(num_rows), self.state.texts
        begin_pass(texts, rows)
        self.device_store.begin_decode(rows.slots, rows.positions)
        x = self.network(self.network.embed(rows.tokens, rows.positions), self.store)
        logits = self.network.logits(x)
        chosen = self.sampler.draw(logits, rows.slots, rows.positions + 1, is_ranked)
        end_pass(texts, rows, chosen)


@dataclass(frozen=True, slots=True)
class _OnItsWay:
    """An outcome that is being copied to the host."""

    outcome: Outcome
    arrived: torch.cuda.Event

    def __call__(self) -> StepResult:
        self.arrived.synchronize()
        return self.outcome.read()


def _on_its_way(outcome: Outcome, device: torch.device) -> _OnItsWay:
    copied = outcome.to(torch.device("cpu"), non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(device))
    return _OnItsWay(copied, arrived)


def _joined(results: Sequence[StepResult]) -> StepResult:
    """Return the results of passes, one after another, as that of one step."""
    if len(results) == 1:
        return results[0]
    passes = zip(*(result.tokens for result in results), strict=True)
    return StepResult([[token for [token] in row] for row in passes])


def _merged(
    rows: Sequence[Row], replayed: set[int], burst: StepResult, others: StepResult
) -> StepResult:
    """Return the results of rows that were replayed and of all others, in row order."""
    from_burst, from_others = iter(burst.tokens), iter(others.tokens)
    told = iter(others.logprobs)
    tokens, logprobs = [], []
    for index, row in enumerate(rows):
        if not row.samples:
            continue
        tokens.append(next(from_burst if index in replayed else from_others))
        logprobs.append(None if index in replayed or not others.logprobs else next(told))
    return StepResult(tokens, tuple(logprobs) if others.logprobs else (), others.scores)
