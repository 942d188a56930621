"""What the first process and an HTTP worker say to each other: typed, versioned, never pickled.

Frames are those of ``pluribus.engine.channel``. Connections cross on a socket of their own.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pluribus.engine.messages import Message, Output
from pluribus.errors import EngineError, PluribusError, QueueFullError, RequestError
from pluribus.front import Health
from pluribus.generation import SamplingParams
from pluribus.server.auth import Keyring
from pluribus.server.meter import Exposition
from pluribus.tenants import Tenant

PROTOCOL_VERSION = 2


class Start(Message, frozen=True):
    """First process: the first message; speak HTTP for what this configuration describes.

    Attributes:
        protocol: version of what is said here.
        index: of the worker, counted from 0.
        config: the whole configuration, in YAML.
        keyring: who may come in.
        started: when the server did, in seconds since 1970.
    """

    protocol: int
    index: int
    config: str
    keyring: Keyring | None
    started: int


class Ready(Message, frozen=True):
    """Worker: connections are taken."""


class Failed(Message, frozen=True):
    """Worker: the configuration cannot be served, and why; the last message."""

    message: str


class Ping(Message, frozen=True):
    """First process: say something."""


class Pong(Message, frozen=True):
    """Worker: still there."""


class Finish(Message, frozen=True):
    """First process: send what there is to send, and end."""


class Closed(Message, frozen=True):
    """Worker: one of its connections is over."""


class Counted(Message, frozen=True):
    """Worker: a request was answered."""

    endpoint: str
    status: int


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A prompt to continue, and the worker's name for the answer."""

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams


class Ask(Message, frozen=True):
    """Worker: somebody wants these answered, all or none."""

    asked: tuple[Asked, ...]
    tenant: Tenant
    request_id: str


class Delivered(Message, frozen=True):
    """Worker: something of this answer is shown, so it cannot start again."""

    id: int


class Leave(Message, frozen=True):
    """Worker: nobody here waits for this answer any more."""

    id: int


class Trouble(msgspec.Struct, frozen=True, array_like=True):
    """An error that ends an answer."""

    kind: Literal["request", "queue", "engine", "unexpected"]
    message: str
    param: str | None = None
    is_tenant: bool = False
    retry_after: float = 0.0

    @classmethod
    def of(cls, error: PluribusError) -> Trouble:
        """Return what there is to say of ``error``."""
        if isinstance(error, QueueFullError):
            return cls("queue", str(error), None, error.is_tenant, error.retry_after)
        if isinstance(error, RequestError):
            return cls("request", str(error), error.param)
        return cls("engine" if isinstance(error, EngineError) else "unexpected", str(error))

    def error(self) -> PluribusError:
        """Return the error it was made of."""
        if self.kind == "queue":
            return QueueFullError(
                self.message, is_tenant=self.is_tenant, retry_after=self.retry_after
            )
        if self.kind == "request":
            return RequestError(self.message, param=self.param)
        return EngineError(self.message) if self.kind == "engine" else PluribusError(self.message)


class Gain(Output, frozen=True):
    """What has come of an answer since the last one; the first says that it has begun.

    Attributes:
        cached: whether the response cache had it.
        restarted: what came before is void: the engine that made it is gone.
        trouble: why there will be no answer, or None.
    """

    cached: bool
    restarted: bool
    trouble: Trouble | None


def refusal(id_: int, error: PluribusError) -> Gain:
    """Return what there is to tell of an answer that was not begun, or will not be completed."""
    return Gain(
        id_, (), (), (), None, None, cached=False, restarted=False, trouble=Trouble.of(error)
    )


class Told(Message, frozen=True):
    """First process: what has come of several answers."""

    gains: tuple[Gain, ...]


class AskHealth(Message, frozen=True):
    """Worker: how is the service?"""

    id: int


class HealthTold(Message, frozen=True):
    """First process: so it is."""

    id: int
    health: Health


class AskMetrics(Message, frozen=True):
    """Worker: what are the metrics, for a request with this header ``Accept``?"""

    id: int
    accept: str


class MetricsTold(Message, frozen=True):
    """First process: so they are."""

    id: int
    exposition: Exposition


FromFirst = Start | Ping | Told | HealthTold | MetricsTold | Finish
FromWorker = (
    Ready | Failed | Pong | Closed | Counted | Ask | Delivered | Leave | AskHealth | AskMetrics
)
