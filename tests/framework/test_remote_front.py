"""What a worker gets from the first process is what it would have got in it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from framework.counting import CountingExecutor
from framework.distant import Distant, run_distant
from framework.front import on_executors, parts, run
from pluribus import (
    EngineError,
    FinishReason,
    PluribusError,
    Query,
    QueueFullError,
    SamplingParams,
)
from pluribus.front import Front
from pluribus.plugins import Plugins
from pluribus.reply import Completion
from pluribus.server.workers.messages import (
    Ask,
    Delivered,
    FromWorker,
    Gain,
    Leave,
    Told,
    Trouble,
)
from pluribus.server.workers.remote import RemoteFront
from pluribus.service import Service
from pluribus.tenants import ANONYMOUS, Tenant
from pluribus_caches.response.lru import LRUConfig, LRUResponseCache
from pluribus_caches.response.none import NoResponseCache, NoResponseCacheConfig

PROMPT = [0, 11]
ENDING = [30, 11, 12]
LONG = SamplingParams(max_tokens=90)
SEEDED = SamplingParams(max_tokens=4, seed=1)
ALL_KINDS = [
    SamplingParams(max_tokens=4),
    SamplingParams(max_tokens=4, logprobs=0),
    SamplingParams(max_tokens=4, logprobs=0, prompt_logprobs=0),
    SamplingParams(max_tokens=0, prompt_logprobs=0),
    SamplingParams(max_tokens=80),
    SamplingParams(max_tokens=80, logprobs=0),
    SamplingParams(max_tokens=80, stop=("04 10", "never")),
    SamplingParams(max_tokens=80, stop=("10",), min_tokens=3, logprobs=0),
    SamplingParams(max_tokens=80, stop=("10",), ignore_eos=True, seed=5),
]


async def answer(front: Front, params: SamplingParams, tenant: Tenant = ANONYMOUS) -> Completion:
    with front.ask(front.query(PROMPT, params), tenant) as reply:
        await reply.wait()
        return reply.completion("")


async def pieces(front: Front, prompt: list[int], params: SamplingParams) -> list[Any]:
    """Return a streamed answer: its text, its tokens, their logprobs and why it ended."""
    with front.ask(front.query(prompt, params)) as reply:
        await reply.begun()
        deltas = [delta async for delta in reply.deltas(0.001)]
        text = "".join(delta.text for delta in deltas)
        tokens = sum((delta.tokens for delta in deltas), ())
        logprobs = sum((delta.logprobs for delta in deltas), ())
        whole = replace(reply.completion(""), timing=None)
        return [text, tokens, logprobs, deltas[-1].finish_reason, whole]


@pytest.mark.parametrize("prompt", [PROMPT, ENDING], ids=["to the length", "to the end"])
@pytest.mark.parametrize("params", ALL_KINDS, ids=range(len(ALL_KINDS)))
def test_an_answer_is_the_same(prompt: list[int], params: SamplingParams) -> None:
    got: list[list[Any]] = []

    async def here(service: Service) -> None:
        got.append(await pieces(service, prompt, params))

    async def there(distant: Distant) -> None:
        async with distant.worker() as front:
            got.append(await pieces(front, prompt, params))

    run(here, on_executors(CountingExecutor()), parts())
    run_distant(there, on_executors(CountingExecutor()), parts())
    assert got[0] == got[1]


def test_a_reproducible_query_runs_once_for_all_workers() -> None:
    executor = CountingExecutor()
    executor.gate = threading.Event()

    async def test(distant: Distant) -> None:
        async with distant.worker() as one, distant.worker() as other:
            early = asyncio.create_task(answer(one, SEEDED))
            await asyncio.sleep(0.05)
            late = asyncio.create_task(answer(other, SEEDED))
            await asyncio.sleep(0.05)
            assert executor.gate
            executor.gate.set()
            assert replace(await early, timing=None) == replace(await late, timing=None)
        assert sum(len(step.admitted) for step in executor.steps) == 1

    run_distant(test, on_executors(executor), parts())


def test_who_joins_late_gets_the_beginning_too() -> None:
    executor = CountingExecutor()
    executor.seconds_per_step = 0.005

    async def test(distant: Distant) -> None:
        params = SamplingParams(max_tokens=60, seed=1)
        async with distant.worker() as one, distant.worker() as other:
            early = asyncio.create_task(answer(one, params))
            await asyncio.sleep(0.1)
            assert not early.done()
            [text, tokens, *_] = await pieces(other, PROMPT, params)
            assert (text, tokens) == ((await early).text, (await early).tokens)

    run_distant(test, on_executors(executor), parts())


def test_a_remembered_answer_says_so_once_it_has_begun() -> None:
    async def test(distant: Distant) -> None:
        async with distant.worker() as one, distant.worker() as other:
            first = await answer(one, SEEDED)
            with other.ask(other.query(PROMPT, SEEDED)) as reply:
                await reply.begun()
                assert reply.cached
                await reply.wait()
                assert reply.completion("").text == first.text
        assert not first.cached

    cache = LRUResponseCache(LRUConfig())
    run_distant(test, on_executors(CountingExecutor()), parts(response_cache=cache))


def test_a_tenant_s_limit_counts_what_it_has_at_all_workers() -> None:
    executor = CountingExecutor()
    executor.gate = threading.Event()
    small = Tenant(name="small", max_requests=2)

    async def test(distant: Distant) -> None:
        async with distant.worker() as one, distant.worker() as other:
            query = one.query(PROMPT, LONG)
            with one.ask(query, small) as first, other.ask(query, small) as second:
                await first.begun()
                await second.begun()
                for front in (one, other):
                    with front.ask(query, small) as third:
                        with pytest.raises(QueueFullError, match="2 of your requests") as caught:
                            await third.begun()
                        assert caught.value.is_tenant
                        with pytest.raises(QueueFullError):
                            await third.wait()
                with other.ask(query, Tenant(name="another")) as reply:
                    await reply.begun()
                assert executor.gate
                executor.gate.set()

    run_distant(test, on_executors(executor), parts())


def test_the_queue_s_limit_is_everybody_s() -> None:
    executor = CountingExecutor(num_slots=1)
    executor.gate = threading.Event()

    async def test(distant: Distant) -> None:
        async with distant.worker() as one, distant.worker() as other:
            assert one.max_flights == 2
            with one.ask(one.query(PROMPT, LONG)), other.ask(one.query(PROMPT, LONG)) as reply:
                await reply.begun()
                with (
                    one.ask(one.query(PROMPT, LONG)) as third,
                    pytest.raises(QueueFullError, match=r"2 requests .*queue\.max_size") as caught,
                ):
                    await third.begun()
                assert not caught.value.is_tenant
                assert executor.gate
                executor.gate.set()

    run_distant(test, on_executors(executor), parts(max_waiting=1, num_slots=1))


def test_what_is_left_is_cancelled_and_what_a_dead_worker_had_as_well() -> None:
    executor = CountingExecutor()
    executor.seconds_per_step = 0.01

    async def test(distant: Distant) -> None:
        async with distant.worker() as stays:
            async with distant.worker() as dies:
                left = [dies.ask(dies.query(PROMPT, LONG)) for _ in range(2)]
                kept = stays.ask(stays.query(PROMPT, LONG))
                for reply in (*left, kept):
                    await reply.begun()
                assert distant.service.num_flights == 3
                left[0].close()
                await stays.health()
                await dies.health()
                assert distant.service.num_flights == 2
            assert distant.service.num_flights == 1
            await kept.wait()
            assert len(kept.completion("").tokens) == 90
            kept.close()

    run_distant(test, on_executors(executor), parts())


def dying(after: int) -> CountingExecutor:
    executor = CountingExecutor()
    executor.failure, executor.failure_after = ValueError("on fire"), after
    executor.seconds_per_step = 0.01
    return executor


def test_what_nobody_has_seen_is_run_again() -> None:
    async def test(distant: Distant) -> None:
        async with distant.worker() as front:
            answers = await asyncio.gather(*(answer(front, LONG) for _ in range(3)))
            assert {got.tokens for got in answers} == {tuple(range(1002, 1092))}
            assert distant.service.fleet.num_restarts == 1

    run_distant(test, on_executors(dying(5), CountingExecutor()), parts())


def test_what_has_been_shown_to_one_is_run_again_for_who_shares_it() -> None:
    async def test(distant: Distant) -> None:
        async with distant.worker() as one, distant.worker() as other:
            params = replace(LONG, seed=1)
            waits = asyncio.create_task(answer(other, params))
            with pytest.raises(EngineError, match=r"the engine died: .*on fire"):
                await pieces(one, PROMPT, params)
            assert (await waits).tokens == tuple(range(1002, 1092))
            assert distant.service.fleet.num_restarts == 1
            await answer(one, SEEDED)

    run_distant(test, on_executors(dying(20), CountingExecutor()), parts())


def test_health_and_metrics_are_the_service_s() -> None:
    async def test(distant: Distant) -> None:
        async with distant.worker() as front:
            assert await front.health() == await distant.service.health()
            await distant.service.drain(0)
            assert (await front.health()).status.detail == "shutting down"
            with (
                front.ask(front.query(PROMPT, LONG)) as reply,
                pytest.raises(EngineError, match="the service is stopping"),
            ):
                await reply.begun()
            assert front.started == distant.service.started

    run_distant(test, on_executors(CountingExecutor()), parts())


class Broken(NoResponseCache):
    """Fails where another would find nothing."""

    def get(self, query: Query) -> None:
        if query.params == SEEDED:
            raise ZeroDivisionError


def test_what_nobody_foresaw_fails_one_request_alone() -> None:
    async def test(distant: Distant) -> None:
        async with distant.worker() as front:
            with front.ask(front.query(PROMPT, SEEDED)) as reply:
                with pytest.raises(PluribusError, match="the first process could not") as caught:
                    await reply.begun()
                assert type(caught.value) is PluribusError, "which HTTP does not foresee either"
            await answer(front, LONG)

    cache = Broken(NoResponseCacheConfig())
    run_distant(test, on_executors(CountingExecutor()), parts(response_cache=cache))


class Noting:
    """A channel that notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[FromWorker] = []

    def send(self, message: FromWorker) -> None:
        self.sent.append(message)


