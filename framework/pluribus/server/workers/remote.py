"""A worker's end of the first process: the front that HTTP asks, and its metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from structlog.contextvars import get_contextvars

from pluribus.engine.async_channel import AsyncChannel
from pluribus.errors import EngineError
from pluribus.flight import Draft
from pluribus.front import Front, Health
from pluribus.interfaces import Query
from pluribus.reply import Reply
from pluribus.server.meter import Exposition, Meter
from pluribus.server.workers.messages import (
    Ask,
    Asked,
    AskHealth,
    AskMetrics,
    Counted,
    Delivered,
    FromFirst,
    FromWorker,
    Gain,
    HealthTold,
    Leave,
    MetricsTold,
    Told,
)
from pluribus.tenants import ANONYMOUS, Tenant

if TYPE_CHECKING:
    from pluribus.assembly import Parts
    from pluribus.plugins import Plugins

FirstChannel = AsyncChannel[FromWorker, FromFirst]


@dataclass(eq=False, slots=True, kw_only=True)
class RemoteDraft(Draft):
    """An answer that the first process tells of.

    Attributes:
        id: our name for it.
        send: sends to the first process.
        told: set once anything has been said of it.
    """

    id: int
    send: Callable[[FromWorker], None]
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def begun(self) -> None:
        await self.told.wait()
        if self.error is not None:
            raise self.error

    def deliver(self) -> None:
        if not self.is_over:
            self.send(Delivered(self.id))

    def take(self, gain: Gain) -> None:
        """Take what has come of it."""
        self.cached = gain.cached
        self.told.set()
        if gain.trouble is not None:
            self.fail(gain.trouble.error())
        elif gain.restarted and self.is_delivered:
            # It was shown while the first process was beginning it again.
            self.fail(EngineError("the engine died while it answered"))
        else:
            if gain.restarted:
                self.restart()
            if gain.tokens or gain.prompt_logprobs or gain.finish_reason:
                self.extend(gain)


class RemoteFront(Front):
    """Reads prompts and answers here, and has the first process do all else.

    Args:
        parts: what is served.
        plugins: for ``/plugins``.
        channel: to the first process.
        started: when the server did, in seconds since 1970.
    """

    def __init__(self, parts: Parts, plugins: Plugins, channel: FirstChannel, started: int) -> None:
        super().__init__(parts, plugins, parts.replicas.replicas)
        self.started = started
        self.inquiries = Inquiries(channel)
        self._send = channel.send
        self._drafts: dict[int, RemoteDraft] = {}
        self._ids = count()

    def ask_all(self, queries: Sequence[Query], tenant: Tenant = ANONYMOUS) -> list[Reply]:
        drafts = [self._draft(query) for query in queries]
        self._drafts.update((draft.id, draft) for draft in drafts)
        asked = tuple(Asked(each.id, each.query.prompt, each.query.params) for each in drafts)
        self._send(Ask(asked, tenant, get_contextvars().get("request_id", "")))
        return [Reply(draft, partial(self._leave, draft.id)) for draft in drafts]

    def _draft(self, query: Query) -> RemoteDraft:
        return RemoteDraft(
            id=next(self._ids),
            send=self._send,
            query=query,
            detokenizer=self._detokenizer(query),
        )

    async def health(self) -> Health:
        health: Health = await self.inquiries.make(AskHealth)
        return health

    def hear(self, message: FromFirst) -> None:
        """Take what the first process says."""
        match message:
            case Told(gains=gains):
                for gain in gains:
                    self._take(gain)
            case HealthTold(id=id_, health=answer):
                self.inquiries.answer(id_, answer)
            case MetricsTold(id=id_, exposition=exposition):
                self.inquiries.answer(id_, exposition)
            case _:
                raise AssertionError(f"{type(message).__name__} is nothing for a front")

    def _take(self, gain: Gain) -> None:
        if (draft := self._drafts.get(gain.id)) is None:
            return  # what we have left is on its way to the first process
        draft.take(gain)
        if gain.finish_reason is not None or gain.trouble is not None:
            del self._drafts[gain.id]
        elif draft.is_over:
            self._leave(gain.id)

    def _leave(self, id_: int) -> None:
        if self._drafts.pop(id_, None):
            self._send(Leave(id_))


class Inquiries:
    """Questions to the first process that are answered once."""

    def __init__(self, channel: FirstChannel) -> None:
        self._channel = channel
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._ids = count()

    async def make(self, question: Callable[[int], FromWorker]) -> Any:
        """Return the answer to what ``question`` makes of an id."""
        id_ = next(self._ids)
        self._answers[id_] = answer = asyncio.get_running_loop().create_future()
        try:
            self._channel.send(question(id_))
            return await answer
        finally:
            del self._answers[id_]

    def answer(self, id_: int, answer: Any) -> None:
        """Give an answer to whoever still waits for it."""
        if (waiting := self._answers.get(id_)) and not waiting.done():
            waiting.set_result(answer)


class RemoteMeter(Meter):
    """Has the first process count, so that all workers tell the same."""

    def __init__(self, channel: FirstChannel, inquiries: Inquiries) -> None:
        self._channel = channel
        self._inquiries = inquiries

    def request_answered(self, endpoint: str, status: int) -> None:
        self._channel.send(Counted(endpoint, status))

    async def expose(self, accept: str) -> Exposition:
        exposition: Exposition = await self._inquiries.make(lambda id_: AskMetrics(id_, accept))
        return exposition
