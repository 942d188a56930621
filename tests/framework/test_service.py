"""The front keeps its promises on an engine that counts, hangs and dies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from framework.counting import CountingExecutor, core
from framework.front import on_executors, parts, run
from pluribus import EngineError, FinishReason, QueueFullError, RequestError, SamplingParams
from pluribus.assembly import EngineConfig
from pluribus.engine.client import ThreadHost
from pluribus.reply import Completion
from pluribus.service import Service
from pluribus.supervisor import State
from pluribus.tenants import Tenant
from pluribus_batchers.bucket import BucketBatcher, BucketConfig
from pluribus_caches.response.lru import LRUConfig, LRUResponseCache

Test = Callable[[Service], Coroutine[Any, Any, None]]
PROMPT = [0, 11]
FOUR = SamplingParams(max_tokens=4)
LONG = SamplingParams(max_tokens=90)
SEEDED = SamplingParams(max_tokens=4, seed=1)


async def answer(
    service: Service, params: SamplingParams = FOUR, tenant: Tenant | None = None
) -> Completion:
    query = service.query(PROMPT, params)
    with service.ask(query, tenant) if tenant else service.ask(query) as reply:
        await reply.wait()
        return reply.completion("")


def held(num_slots: int = 4) -> tuple[CountingExecutor, threading.Event]:
    """Return an executor that waits at its gate, and the gate."""
    executor = CountingExecutor(num_slots)
    executor.gate = threading.Event()
    return executor, executor.gate


def test_an_answer_is_text_and_tokens() -> None:
    async def test(service: Service) -> None:
        got = await answer(service)
        assert got.tokens == (1002, 1003, 1004, 1005)
        assert got.text == " 1002 1003 1004 1005"
        assert got.prompt_tokens == (0, 11)
        assert got.finish_reason is FinishReason.LENGTH
        assert got.timing is not None

    run(test, on_executors(CountingExecutor()), parts())


def test_pieces_add_up_to_the_answer_and_the_last_says_why() -> None:
    async def test(service: Service) -> None:
        with service.ask(service.query(PROMPT, LONG)) as reply:
            deltas = [delta async for delta in reply.deltas(0.001)]
        assert "".join(delta.text for delta in deltas) == reply.completion("").text
        assert sum((delta.tokens for delta in deltas), ()) == reply.completion("").tokens
        reasons = [delta.finish_reason for delta in deltas]
        assert reasons == [None] * (len(deltas) - 1) + [FinishReason.LENGTH]

    run(test, on_executors(CountingExecutor()), parts())


def test_pieces_that_come_fast_are_joined_and_the_first_is_not_kept_waiting() -> None:
    executor = CountingExecutor()
    executor.seconds_per_step = 0.005

    async def test(service: Service) -> None:
        with service.ask(service.query(PROMPT, LONG)) as reply:
            deltas = [delta async for delta in reply.deltas(0.1)]
        assert 3 <= len(deltas) <= 20
        assert len(deltas[0].tokens) < 10

    run(test, on_executors(executor), parts())


def test_the_end_is_not_kept_waiting_either() -> None:
    async def test(service: Service) -> None:
        with service.ask(service.query(PROMPT, LONG)) as reply:
            deltas = [delta async for delta in reply.deltas(30)]
        assert sum(len(delta.tokens) for delta in deltas) == 90

    executor = CountingExecutor()
    executor.seconds_per_step = 0.001
    run(test, on_executors(executor), parts())


def test_the_same_reproducible_query_runs_once() -> None:
    executor, gate = held()

    async def test(service: Service) -> None:
        asked = [asyncio.create_task(answer(service, SEEDED)) for _ in range(5)]
        asked += [asyncio.create_task(answer(service)) for _ in range(2)]
        await asyncio.sleep(0)
        gate.set()
        answers = await asyncio.gather(*asked)
        assert len({got.tokens for got in answers}) == 1
        admitted = sum(len(step.admitted) for step in executor.steps)
        assert admitted == 3

    run(test, on_executors(executor), parts())


def test_tenants_do_not_share() -> None:
    """Or whoever asked first would decide when another one's turn comes."""
    executor, gate = held()

    async def test(service: Service) -> None:
        query = service.query(PROMPT, SEEDED)
        replies = [service.ask(query, Tenant(name=name)) for name in ("one", "other", "one")]
        assert service.num_flights == 2
        gate.set()
        for reply in replies:
            await reply.wait()
            reply.close()

    run(test, on_executors(executor), parts())


