"""The engine: schedule, run, update."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from pluribus.engine.messages import Output, Stats, Timing
from pluribus.engine.plan import check_plan, check_repeats, check_start
from pluribus.engine.rotation import Rotation
from pluribus.engine.running import Running, StepUnderWay, begin, cut, keep, without_partial_prompts
from pluribus.errors import RequestError
from pluribus.generation import Batch, Generation, SamplingParams, TokenLogprobs
from pluribus.interfaces import Batcher, Executor, KVLedger
from pluribus.step import Admission, Row, Step, StepResult


class Observer:
    """Told of what the engine does, in its thread. Override what is of interest."""

    def step_finished(self, batch: Batch, seconds: float) -> None:
        """Observe a step and the time from its submission to its result."""

    def generation_finished(self, generation: Generation) -> None:
        """Observe a generation that ended by itself."""


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
        self._num_passes = 0
        self._num_rows = 0
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
        ends = frozenset(self._ends(generation.params))
        self._running[generation] = Running(generation, time.monotonic(), ends)

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

    def _ends(self, params: SamplingParams) -> tuple[int, ...]:
        return params.stop_token_ids + (() if params.ignore_eos else self.eos_token_ids)

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
            self._running.keys(),
            self.ledger.limits,
            is_idle=not self._under_way,
        )
        if batch is None:
            return None
        self._parts.extend(self.rotation.cut(batch))
        self._max_under_way = self.lookahead + self.rotation.most_under_way(batch, self._parts)
        return self._parts.popleft()

    def _submit(self, batch: Batch) -> StepUnderWay:
        evicted, self._evicted = tuple(self._evicted), []
        members = [self._running[g] for g in batch.num_tokens]
        bound = [member.generation for member in members if not member.is_free]
        admitted = self._admit_new(bound)
        passes = self._passes(batch, bound)
        rows = self._advance(batch, passes)
        self._num_passes += passes
        self._num_rows += passes * len(rows)
        num_read = self.num_steps - len(self._under_way)
        step = Step(self.num_steps, evicted, admitted, rows, passes, num_read)
        self.num_steps += 1
        submitted = time.monotonic()
        result = self.executor.submit(step)
        sampling = without_partial_prompts(members, bound)
        return StepUnderWay(batch, members, sampling, rows, passes, result, submitted)

    def _passes(self, batch: Batch, bound: Sequence[Generation]) -> int:
        """Return how many times to run the batch, where that takes no decision in between.

        Args:
            batch: that is about to be submitted.
            bound: who of it may not take part in any number of passes.
        """
        most = self.executor.max_passes
        if most == 1 or max(batch.num_tokens.values()) > 1:
            return 1
        for generation in bound:
            if generation.takes_one_pass:
                return 1
            if not generation.params.is_plain:
                most = min(most, generation.last - generation.num_scheduled)
        for generation, limit in self.ledger.limits.items():
            if generation in batch.num_tokens:
                most = min(most, limit - generation.num_scheduled)
        return check_repeats(self.batcher, self.batcher.repeat(batch, most), most)

    def _admit_new(self, bound: Sequence[Generation]) -> tuple[Admission, ...]:
        new = [generation for generation in bound if generation.slot is None]
        check_start(self.batcher, len(new), len(self._free_slots))
        return tuple(map(self._admit, new))

    def _admit(self, generation: Generation) -> Admission:
        generation.slot = self._free_slots.pop()
        running = self._running[generation]
        running.started = time.monotonic()
        running.passes_before, running.rows_before = self._num_passes, self._num_rows
        self._num_prompt_tokens += len(generation.prompt)
        self._num_cached_tokens += generation.num_cached
        params = generation.params
        assert params.seed is not None
        return Admission(
            slot=generation.slot,
            prompt=generation.prompt,
            max_length=generation.max_length,
            params=params,
            ends=self._ends(params),
            placement=self.ledger.placement(generation),
        )

    def _advance(self, batch: Batch, passes: int) -> tuple[Row, ...]:
        """Take the batch, run so many times, for computed; return what that is of each."""
        rows = []
        more = passes - 1
        for generation, num_tokens in batch.num_tokens.items():
            slot, start = generation.slot, generation.num_scheduled
            assert slot is not None
            end = start + num_tokens + more
            if more and end > generation.last:
                end = generation.last
            generation.num_scheduled = end
            if start >= len(generation.prompt):
                rows.append(Row(slot, start, num_tokens, True))
            else:
                samples, scores = self._advance_prompt(generation)
                rows.append(Row(slot, start, num_tokens, samples, scores))
        return tuple(rows)

    def _advance_prompt(self, generation: Generation) -> tuple[bool, bool]:
        """Note what a prompt has come to; return whether its row samples, and whether it scores."""
        params = generation.params
        is_done = generation.num_scheduled >= len(generation.prompt)
        self._running[generation].is_free = is_done and params.is_plain and params.logprobs is None
        self.ledger.advance(generation)
        return is_done, params.prompt_logprobs is not None

    def _update(self, step: StepUnderWay) -> list[Output]:
        result = step.result()
        seconds = time.monotonic() - step.submitted
        num_tokens = step.passes * sum(step.batch.num_tokens.values())
        self._last_step = (len(step.rows), num_tokens, seconds)
        if result.scores:
            for member, scores in zip(step.scoring, result.scores, strict=True):
                member.generation.prompt_logprobs += scores
        outputs = self._append(step.sampling, result)
        self.observer.step_finished(step.batch, seconds)
        return outputs

    def _append(self, members: Iterable[Running], result: StepResult) -> list[Output]:
        """Take everybody's tokens; return what is to be reported.

        Nearly everybody gains tokens and nothing else, so nothing is called for that: most of a
        step's time is spent here.
        """
        outputs = []
        logprobs = result.logprobs or [None] * len(result.tokens)
        for member, tokens, told in zip(members, result.tokens, logprobs, strict=True):
            generation = member.generation
            # Who ended while the step was under way is not running any more.
            if generation.slot is None:
                continue
            if (
                told is None
                and member.first_token
                and generation.num_scheduled < generation.last
                and member.ends.isdisjoint(tokens)
            ):
                generation.tokens += tokens
                outputs.append(Output(generation.id, tokens, (), (), None, None))
            else:
                outputs.append(self._take(member, tokens, told))
        return outputs

    def _take(self, member: Running, tokens: tuple[int, ...], told: TokenLogprobs | None) -> Output:
        """Take one's tokens, whatever comes with them; return what is to be reported."""
        generation = member.generation
        tokens = cut(generation, tokens, member.ends)
        generation.tokens += tokens
        return Output(
            generation.id,
            tokens,
            () if told is None else keep(generation, told),
            () if member.first_token else begin(member),
            generation.finish_reason,
            None if generation.finish_reason is None else self._conclude(member),
        )

    def _conclude(self, member: Running) -> Timing:
        """Finish who has ended; return where its time went."""
        generation = member.generation
        self.finish(generation)
        self.observer.generation_finished(generation)
        return Timing(
            queue=member.started - member.arrived,
            prefill=member.first_token - member.started,
            decode=time.monotonic() - member.first_token,
            num_cached=generation.num_cached,
            mean_batch_size=self._mean_batch_size(member),
        )

    def _mean_batch_size(self, member: Running) -> float:
        num_rows = self._num_rows - member.rows_before
        return num_rows / (self._num_passes - member.passes_before)
