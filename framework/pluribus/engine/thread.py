"""A thread for the engine, and the way in and out of it: futures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from pluribus.engine.core import EngineCore
from pluribus.errors import EngineError, QueueFullError, RequestError
from pluribus.generation import Generation, SamplingParams
from pluribus.interfaces import Answer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submit:
    """Run this generation."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this generation any more."""

    id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Return from the thread."""


Message = Submit | Cancel | Stop


class EngineThread:
    """Runs an EngineCore. Sleeps while there is no work; every message wakes it.

    Args:
        start_core: builds the core; called in the thread, as loading takes a while.
        on_ready: called in the thread when the core can take generations.
        on_death: called in the thread with what killed it.
        max_waiting: generations that may wait beside those that run.
    """

    def __init__(
        self,
        start_core: Callable[[], EngineCore],
        on_ready: Callable[[], None],
        on_death: Callable[[BaseException], None],
        max_waiting: int,
    ) -> None:
        self._start_core = start_core
        self._on_ready = on_ready
        self._on_death = on_death
        self._max_waiting = max_waiting
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._lock = threading.Lock()
        self._futures: dict[int, Future[Answer]] = {}
        self._generations: dict[int, Generation] = {}
        self._num_submitted = 0
        self._num_running = 0
        self._accepting = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread, which builds the core first."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, prompt: tuple[int, ...], params: SamplingParams) -> Future[Answer]:
        """Queue a generation; cancelling the future cancels the generation.

        Raises:
            QueueFullError: too many are waiting.
            EngineError: the engine has ended.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if not self._accepting:
                raise EngineError("the engine has stopped and takes no more requests")
            num_waiting = len(self._futures) - self._num_running
            if num_waiting >= self._max_waiting:
                raise QueueFullError(
                    f"{num_waiting} requests are waiting, as many as queue.max_size allows; "
                    "try again later"
                )
            self._num_submitted += 1
            generation = Generation(id=self._num_submitted, prompt=prompt, params=params)
            self._futures[generation.id] = future
        future.add_done_callback(lambda done: self._forget(generation.id, done))
        self._inbox.put(Submit(generation))
        return future

    def stop(self) -> None:
        """End the thread after the step under way; what has not finished fails."""
        self._inbox.put(Stop())
        self._thread.join()

    def _forget(self, id_: int, future: Future[Answer]) -> None:
        with self._lock:
            self._futures.pop(id_, None)
        if future.cancelled():
            self._inbox.put(Cancel(id_))

    def _run(self) -> None:
        try:
            core = self._start_core()
            self._on_ready()
            self._loop(core)
            core.executor.shutdown()
            self._end(EngineError("the engine was stopped before the answer was complete"))
        except BaseException as error:
            self._end(EngineError(f"the engine died: {error}"))
            self._on_death(error)

    def _loop(self, core: EngineCore) -> None:
        while True:
            for message in self._receive(block=not core.has_work):
                if isinstance(message, Stop):
                    return
                self._apply(core, message)
            for generation in core.step():
                if generation.finish_reason is not None:
                    self._resolve(generation)
            self._num_running = core.batcher.num_running

    def _receive(self, *, block: bool) -> list[Message]:
        messages = [self._inbox.get()] if block else []
        try:
            while True:
                messages.append(self._inbox.get_nowait())
        except Empty:
            return messages

    def _apply(self, core: EngineCore, message: Submit | Cancel) -> None:
        if isinstance(message, Cancel):
            if generation := self._generations.pop(message.id, None):
                core.finish(generation)
            return
        generation = message.generation
        try:
            core.add(generation)
        except RequestError as error:
            _settle(self._futures.get(generation.id), error)
        else:
            self._generations[generation.id] = generation

    def _resolve(self, generation: Generation) -> None:
        del self._generations[generation.id]
        assert generation.finish_reason is not None
        answer = Answer(tuple(generation.tokens), generation.finish_reason)
        _settle(self._futures.get(generation.id), answer)

    def _end(self, reason: EngineError) -> None:
        with self._lock:
            self._accepting = False
            futures = list(self._futures.values())
        for future in futures:
            _settle(future, reason)


def _settle(future: Future[Answer] | None, outcome: Answer | Exception) -> None:
    if future is None:
        return
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass  # cancelled at this very moment: nobody waits