def test_a_shared_generation_lives_until_the_last_leaves() -> None:
    executor, gate = held()

    async def test(service: Service) -> None:
        query = service.query(PROMPT, SEEDED)
        with service.ask(query), service.ask(query) as second:
            first = service.ask(query)
            first.close()
            assert service.num_flights == 1
            gate.set()
            await second.wait()
        assert second.completion("").tokens == (1002, 1003, 1004, 1005)

    run(test, on_executors(executor), parts())


def test_a_generation_that_nobody_waits_for_is_cancelled() -> None:
    executor, gate = held()

    async def test(service: Service) -> None:
        with service.ask(service.query(PROMPT, LONG)):
            await asyncio.sleep(0.05)
        assert service.num_flights == 0
        gate.set()
        await answer(service)
        assert len(executor.steps) < 12
        assert not executor.ends or len(executor.ends) == 1

    run(test, on_executors(executor), parts())


def test_a_stop_string_ends_the_text_before_it_and_the_generation() -> None:
    executor = CountingExecutor()

    async def test(service: Service) -> None:
        params = SamplingParams(max_tokens=90, stop=("04 10", "never"))
        got = await answer(service, params)
        assert got.text == " 1002 1003 10"
        assert got.finish_reason is FinishReason.STOP
        assert got.tokens == (1002, 1003, 1004, 1005)
        await answer(service)
        assert sum(len(step.rows) for step in executor.steps) < 30

    run(test, on_executors(executor), parts())


def test_a_stop_string_is_ignored_before_min_tokens() -> None:
    async def test(service: Service) -> None:
        params = SamplingParams(max_tokens=6, min_tokens=3, stop=("1003", "1006"))
        got = await answer(service, params)
        assert got.text == " 1002 1003 1004 1005 "

    run(test, on_executors(CountingExecutor()), parts())


def test_answers_under_way_share_what_looks_for_the_same_stop_strings() -> None:
    async def test(service: Service) -> None:
        asked = [
            SamplingParams(stop=stop, seed=seed)
            for stop, seed in ((("a", "b"), 1), (("a", "b"), 2), (("a",), 1))
        ]
        replies = [service.ask(service.query(PROMPT, params)) for params in asked]
        first, second, other = (reply.flight.detokenizer._stops for reply in replies)
        replies[0].flight.restart()
        assert replies[0].flight.detokenizer._stops is first
        assert first is second is not other
        for reply in replies:
            reply.close()

    run(test, on_executors(CountingExecutor()), parts())


