"""The engine's life: load, tell, then receive, step and send until told to end."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from pluribus.engine.channel import Channel, ChannelClosed
from pluribus.engine.core import EngineCore
from pluribus.engine.messages import (
    Beat,
    Cancel,
    Died,
    FromEngine,
    FromFront,
    Loading,
    Output,
    Ready,
    Refused,
    Start,
    Stepped,
    Stop,
    Submit,
)
from pluribus.errors import PluribusError, RequestError, describe
from pluribus.generation import Generation
from pluribus.interfaces import Progress

SECONDS_BETWEEN_BEATS = 0.5
SECONDS_BETWEEN_LOADING = 0.2

logger = logging.getLogger(__name__)

EngineChannel = Channel[FromEngine, FromFront]


def run_engine(channel: EngineChannel, start_core: Callable[[Progress], EngineCore]) -> None:
    """Live one engine's life on this thread; return when the front has ended it or is gone.

    Args:
        channel: to the front.
        start_core: loads everything, reporting the bytes of weights that are read.
    """
    try:
        with _beating(channel) as has_core:
            core = start_core(_Loading(channel))
            has_core(core)
            executor = core.executor
            channel.send(Ready(executor.kv_shape.num_tokens, dict(executor.phases)))
            EngineLoop(channel, core).run()
        core.executor.shutdown()
    except ChannelClosed:
        logger.debug("the front is gone: the engine ends")
    except BaseException as error:
        is_final = isinstance(error, PluribusError)
        if not is_final:
            logger.exception("the engine died")
        with contextlib.suppress(ChannelClosed):
            channel.send(Died(describe(error), is_final))
    finally:
        channel.close()


class EngineLoop:
    """Receive, step, send. Blocks on the channel while there is no work."""

    def __init__(self, channel: EngineChannel, core: EngineCore) -> None:
        self._channel = channel
        self._core = core
        self._generations: dict[int, Generation] = {}

    def run(self) -> None:
        """Serve until a Stop comes."""
        while True:
            for message in self._channel.receive(block=not self._core.has_work):
                if isinstance(message, Stop):
                    return
                self._apply(message)
            if not self._core.has_work:
                # What was cancelled has given back what it held: no step will tell.
                self._channel.send(Stepped((), self._core.stats()))
            else:
                self._channel.send(Stepped(tuple(self._step()), self._core.stats()))

    def _step(self) -> list[Output]:
        try:
            outputs = self._core.step()
        except Exception:
            ids = sorted({generation.request_id for generation in self._generations.values()})
            logger.error("a step failed", extra={"request_ids": ids})
            raise
        for output in outputs:
            if output.finish_reason is not None:
                _log("generation ended", self._generations.pop(output.id))
        return outputs

    def _apply(self, message: FromFront) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Cancel(id=id_):
                if generation := self._generations.pop(id_, None):
                    self._core.finish(generation)
                    _log("generation cancelled", generation)
            case Start() | Stop():
                raise AssertionError(f"{type(message).__name__} in the middle of a life")

    def _submit(self, message: Submit) -> None:
        generation = Generation(
            id=message.id,
            prompt=message.prompt,
            params=message.params,
            tenant=message.tenant,
            weight=message.weight,
            salt=message.salt,
            request_id=message.request_id,
        )
        try:
            self._core.add(generation)
        except RequestError as error:
            self._channel.send(Refused(message.id, str(error), error.param))
        else:
            self._generations[message.id] = generation
            _log("generation added", generation)


def _log(event: str, generation: Generation) -> None:
    """Log what has become of a generation, and not what it says."""
    about = {
        "generation": generation.id,
        "request_id": generation.request_id,
        "tenant": generation.tenant,
        "num_prompt_tokens": len(generation.prompt),
        "num_tokens": len(generation.tokens),
    }
    logger.debug(event, extra=about)


class _Loading:
    """Passes progress on, not more often than anybody could read it."""

    def __init__(self, channel: EngineChannel) -> None:
        self._channel = channel
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last > SECONDS_BETWEEN_LOADING or done == total:
            self._last = now
            self._channel.send(Loading(done, total))


@contextlib.contextmanager
def _beating(channel: EngineChannel) -> Iterator[Callable[[EngineCore], None]]:
    """Tell the front, from a thread of its own, that the process runs, while it has work or loads.

    Yields what is to be called with the core once it is loaded.
    """
    ended = threading.Event()
    cores: list[EngineCore] = []

    def beat() -> None:
        with contextlib.suppress(ChannelClosed):
            while not ended.wait(SECONDS_BETWEEN_BEATS):
                if not cores:
                    channel.send(Beat(0))
                elif cores[0].has_work:
                    channel.send(Beat(cores[0].num_steps))

    thread = threading.Thread(target=beat, name="engine-beat", daemon=True)
    thread.start()
    try:
        yield cores.append
    finally:
        ended.set()
        thread.join()
