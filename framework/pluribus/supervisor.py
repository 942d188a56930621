"""An engine that is always there: started, watched, and started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pluribus.assembly import EngineConfig
from pluribus.engine.client import EngineClient, EngineHost
from pluribus.engine.messages import (
    Beat,
    Died,
    FromFront,
    Loading,
    Ready,
    Refused,
    Stepped,
    Stop,
)
from pluribus.errors import EngineError
from pluribus.progress import Report, report_progress
from pluribus.restarts import Restarts

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 5.0
"""Seconds that an engine may take to end by itself once it has been told to."""
GRACE = 0.1
"""Seconds to read what an engine has said before it is taken to be silent."""
SILENCE_WHILE_IMPORTING = 60.0
"""Seconds until an engine's first word: on a busy machine, importing torch alone takes long."""
SILENCE_WHILE_LOADING = 4.0
"""Seconds of silence that an engine may load in, at least."""


class State(StrEnum):
    """Where a service is in its life."""

    LOADING = "loading"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Status:
    """A state, and a sentence about it for a person."""

    state: State
    detail: str


class Listener(Protocol):
    """Who is told of an engine's life."""

    def engine_ready(self, message: Ready) -> None:
        """An engine takes generations."""

    def engine_spoke(self, message: Stepped | Refused) -> None:
        """An engine says what came of its work."""

    def engine_died(self, reason: str) -> None:
        """An engine is gone, and what it knew; the status says whether another one comes."""