def test_repeated_queries_come_from_the_response_cache() -> None:
    cache = LRUResponseCache(LRUConfig(pinned=[{"prompt": "hi"}]))

    async def test(service: Service) -> None:
        first, second = await answer(service, SEEDED), await answer(service, SEEDED)
        assert (first.cached, second.cached) == (False, True)
        assert second.text == first.text
        assert second.tokens == first.tokens

    run(test, on_executors(CountingExecutor()), parts(response_cache=cache))


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", FOUR, "prompt: must not be empty"),
        ([], FOUR, "prompt: must not be empty"),
        ([3000], FOUR, "prompt: token ids must be from 0 to 2999, got 3000"),
        ([0] * 100, FOUR, "100 tokens are too many.* at most 99 of prompt"),
        ("!" * 101, FOUR, "at least 101 tokens are too many.* at most 99 of prompt"),
        (5, FOUR, r"prompt: must be text, or a list of token ids such as \[2, 5, 9\], got 5"),
        (None, FOUR, "prompt: must be text, or a list of token ids .*, got None"),
        (b"hi", FOUR, "prompt: must be text, or a list of token ids .*, got b'hi'"),
        ({2: 3}, FOUR, "prompt: must be text, or a list of token ids .*, got {2: 3}"),
        ([True], FOUR, "prompt: token ids must be from 0 to 2999, got True"),
        ([5, "a"], FOUR, "prompt: token ids must be from 0 to 2999, got 'a'"),
        ([5.0], FOUR, "prompt: token ids must be from 0 to 2999, got 5.0"),
        ([0] * 97, FOUR, "max_tokens: 4 is more than the 3 that fit"),
        (PROMPT, SamplingParams(logit_bias=((9999, 1.0),)), "logit_bias: token ids must be"),
        (PROMPT, SamplingParams(stop_token_ids=(-1,)), "stop_token_ids: token ids must be"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_field_at_fault(
    prompt: Any, params: SamplingParams, message: str
) -> None:
    async def test(service: Service) -> None:
        with pytest.raises(RequestError, match=message) as caught:
            service.query(prompt, params)
        field, colon, _ = message.partition(":")
        assert caught.value.param == (field if colon and field.islower() else "prompt")

    run(test, on_executors(CountingExecutor()), parts())


def test_max_tokens_may_be_fitted_to_the_room() -> None:
    async def test(service: Service) -> None:
        assert service.query([0] * 97, LONG, fit=True).params.max_tokens == 3

    run(test, on_executors(CountingExecutor()), parts())


def test_a_prompt_may_fill_the_whole_length_when_it_is_only_scored() -> None:
    async def test(service: Service) -> None:
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        query = service.query([0] * 100, params)
        with service.ask(query) as reply:
            await reply.wait()
        assert len(reply.completion("").prompt_logprobs) == 99
        assert reply.completion("").tokens == ()

    run(test, on_executors(CountingExecutor()), parts())


def test_a_full_queue_sends_away_and_takes_again() -> None:
    executor, gate = held(num_slots=1)

    async def test(service: Service) -> None:
        replies = [service.ask(service.query(PROMPT, FOUR)) for _ in range(3)]
        with pytest.raises(QueueFullError, match=r"3 requests .*queue.max_size") as caught:
            service.ask(service.query(PROMPT, FOUR))
        assert not caught.value.is_tenant
        gate.set()
        for reply in replies:
            await reply.wait()
        await answer(service)

    run(test, on_executors(executor), parts(max_waiting=2, num_slots=1))


def test_several_are_begun_together_or_not_at_all() -> None:
    executor, gate = held()
    small = Tenant(name="small", max_requests=3, requests_per_minute=4)

    async def test(service: Service) -> None:
        query = service.query(PROMPT, FOUR)
        for _ in range(10):
            with service.ask(query, small), pytest.raises(QueueFullError, match="3 of your"):
                service.ask_all([query] * 3, small)
            assert service.num_flights == 0
            service._limiter.forgive(small, 1)
        gate.set()
        for reply in service.ask_all([query] * 3, small):
            await reply.wait()
        await answer(service, tenant=small)
        with pytest.raises(QueueFullError, match="4 of your requests have begun"):
            service.ask(query, small)

    run(test, on_executors(executor), parts())


def test_a_tenant_s_own_limit_leaves_the_others_alone() -> None:
    executor, gate = held()
    small, other = Tenant(name="small", max_requests=1), Tenant(name="other")

    async def test(service: Service) -> None:
        query = service.query(PROMPT, FOUR)
        with service.ask(query, small) as reply:
            with pytest.raises(QueueFullError, match="1 of your requests") as caught:
                service.ask(query, small)
            assert caught.value.is_tenant
            with service.ask(query, other):
                gate.set()
                await reply.wait()
        await answer(service, tenant=small)

    run(test, on_executors(executor), parts())


def dying(after: int = 0) -> CountingExecutor:
    """Return an executor that dies at its first step, or so many steps later."""
    executor = CountingExecutor()
    executor.failure = ValueError("on fire")
    executor.failure_after = after
    return executor


def test_what_nobody_has_seen_is_run_again_by_the_next_engine() -> None:
    second = CountingExecutor()

    async def test(service: Service) -> None:
        answers = await asyncio.gather(*(answer(service) for _ in range(6)))
        assert {got.tokens for got in answers} == {(1002, 1003, 1004, 1005)}
        assert service.fleet.num_restarts == 1
        assert service.status.state is State.READY

    run(test, on_executors(dying(after=2), second), parts())


def test_what_has_been_shown_fails_and_says_so() -> None:
    first, gate = held()
    first.failure, first.failure_after = ValueError("on fire"), 3
    gate.set()

    async def test(service: Service) -> None:
        async def read() -> None:
            with service.ask(service.query(PROMPT, LONG)) as reply:
                async for _ in reply.deltas(0):
                    pass

        with pytest.raises(EngineError, match=r"the engine died: .*on fire"):
            await read()
        await service.fleet.wait_ready()
        await answer(service)

    run(test, on_executors(first, CountingExecutor()), parts())


def test_what_has_been_shown_to_one_is_run_again_for_who_shares_it() -> None:
    first, gate = held()
    first.failure, first.failure_after = ValueError("on fire"), 20
    second = CountingExecutor()

    async def test(service: Service) -> None:
        query = service.query(PROMPT, replace(LONG, seed=1))

        async def read() -> None:
            with service.ask(query) as reply:
                async for _ in reply.deltas(0):
                    pass

        with service.ask(query) as waits:
            reading = asyncio.create_task(read())
            await asyncio.sleep(0)
            assert service.num_flights == 1
            gate.set()
            with pytest.raises(EngineError, match=r"the engine died: .*on fire"):
                await reading
            await waits.wait()
        assert waits.completion("").tokens == tuple(range(1002, 1092))
        assert len(second.steps) == 90

    run(test, on_executors(first, second), parts())


def test_a_generation_that_kills_engines_is_not_tried_for_ever() -> None:
    async def test(service: Service) -> None:
        with pytest.raises(EngineError, match="the engine died"):
            await answer(service)
        await service.fleet.wait_ready()
        await answer(service)

    run(test, on_executors(dying(), dying(), CountingExecutor()), parts())


def test_engines_that_keep_dying_are_given_up() -> None:
    async def test(service: Service) -> None:
        with pytest.raises(EngineError, match="on fire"):
            await answer(service)
        assert service.status.state is State.FAILED
        with pytest.raises(EngineError, match="the service is failed"):
            await answer(service)
        assert not service.fleet.is_advancing()

    run(test, on_executors(dying(), dying()), parts(engine=EngineConfig(max_restarts=1)))


def test_a_batcher_that_breaks_its_contract_is_not_started_again() -> None:
    class Idle(BucketBatcher):
        def next_batch(self) -> None:
            return None

    engine = core(CountingExecutor())
    engine.batcher = Idle(BucketConfig(), engine.ledger)

    async def test(service: Service) -> None:
        with pytest.raises(EngineError, match=r"the engine died: the batcher .*Idle plans no step"):
            await answer(service)
        assert service.status.state is State.FAILED
        assert service.fleet.num_restarts == 0

    run(test, ThreadHost(lambda progress: engine), parts())


def test_draining_finishes_what_runs_and_takes_nothing_new() -> None:
    executor, gate = held()

    async def test(service: Service) -> None:
        running = asyncio.create_task(answer(service))
        await asyncio.sleep(0)
        draining = asyncio.create_task(service.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="the service is stopping"):
            await answer(service)
        gate.set()
        await draining
        assert (await running).tokens == (1002, 1003, 1004, 1005)

    run(test, on_executors(executor), parts())


def test_draining_ends_when_the_last_client_leaves() -> None:
    executor, gate = held()

    async def test(service: Service) -> None:
        with service.ask(service.query(PROMPT, LONG)):
            draining = asyncio.create_task(service.drain(100))
            await asyncio.sleep(0.05)
            assert not draining.done()
        assert service.num_flights == 0
        await asyncio.wait_for(draining, 5)
        gate.set()

    run(test, on_executors(executor), parts())


def test_draining_ends_when_its_time_is_up() -> None:
    executor, gate = held()

    async def test(service: Service) -> None:
        running = asyncio.create_task(answer(service, LONG))
        await asyncio.sleep(0)
        await service.drain(0.05)
        assert service.num_flights == 1
        gate.set()
        await service.stop()
        with pytest.raises(EngineError, match="stopped before the answer was complete"):
            await running

    run(test, on_executors(executor), parts())
