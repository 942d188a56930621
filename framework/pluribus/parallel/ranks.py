"""Ranks in processes of their own on this machine, driven and watched by the first one.

The first rank is the process that calls ``RankProcesses``; the others are
``python -m pluribus.parallel.rank``. A step is sent to each of them once, and nothing comes
back: every rank samples for itself, from the same logits with the same noise. What does come
back is a beat. A rank that ends, raises or falls silent ends them all, without waiting on a
collective that will never complete.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pluribus.engine.channel import Channel, ChannelClosed
from pluribus.interfaces import Executor, KVShape
from pluribus.step import Step, StepResult

RANK_PROTOCOL_VERSION = 1
SECONDS_BETWEEN_BEATS = 0.5
SILENCE = 4.0
"""Seconds without a beat after which a rank is taken to be dead."""
SILENCE_WHILE_LOADING = 60.0
"""The same until all ranks have met: on a busy machine, importing torch alone takes long."""

logger = logging.getLogger(__name__)


class RankMessage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Anything that crosses between ranks, tensors excepted."""


class StartRank(RankMessage, frozen=True):
    """First rank: be this rank of the configuration, in YAML; meet the others there."""

    protocol: int
    config: str
    rank: int
    rendezvous: str


class RunStep(RankMessage, frozen=True):
    """First rank: run this step."""

    step: Step


class RankBeat(RankMessage, frozen=True):
    """Other rank: alive."""


class RankDied(RankMessage, frozen=True):
    """Other rank: the last message, if it can still be sent; with a traceback for a bug."""

    reason: str
    traceback: str


ToRank = StartRank | RunStep
FromRank = RankBeat | RankDied
RankChannel = Channel[ToRank, FromRank]


class RankProcesses(Executor):
    """Drives rank 0, which is here, and all others, which are processes.

    Args:
        start_rank: builds rank 0, meeting the others where it is told.
        config: the whole configuration, in YAML, for the others.
        world_size: ranks in all.
        fail: called, in a thread of its own, with what is wrong once a rank is lost.
    """

    def __init__(
        self,
        start_rank: Callable[[int, str], Executor],
        config: str,
        world_size: int,
        fail: Callable[[str], None],
    ) -> None:
        self._fail = fail
        self._is_ending = False
        self._silence = SILENCE_WHILE_LOADING
        self._met = time.monotonic()
        self._folder = Path(tempfile.mkdtemp(prefix="pluribus-"))
        rendezvous = f"file://{self._folder}/rendezvous"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[RankChannel] = []
        for rank in range(1, world_size):
            self._spawn(StartRank(RANK_PROTOCOL_VERSION, config, rank, rendezvous))
        self._watcher = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._watcher.start()
        self._first = start_rank(0, rendezvous)
        self._met = time.monotonic()
        self._silence = SILENCE
        # Everybody has met: whatever happens later leaves nothing behind.
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def kv_shape(self) -> KVShape:
        return self._first.kv_shape

    @property
    def lookahead(self) -> int:
        return self._first.lookahead

    @property
    def max_passes(self) -> int:
        return self._first.max_passes

    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Run the step on every rank; see Executor.submit."""
        for channel in self._channels:
            channel.send(RunStep(step))
        return self._first.submit(step)

    def shutdown(self) -> None:
        """Stop every rank and wait until it has ended."""
        self._is_ending = True
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._watcher.join()
        for channel in self._channels:
            channel.close()
        self._first.shutdown()

    def _spawn(self, start: StartRank) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._processes.append(
                subprocess.Popen(  # noqa: S603 - this very program
                    [sys.executable, "-m", "pluribus.parallel.rank", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
                )
            )
        channel: RankChannel = Channel(ours, FromRank)
        channel.send(start)
        self._channels.append(channel)

    def _watch(self) -> None:
        """Read beats until a rank is lost, and then end everything."""
        heard = dict.fromkeys(self._channels, time.monotonic())
        while True:
            readable, _, _ = select.select(self._channels, [], [], SECONDS_BETWEEN_BEATS)
            for channel in readable:
                heard[channel] = time.monotonic()
            for rank, channel in enumerate(self._channels, start=1):
                reason = self._loss(channel, channel in readable, heard[channel])
                if self._is_ending:
                    return
                if reason is not None:
                    self._end(f"rank {rank} {reason}")
                    return

    def _loss(self, channel: RankChannel, is_readable: bool, heard: float) -> str | None:
        """Say why a rank is lost, or return None."""
        if not is_readable:
            silence = time.monotonic() - max(heard, self._met)
            return f"has said nothing for {silence:.1f} s" if silence > self._silence else None
        with contextlib.suppress(ChannelClosed):
            messages = channel.receive(block=False)
            for message in messages:
                if isinstance(message, RankDied):
                    if message.traceback:
                        logger.error("where a rank died:\n%s", message.traceback)
                    return f"died: {message.reason}"
            return None
        return "ended without a word"

    def _end(self, reason: str) -> None:
        logger.error("%s: ending all ranks", reason)
        for process in self._processes:
            process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._fail(reason)
