"""The engine: schedule, run, update."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pluribus.engine.messages import Output, Stats, Timing
from pluribus.engine.plan import check_plan, check_repeats
from pluribus.engine.rotation import Rotation
from pluribus.errors import RequestError
from pluribus.generation import Batch, FinishReason, Generation, TokenLogprobs
from pluribus.interfaces import Batcher, Executor, KVLedger
from pluribus.step import Admission, Row, Step, StepResult


class Observer:
    """Told of what the engine does, in its thread. Override what is of interest."""

    def step_finished(self, batch: Batch, seconds: float) -> None:
        """Observe a step and the time from its submission to its result."""

    def generation_finished(self, generation: Generation) -> None:
        """Observe a generation that ended by itself."""


@dataclass(frozen=True, slots=True)
class StepUnderWay:
    """A step that has been submitted and whose result has not been read."""

    batch: Batch
    rows: tuple[Row, ...]
    passes: int
    result: Callable[[], StepResult]
    submitted: float


@dataclass(eq=False, slots=True)
class Running:
    """What the engine keeps of a generation beside the generation itself.

    Times are seconds on the monotonic clock; the steps counted are those it took part in;
    ``ends`` are the ids that end it.
    """

    arrived: float
    ends: tuple[int, ...]
    num_reported: int = 0
    has_reported_prompt: bool = False
    started: float = 0.0
    first_token: float = 0.0
    num_steps: int = 0
    num_companions: int = 0


class EngineCore:
    """Drives generations from their prompt to their end. Belongs to one thread.

    A batch is cut into parts, a step each, so that every stage of a pipeline has one to work on:
    while the last of them is under way, the first comes back and goes on. Steps are planned from
    counts alone, so ``lookahead`` of them more may be under way before the tokens of the first are
    known.
    """

    def __init__(
        self,
        batcher: Batcher,
        ledger: KVLedger,
        executor: Executor,
        eos_token_ids: tuple[int, ...],
        observer: Observer,
        lookahead: int = 0,
        rotation: Rotation | None = None,
    ) -> None:
        self.batcher = batcher
        self.ledger = ledger
        self.executor = executor
        self.eos_token_ids = eos_token_ids
        self.observer = observer
        self.lookahead = lookahead
        self.rotation = rotation or Rotation(num_stages=1, provides=())
        self.num_steps = 0
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._last_step = (0, 0, 0.0)
        self._parts: deque[Batch] = deque()
        self._under_way: deque[StepUnderWay] = deque()
        self._max_under_way = lookahead
        self._free_slots = list(reversed(range(executor.kv_shape.num_slots)))
        self._evicted: list[int] = []
        self._running: dict[Generation, Running] = {}

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has anything to do."""
        return bool(self._under_way or self._running)

    def add(self, generation: Generation) -> None:
        """Queue a generation.

        Raises:
            RequestError: it could not run even if it were alone.
        """
        if not self.ledger.fits(generation.max_length):
            raise RequestError(
                f"max_tokens: prompt and answer may take {generation.max_length} tokens, more than "
                f"the {self.executor.kv_shape.num_tokens} that the KV cache holds; "
                "ask for less, or raise cache.kv.memory",
                param="max_tokens",
            )
        self.batcher.add(generation)
        params = generation.params
        ends = params.stop_token_ids + (() if params.ignore_eos else self.eos_token_ids)
        self._running[generation] = Running(arrived=time.monotonic(), ends=ends)

    def step(self) -> list[Output]:
        """Schedule, run, update; return what generations have gained.

        Raises:
            PluginError: the batcher breaks its contract.
        """
        part = self._next_part() if len(self._under_way) <= self._max_under_way else None
        if part is not None:
            self._under_way.append(self._submit(part))
        if self._under_way and (part is None or len(self._under_way) > self._max_under_way):
            return self._update(self._under_way.popleft())
        return []

    def finish(self, generation: Generation) -> None:
        """Take a generation out, waiting or running, and give back what it held."""
        del self._running[generation]
        self.batcher.finish(generation)
        if generation.slot is not None:
            self._evicted.append(generation.slot)
            self._free_slots.append(generation.slot)
            generation.slot = None

    def stats(self) -> Stats:
        """Return the state of things after the last step."""
        batch_size, num_batch_tokens, step_seconds = self._last_step
        return Stats(
            num_steps=self.num_steps,
            num_running=self.batcher.num_running,
            num_waiting=self.batcher.num_waiting,
            num_kv_tokens_used=self.ledger.num_used_tokens,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            batch_size=batch_size,
            num_batch_tokens=num_batch_tokens,
            step_seconds=step_seconds,
        )

    def _next_part(self) -> Batch | None:
        """Return what to run next: of the batch at hand, or of the next one."""
        while self._parts:
            part = self._parts.popleft().num_tokens
            # Who has ended since the batch was planned is not running any more.
            if left := {g: count for g, count in part.items() if g in self._running}:
                return Batch(left)
        batch = self.batcher.next_batch()
        check_plan(
            self.batcher,
            batch,
            self._running,
            self.ledger.limits,
            num_free_slots=len(self._free_slots),
            is_idle=not self._under_way,
        )
        if batch is None:
            return None
        self._parts.extend(self.rotation.cut(batch))
        self._max_under_way = self.lookahead + self.rotation.most_under_way(batch, self._parts)
        return self._parts.popleft()

    def _submit(self, batch: Batch) -> StepUnderWay:
        evicted, self._evicted = tuple(self._evicted), []
        passes = self._passes(batch)
        admitted = tuple(self._admit(g) for g in batch.num_tokens if g.slot is None)
        rows = tuple(self._advance(g, count, passes) for g, count in batch.num_tokens.items())
        num_read = self.num_steps - len(self._under_way)
        step = Step(self.num_steps, evicted, admitted, rows, passes, num_read)
        self.num_steps += 1
        submitted = time.monotonic()
        return StepUnderWay(batch, rows, passes, self.executor.submit(step), submitted)

    def _passes(self, batch: Batch) -> int:
        """Return how many times to run the batch, where that takes no decision in between."""
        most = self.executor.max_passes
        if most == 1 or any(count > 1 for count in batch.num_tokens.values()):
            return 1
        for generation in batch.num_tokens:
            if generation.takes_one_pass:
                return 1
            if not generation.params.is_plain:
                most = min(most, generation.max_length - 1 - generation.num_scheduled)
        for generation, limit in self.ledger.limits.items():
            if generation in batch.num_tokens:
                most = min(most, limit - generation.num_scheduled)
        return check_repeats(self.batcher, self.batcher.repeat(batch, most), most)

    def _admit(self, generation: Generation) -> Admission:
        generation.slot = self._free_slots.pop()
        running = self._running[generation]
        running.started = time.monotonic()
        self._num_prompt_tokens += len(generation.prompt)
        self._num_cached_tokens += generation.num_cached
        params = generation.params
        assert params.seed is not None
        return Admission(
            slot=generation.slot,
            prompt=generation.prompt,
            max_length=generation.max_length,
            params=params,
            ends=running.ends,
            placement=self.ledger.placement(generation),
        )

    def _advance(self, generation: Generation, num_tokens: int, passes: int) -> Row:
        slot, start = generation.slot, generation.num_scheduled
        assert slot is not None
        end = start + num_tokens + passes - 1
        if passes > 1:
            end = min(end, generation.max_length - 1)
        generation.num_scheduled = end
        length = len(generation.prompt)
        if start >= length:
            return Row(slot, start, num_tokens, samples=True)
        self.ledger.advance(generation)
        scores = generation.params.prompt_logprobs is not None
        return Row(slot, start, num_tokens, end >= length, scores)

    def _update(self, step: StepUnderWay) -> list[Output]:
        result = step.result()
        seconds = time.monotonic() - step.submitted
        num_rows, num_tokens = len(step.rows), sum(step.batch.num_tokens.values())
        self._last_step = (num_rows, step.passes * num_tokens, seconds)
        outputs = []
        at, scores = 0, iter(result.scores)
        for generation, row in zip(step.batch.num_tokens, step.rows, strict=True):
            sampled, at = at, at + row.samples
            scored = next(scores) if row.scores else ()
            running = self._running.get(generation)
            # Who ended while the step was under way is not running any more.
            if running is None:
                continue
            running.num_steps += step.passes
            running.num_companions += step.passes * num_rows
            if scored:
                generation.prompt_logprobs += scored
            if row.samples:
                self._append(generation, running, result, sampled)
                outputs.append(self._output(generation, running))
        self.observer.step_finished(step.batch, seconds)
        return outputs

    def _append(
        self, generation: Generation, running: Running, result: StepResult, index: int
    ) -> None:
        running.first_token = running.first_token or time.monotonic()
        if generation.params.max_tokens == 0:
            generation.finish_reason = FinishReason.LENGTH
        else:
            logprobs = result.logprobs[index] if result.logprobs else None
            self._extend(generation, running, result.tokens[index], logprobs)
        if generation.finish_reason is not None:
            self.finish(generation)
            self.observer.generation_finished(generation)

    def _extend(
        self,
        generation: Generation,
        running: Running,
        tokens: Sequence[int],
        logprobs: TokenLogprobs | None,
    ) -> None:
        """Take tokens; one that ends the answer is no part of it, but told with logprobs."""
        if logprobs is not None:
            generation.logprobs.append(logprobs)
        tokens = tokens[: generation.params.max_tokens - len(generation.tokens)]
        for end in running.ends:
            if end in tokens:
                tokens = tokens[: tokens.index(end)]
                generation.finish_reason = FinishReason.STOP
        generation.tokens.extend(tokens)
        if len(generation.tokens) == generation.params.max_tokens:
            generation.finish_reason = generation.finish_reason or FinishReason.LENGTH

    def _output(self, generation: Generation, running: Running) -> Output:
        """Return what has not been reported yet."""
        since, running.num_reported = running.num_reported, len(generation.tokens)
        prompt_logprobs = () if running.has_reported_prompt else tuple(generation.prompt_logprobs)
        running.has_reported_prompt = True
        return Output(
            generation.id,
            tuple(generation.tokens[since:]),
            tuple(generation.logprobs[since:]) if generation.logprobs else (),
            prompt_logprobs,
            generation.finish_reason,
            _timing(generation, running) if generation.finish_reason else None,
        )


def _timing(generation: Generation, running: Running) -> Timing:
    return Timing(
        queue=running.started - running.arrived,
        prefill=running.first_token - running.started,
        decode=time.monotonic() - running.first_token,
        num_cached=generation.num_cached,
        mean_batch_size=running.num_companions / running.num_steps,
    )
