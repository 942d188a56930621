"""Stages of a pipeline, in threads, give what one rank gives, and work at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from framework.staged import PATIENCE, StagedExecutor
from framework.test_worker import SHAPE, SPEC
from opt.reading import decoder_at
from opt.variants import VARIANTS, architecture, canonical, hugging_face
from pluribus import Capability, Generation, SamplingParams, TokenLogprobs
from pluribus.engine.core import EngineCore, Observer
from pluribus.engine.rotation import Rotation
from pluribus.interfaces import Executor, KVStore, ModelSpec, Network, Place, Share
from pluribus.parallel.group import TensorParallel
from pluribus.parallel.rank import run_steps
from pluribus.step import Admission, Row, Step, StepResult
from pluribus.testing import RoomFor
from pluribus.testing.reference import ReferenceKVStore
from pluribus.worker import Worker
from pluribus_batchers.continuous import ContinuousBatcher, ContinuousConfig
from pluribus_opt.decoder import OPTDecoder

PROMPTS = [(2, 50, 7, 71, 33, 33, 4, 68, 12, 29, 5), (2,), (2, 11, 80, 3, 45), (2, 9, 9, 9, 40, 6)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=9, seed=0, ignore_eos=True)
PARAMS = [
    replace(GREEDY, logprobs=3, prompt_logprobs=2),
    SamplingParams(temperature=0.9, seed=7, max_tokens=7),
    replace(GREEDY, repetition_penalty=1.6, presence_penalty=0.5, frequency_penalty=0.3),
    SamplingParams(temperature=1.5, seed=3, top_k=9, top_p=0.8, max_tokens=12, logprobs=0),
    SamplingParams(max_tokens=0, prompt_logprobs=1, seed=1),
    replace(GREEDY, min_tokens=4, stop_token_ids=tuple(range(30)), logit_bias=((17, 9.0),)),
]


@cache
def weights(variant: str) -> tuple[ModelSpec, Callable[[Place], OPTDecoder]]:
    model = hugging_face(variant)
    config = architecture(model)
    spec = replace(
        SPEC,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
    )
    return spec, partial(decoder_at, config=config, tensors=canonical(model))


def alone(variant: str) -> Worker:
    spec, network = weights(variant)
    place = Place(share=Share(rank=0, layers=range(spec.num_layers)), tensor=TensorParallel())
    return Worker(network(place), ReferenceKVStore(), spec, SHAPE, torch.device("cpu"))


def staged(variant: str, num_stages: int) -> StagedExecutor:
    spec, network = weights(variant)
    return StagedExecutor(network, spec, SHAPE, num_stages)


def core(
    executor: Executor, num_parts: int, lookahead: int = 0, max_tokens: int = 16
) -> EngineCore:
    ledger = RoomFor(SHAPE.num_tokens)
    config = ContinuousConfig(max_batch_size=SHAPE.num_slots, max_batch_tokens=max_tokens)
    batcher = ContinuousBatcher(config, ledger)
    rotation = Rotation(num_parts, frozenset(Capability))
    return EngineCore(batcher, ledger, executor, (2,), Observer(), lookahead, rotation)


def ask_everything(engine: EngineCore) -> list[Generation]:
    generations = [
        Generation(id=index, prompt=PROMPTS[index % len(PROMPTS)], params=params)
        for index, params in enumerate(PARAMS * 2)
    ]
    for generation in generations:
        engine.add(generation)
    return generations


def answers(engine: EngineCore) -> list[Generation]:
    generations = ask_everything(engine)
    while engine.has_work:
        engine.step()
    return generations


@cache
def expected(variant: str) -> list[Generation]:
    return answers(core(alone(variant), num_parts=1))


def assert_told_alike(ours: list[TokenLogprobs], theirs: list[TokenLogprobs]) -> None:
    """Logprobs are logits less a constant: they agree as closely as those."""
    assert [one.token for one in ours] == [one.token for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [id_ for id_, _ in one.top] == [id_ for id_, _ in other.top]
        values = [value for _, value in other.top]
        assert [value for _, value in one.top] == pytest.approx(values, abs=1e-4)


def assert_same(ours: list[Generation], theirs: list[Generation]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.tokens == other.tokens
        assert one.finish_reason == other.finish_reason
        assert_told_alike(one.logprobs, other.logprobs)
        assert_told_alike(one.prompt_logprobs, other.prompt_logprobs)


@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_stages_are_as_one_rank(variant: str, num_stages: int) -> None:
    with staged(variant, num_stages) as executor:
        assert_same(answers(core(executor, num_parts=num_stages)), expected(variant))


@pytest.mark.parametrize(("num_parts", "lookahead"), [(1, 0), (1, 2), (2, 1), (4, 0)])
def test_however_steps_run_ahead_stages_are_as_one_rank(num_parts: int, lookahead: int) -> None:
    with staged("pre-norm", 3) as executor:
        assert_same(answers(core(executor, num_parts, lookahead)), expected("pre-norm"))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2), st.integers(4, 30), st.randoms(use_true_random=False))
def test_whoever_is_cancelled_in_the_middle_the_others_do_not_notice(
    num_parts: int, lookahead: int, max_tokens: int, chance: Random
) -> None:
    with staged("pre-norm", 2) as executor:
        engine = core(executor, num_parts, lookahead, max_tokens)
        generations = ask_everything(engine)
        doomed = chance.sample(generations, 5)
        while engine.has_work:
            engine.step()
            if doomed and chance.random() < 0.3 and doomed[-1].finish_reason is None:
                engine.finish(doomed.pop())
    for one, other in zip(generations, expected("pre-norm"), strict=True):
        if one.finish_reason is None:
            assert one.tokens == other.tokens[: len(one.tokens)]
        else:
            assert one.tokens == other.tokens


def test_what_has_arrived_is_let_go() -> None:
    with staged("pre-norm", 3) as executor:
        answers(core(executor, num_parts=3))
    assert all(len(set(link.under_way)) <= 3 for link in executor.links)


def admission(slot: int, prompt: tuple[int, ...]) -> Admission:
    return Admission(
        slot=slot,
        prompt=prompt,
        max_length=30,
        params=replace(GREEDY, logprobs=5),
        ends=(),
        placement=(),
    )


def test_a_token_that_comes_late_is_not_written_over_who_has_moved_in() -> None:
    before, after = PROMPTS[2], PROMPTS[0]
    with staged("pre-norm", 2) as executor:
        whole = Row(0, 0, len(before), samples=True)
        late = executor.submit(Step(0, (), (admission(0, before),), (whole,)))
        part = Row(0, 0, 4, samples=False)
        executor.submit(Step(1, (0,), (admission(0, after),), (part,)))
        late()
        rest = Row(0, 4, len(after) - 4, samples=True)
        [told] = executor.submit(Step(2, (), (), (rest,)))().logprobs
    row = Row(0, 0, len(after), samples=True)
    step = Step(0, (), (admission(0, after),), (row,))
    [wanted] = alone("pre-norm").submit(step)().logprobs
    assert told is not None
    assert wanted is not None
    assert_told_alike([told], [wanted])


class Steps(queue.SimpleQueue[Step]):
    """Gives some steps at once, has no more for a while, and then ends."""

    def __init__(self, num_steps: int) -> None:
        self._left = [Step(number, (), (), ()) for number in range(num_steps)]

    def get(self, block: bool = True, timeout: float | None = None) -> Step:
        if self._left:
            return self._left.pop(0)
        if timeout is None:
            raise EOFError
        raise queue.Empty


def test_a_rank_reads_nothing_while_there_are_steps_and_the_last_one_then() -> None:
    events: list[tuple[str, int]] = []

    class Noting(Executor):
        kv_shape = SHAPE

        def submit(self, step: Step) -> Callable[[], StepResult]:
            events.append(("submit", step.number))

            def read() -> StepResult:
                events.append(("read", step.number))
                return StepResult(())

            return read

        def shutdown(self) -> None:
            """Nothing to stop."""

    with pytest.raises(EOFError):
        run_steps(Noting(), Steps(3))
    assert events == [("submit", 0), ("submit", 1), ("submit", 2), ("read", 2)]


class Begun:
    """Which steps a stage has begun."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def note(self) -> int:
        """Note one more, and return its number."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()
            return self._count - 1

    def await_step(self, number: int) -> bool:
        """Wait until this step has begun; return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count > number, PATIENCE / 4)