class Supervisor:
    """Keeps one engine running. Belongs to one event loop.

    Args:
        name: of the model, for people.
        host: where engines run.
        config: when to give up.
        listener: who is told.
        report: opens the report on loading.

    Attributes:
        num_restarts: engines started again after one had died.
        is_refused: what is configured is at fault: not even the first engine could start.
        phases: seconds that each part of the last engine's start has taken.
    """

    def __init__(
        self,
        name: str,
        host: EngineHost,
        config: EngineConfig,
        listener: Listener,
        report: Report = report_progress,
    ) -> None:
        self.num_restarts = 0
        self.is_refused = False
        self.phases: Mapping[str, float] = {}
        self._name = name
        self._host = host
        self._config = config
        self._listener = listener
        self._report = report
        self._status = Status(State.LOADING, "not started")
        self._watchers: list[Callable[[Status], None]] = []
        self._client: EngineClient | None = None
        self._life: asyncio.Task[None] | None = None
        self._restarts = Restarts(config.max_restarts)
        self._is_loaded = False
        self._has_served = False
        self._has_spoken = False
        self._silence: float | None = None
        self._has_work = asyncio.Event()
        self._must_speak = asyncio.Event()
        self._heard = 0.0
        self._advanced = 0.0

    @property
    def status(self) -> Status:
        """Where the engine is in its life."""
        return self._status

    @property
    def is_loaded(self) -> bool:
        """Whether there is an engine that takes generations."""
        return self._is_loaded

    def watch(self, callback: Callable[[Status], None]) -> None:
        """Call ``callback`` at every change of status."""
        self._watchers.append(callback)

    @property
    def _is_retired(self) -> bool:
        return self._status.state is State.STOPPING

    def is_advancing(self) -> bool:
        """Whether the engine gets on with its work, as far as it has any."""
        if self._status.state is State.FAILED:
            return False
        if self._status.state is State.LOADING or not self._has_work.is_set():
            return True
        return time.monotonic() - self._advanced < self._config.stall_timeout

    def set_has_work(self, has_work: bool) -> None:
        """Say whether the engine has anything to do: once it is loaded, only then is it heard."""
        if has_work and not self._has_work.is_set():
            self._heard = self._advanced = time.monotonic()
            self._has_work.set()
            self._must_speak.set()
        elif not has_work:
            self._has_work.clear()
            if self._is_loaded:
                self._must_speak.clear()

    def send(self, message: FromFront) -> None:
        """Send to the engine; lost if there is none at this moment."""
        if self._client is not None:
            self._client.send(message)

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._change(State.LOADING, "starting")
        self._life = asyncio.create_task(self._live())

    async def wait_ready(self) -> None:
        """Wait until an engine is ready.

        Raises:
            EngineError: none ever will be, and why.
        """
        changed = asyncio.Event()
        self.watch(lambda status: changed.set())
        while self._status.state is State.LOADING:
            changed.clear()
            await changed.wait()
        if self._status.state is not State.READY:
            raise EngineError(self._status.detail)

    def retire(self) -> None:
        """Start no more engines, and let the one that runs finish."""
        self._change(State.STOPPING, "shutting down")

    async def stop(self) -> None:
        """End the engine: after the step under way, or at once if it has not finished loading."""
        self.retire()
        self.send(Stop())
        if self._life is not None:
            await asyncio.wait([self._life], timeout=STOP_TIMEOUT if self._is_loaded else 0)
            self._life.cancel()
            await asyncio.wait([self._life])

    async def _live(self) -> None:
        """Run engines, one after another, until told to stop or it makes no sense."""
        watchdog = asyncio.create_task(self._kill_if_silent())
        try:
            while self._status.state is State.LOADING:
                death = await self._run_engine()
                if not self._is_retired:
                    self._recover(death)
                self._listener.engine_died(death.message)
        except Exception as error:
            logger.exception("the engine cannot be watched any more")
            self._change(State.FAILED, f"{type(error).__name__}: {error}")
            self._listener.engine_died(self._status.detail)
        finally:
            watchdog.cancel()

    async def _run_engine(self) -> Died:
        """Run an engine to its end and return why it ended."""
        death = Died("it ended without a word", is_final=False)
        began = self._heard = time.monotonic()
        self._has_spoken, self._silence = False, None
        try:
            self._client = await self._host.start()
            self._must_speak.set()
            with contextlib.ExitStack() as loading:
                progress = loading.enter_context(self._report(self._name))
                async for message in self._client.messages():
                    self._heard = time.monotonic()
                    self._has_spoken = True
                    match message:
                        case Stepped() | Refused():
                            self._advanced = self._heard
                            self._listener.engine_spoke(message)
                        case Loading(done=done, total=total):
                            progress(done, total)
                            percent = 100 * done // max(total, 1)
                            self._change(State.LOADING, f"{percent} % of the weights are read")
                        case Ready(phases=phases):
                            loading.close()
                            # What comes before the engine itself can tell.
                            imports = self._heard - began - sum(phases.values())
                            self.phases = {"imports": imports, **phases}
                            self._is_loaded = self._has_served = True
                            self._advanced = self._heard
                            self.set_has_work(self._has_work.is_set())
                            self._change(State.READY, f"serving {self._name}")
                            self._listener.engine_ready(message)
                        case Died():
                            death = message
                        case Beat():
                            pass  # that it was heard is all there is to it
        finally:
            self._is_loaded = False
            self._must_speak.clear()
            if self._client is not None:
                self._client.close()
                self._client = None
            await self._host.kill()
        if self._silence is not None:
            return Died(f"it said nothing for {self._silence:.1f} s", is_final=False)
        return death

    def _recover(self, death: Died) -> None:
        """Give up, or say that another engine is coming."""
        if death.is_final or not self._restarts.is_allowed(time.monotonic()):
            self.is_refused = death.is_final and not self._has_served
            self._change(State.FAILED, death.message)
        else:
            self.num_restarts += 1
            logger.error("the engine died: %s; starting another", death.message)
            self._change(State.LOADING, f"restarting, as the engine died: {death.message}")

    async def _kill_if_silent(self) -> None:
        """Kill an engine that has work, or loads, and says nothing, so that its end is noticed."""
        timeout = self._config.heartbeat_timeout
        while True:
            await self._must_speak.wait()
            silence, allowed = time.monotonic() - self._heard, self._allowed_silence()
            if silence < allowed:
                await asyncio.sleep(min(allowed - silence, timeout))
                continue
            # What came while this process itself was paused has to be read first.
            await asyncio.sleep(GRACE)
            silence = time.monotonic() - self._heard
            if silence < self._allowed_silence() or not self._must_speak.is_set():
                continue
            logger.error("the engine has said nothing for %.1f s: killing it", silence)
            self._silence = silence
            self._must_speak.clear()
            await self._host.kill()

    def _allowed_silence(self) -> float:
        """Return for how many seconds the engine may say nothing now."""
        if self._is_loaded:
            return self._config.heartbeat_timeout
        if not self._has_spoken:
            return SILENCE_WHILE_IMPORTING
        return max(SILENCE_WHILE_LOADING, self._config.heartbeat_timeout)

    def _change(self, state: State, detail: str) -> None:
        if self._status.state is State.FAILED:
            return
        if self._is_retired and state is not State.FAILED:
            state, detail = State.STOPPING, self._status.detail
        self._status = Status(state, detail)
        for watcher in self._watchers:
            watcher(self._status)
