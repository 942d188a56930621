"""All ranks, driven and watched by the first one, wherever they run.

A step is sent to each of them once, and nothing comes back: every rank samples for itself, from
the same logits with the same noise. What does come back is a beat. A rank that ends, raises or
falls silent ends them all, without waiting on a collective that will never complete.
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pluribus.engine.channel import ChannelClosed
from pluribus.errors import PluribusError
from pluribus.interfaces import Executor, KVShape, Seat
from pluribus.parallel.crew import Crew, Member
from pluribus.parallel.messages import (
    RANK_PROTOCOL_VERSION,
    SECONDS_BETWEEN_BEATS,
    SILENCE,
    SILENCE_WHILE_IMPORTING,
    RankChannel,
    RankDied,
    RunStep,
    StartRank,
    ToRank,
)
from pluribus.step import Step, StepResult

SECONDS_TO_FIND_THE_CULPRIT = 2.0
"""A lost rank makes collectives fail here; its channel may tell a moment later."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loss:
    """A rank that is lost, and why.

    Attributes:
        reason: for people.
        is_certain: whether it is itself to blame. One that has raised may have done so because
            another one, whose channel closes at the same moment, is gone.
    """

    reason: str
    is_certain: bool


class RankProcesses(Executor):
    """Drives rank 0, which is here, and all others, which are processes.

    Args:
        start_rank: builds rank 0, meeting the others where it is told.
        config: the whole configuration, in YAML, for the others.
        crew: the processes of the others.
        fail: called, in a thread of its own, with what is wrong once a rank is lost.
    """

    def __init__(
        self,
        start_rank: Callable[[Seat], Executor],
        config: str,
        crew: Crew,
        fail: Callable[[str], None],
    ) -> None:
        self._crew = crew
        self._fail = fail
        self._is_ending = False
        self._losing = threading.Lock()
        self._has_beaten: set[RankChannel] = set()
        roster = crew.gather(self._lose)
        self._members = roster.others
        for member in self._members:
            _send(member, StartRank(RANK_PROTOCOL_VERSION, config, member.seat))
        self._watcher = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._watcher.start()
        try:
            with self._finding_the_culprit():
                self._first = start_rank(roster.first)
        except BaseException:
            self._end_others(crew.abandon)
            raise
        self.phases = self._first.phases

    @property
    def kv_shape(self) -> KVShape:
        return self._first.kv_shape

    @property
    def lookahead(self) -> int:
        return self._first.lookahead

    @property
    def max_passes(self) -> int:
        return self._first.max_passes

    @property
    def seconds_waited(self) -> float:
        return self._first.seconds_waited

    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Run the step on every rank; see Executor.submit."""
        for member in self._members:
            _send(member, RunStep(step))
        with self._finding_the_culprit():
            read = self._first.submit(step)

        def read_or_blame() -> StepResult:
            with self._finding_the_culprit():
                return read()

        return read_or_blame

    def shutdown(self) -> None:
        """Stop every rank and wait until it has ended."""
        self._end_others(self._crew.dismiss)
        self._first.shutdown()

    def _end_others(self, end: Callable[[], None]) -> None:
        self._is_ending = True
        end()
        self._watcher.join()
        for member in self._members:
            member.channel.close()

    @contextlib.contextmanager
    def _finding_the_culprit(self) -> Iterator[None]:
        """Let the watcher say who is lost before an error here, which follows from it, is told."""
        try:
            yield
        except PluribusError:
            raise  # ours: no collective's
        except Exception:
            self._watcher.join(SECONDS_TO_FIND_THE_CULPRIT)
            raise

    def _watch(self) -> None:
        """Read beats until a rank is lost, and then end everything."""
        heard = dict.fromkeys((member.channel for member in self._members), time.monotonic())
        losses: list[Loss] = []
        while not losses:
            losses = self._losses(heard, SECONDS_BETWEEN_BEATS)
            if losses and not any(loss.is_certain for loss in losses):
                time.sleep(SECONDS_BETWEEN_BEATS)
                losses += self._losses(heard, 0)
            if self._is_ending:
                return
        self._lose(max(losses, key=lambda loss: loss.is_certain).reason)

    def _losses(self, heard: dict[RankChannel, float], seconds: float) -> list[Loss]:
        """Listen that long, note who is heard, and return who is lost."""
        readable, _, _ = select.select(list(heard), [], [], seconds)
        for channel in readable:
            heard[channel] = time.monotonic()
        self._has_beaten.update(readable)
        checks = (self._loss(m, m.channel in readable, heard[m.channel]) for m in self._members)
        return [loss for loss in checks if loss]

    def _loss(self, member: Member, is_readable: bool, heard: float) -> Loss | None:
        """Say why a rank is lost, or return None."""
        if not is_readable:
            silence = time.monotonic() - heard
            if silence <= (
                SILENCE if member.channel in self._has_beaten else SILENCE_WHILE_IMPORTING
            ):
                return None
            return Loss(f"{member.title} has said nothing for {silence:.1f} s", is_certain=True)
        with contextlib.suppress(ChannelClosed):
            for message in member.channel.receive(block=False):
                if isinstance(message, RankDied):
                    if message.traceback:
                        logger.error("where %s died:\n%s", member.title, message.traceback)
                    return Loss(f"{member.title} died: {message.reason}", is_certain=False)
            return None
        return Loss(f"{member.title} {self._crew.epitaph(member)}", is_certain=True)

    def _lose(self, reason: str) -> None:
        with self._losing:  # the first reason is told: the others follow from it
            if self._is_ending:
                return
            self._is_ending = True
        logger.error("%s: ending all ranks", reason)
        self._crew.abandon()
        self._fail(reason)


def _send(member: Member, message: ToRank) -> None:
    """Send to a rank; if it is gone, the watcher sees so and says more."""
    with contextlib.suppress(ChannelClosed):
        member.channel.send(message)