class Meeting:
    """A network that does not finish a step before the first stage has begun the next one."""

    def __init__(self, network: Network, stage: int, begun: Begun, met: list[bool]) -> None:
        self._network = network
        self._stage = stage
        self._begun = begun
        self._met = met
        self._num_steps = 0

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self._network.embed(tokens, positions)

    def __call__(self, x: Tensor, kv: KVStore, wanted: Tensor | None = None) -> Tensor:
        number, self._num_steps = self._num_steps, self._num_steps + 1
        if self._stage == 0:
            self._begun.note()
        else:
            self._met.append(self._begun.await_step(number + self._stage))
        return self._network(x, kv, wanted)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._network.logits(hidden)


@pytest.mark.parametrize("num_stages", [2, 3])
def test_stages_work_at_the_same_time(num_stages: int) -> None:
    spec, network = weights("pre-norm")
    begun, met = Begun(), list[bool]()

    def meeting(place: Place) -> Network:
        return Meeting(network(place), place.share.stage, begun, met)

    with StagedExecutor(meeting, spec, SHAPE, num_stages) as executor:
        engine = core(executor, num_parts=num_stages)
        for index in range(num_stages):
            engine.add(Generation(id=index, prompt=PROMPTS[index], params=GREEDY))
        for _ in range(5 * num_stages):  # each to its fifth token
            engine.step()
        # What is under way has nobody behind it to meet: let it go.
        assert met
        assert all(met)
        for _ in range(num_stages):
            begun.note()
        while engine.has_work:
            engine.step()
            for _ in range(num_stages):
                begun.note()
