"""Ranks on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pluribus.engine.channel import Channel
from pluribus.interfaces import Executor, Launcher, Seat
from pluribus.parallel.crew import Crew, Member, Roster
from pluribus.parallel.messages import FromRank

SECONDS_TO_END = 1.0
"""After its socket has closed, a process has that long to be gone."""


@dataclass(frozen=True, slots=True)
class LocalLauncherConfig:
    """Nothing to set."""


class LocalLauncher(Launcher):
    """Runs the first rank where the engine is, and every other as a process beside it."""

    Config = LocalLauncherConfig
    is_local = True

    def __init__(self, config: LocalLauncherConfig) -> None:
        self.config = config

    def check(self, world_size: int) -> None:
        """Accept any number: whether there are devices for all shows when they start."""

    def launch(
        self,
        start_rank: Callable[[Seat], Executor],
        config: str,
        world_size: int,
        fail: Callable[[str], None],
    ) -> Executor:
        if world_size == 1:
            return start_rank(Seat())
        from pluribus.parallel.ranks import RankProcesses

        return RankProcesses(start_rank, config, LocalCrew(world_size), fail)


class LocalCrew(Crew):
    """Processes that this one starts, and which end with it."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._processes: list[subprocess.Popen[bytes]] = []

    def gather(self, lose: Callable[[str], None]) -> Roster:
        # A file without a name: whatever happens to whom, nothing is left behind.
        file = os.memfd_create("pluribus-rendezvous")
        rendezvous = f"file:///proc/self/fd/{file}"
        seats = [
            Seat(rank=rank, local_rank=rank, num_local=self._world_size, rendezvous=rendezvous)
            for rank in range(self._world_size)
        ]
        return Roster(first=seats[0], others=[self._spawn(seat, file) for seat in seats[1:]])

    def epitaph(self, member: Member) -> str:
        process = self._processes[member.seat.rank - 1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            return epitaph(process.wait(SECONDS_TO_END))
        return "ended without a word"

    def dismiss(self) -> None:
        self.abandon()
        for process in self._processes:
            process.wait()

    def abandon(self) -> None:
        for process in self._processes:
            process.kill()

    def _spawn(self, seat: Seat, file: int) -> Member:
        ours, theirs = socket.socketpair()
        with theirs:
            self._processes.append(spawn_rank(theirs, file))
        return Member(seat=seat, channel=Channel(ours, FromRank))


def spawn_rank(sock: socket.socket, *others: int) -> subprocess.Popen[bytes]:
    """Start a process that is whatever rank it is told to be through ``sock``.

    Args:
        sock: connected to the first rank; the process has its own copy.
        others: file descriptors that it is to have as well.
    """
    return subprocess.Popen(  # noqa: S603 - this very program
        [sys.executable, "-m", "pluribus.parallel.rank", str(sock.fileno()), str(os.getpid())],
        pass_fds=[sock.fileno(), *others],
        stdin=subprocess.DEVNULL,
    )


def epitaph(code: int) -> str:
    """Say how a rank ended whose process has this exit code, negative for a signal."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), as the system does when memory runs out"
    if code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    return f"ended without a word (exit code {code})"