def gain(tokens: tuple[int, ...], **fields: Any) -> Told:
    values = {"cached": False, "restarted": False, "trouble": None} | fields
    return Told((Gain(0, tokens, (), (), None, None, **values),))


def remote(channel: Noting) -> RemoteFront:
    with_replicas = SimpleNamespace(
        **{
            name: getattr(parts(), name)
            for name in ("model", "queue", "batcher_config", "replicas")
        }
    )
    return RemoteFront(cast(Any, with_replicas), Plugins(), cast(Any, channel), started=0)


def test_what_is_shown_while_it_is_begun_anew_is_not_shown_twice() -> None:
    channel = Noting()

    async def life() -> None:
        front = remote(channel)
        with front.ask(front.query(PROMPT, LONG)) as reply:
            front.hear(gain((1002,)))
            deltas = reply.deltas(0)
            assert (await anext(deltas)).text == " 1002"
            front.hear(gain((), restarted=True))
            with pytest.raises(EngineError, match="the engine died"):
                await anext(deltas)

    asyncio.run(life())
    assert [type(message) for message in channel.sent] == [Ask, Delivered, Leave]


def test_what_comes_for_what_was_left_is_nobody_s() -> None:
    async def life() -> None:
        channel = Noting()
        front = remote(channel)
        front.ask(front.query(PROMPT, LONG)).close()
        front.hear(gain((1002,)))
        assert [type(message) for message in channel.sent] == [Ask, Leave]

    asyncio.run(life())


def test_an_answer_that_ended_is_not_left() -> None:
    async def life() -> None:
        channel = Noting()
        front = remote(channel)
        with front.ask(front.query(PROMPT, LONG)) as reply:
            front.hear(gain((), trouble=Trouble("engine", "gone")))
            with pytest.raises(EngineError, match="gone"):
                await reply.wait()
        with front.ask(front.query(PROMPT, LONG)) as reply:
            [told] = gain((1002,)).gains
            ended = Gain(
                1,
                told.tokens,
                (),
                (),
                FinishReason.STOP,
                None,
                cached=False,
                restarted=False,
                trouble=None,
            )
            front.hear(Told((ended,)))
            await reply.wait()
        assert [type(message) for message in channel.sent] == [Ask, Ask]

    asyncio.run(life())
