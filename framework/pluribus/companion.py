"""A process of ours at the other end of a socket, that does not outlive us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence

from pluribus.terminal import companions


class Companion:
    """A process that runs a module of ours. Belongs to one event loop."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, module: str, sockets: Sequence[socket.socket]) -> Companion:
        """Start ``python -m module``, told the numbers of ``sockets``, which are closed here."""
        numbers = [sock.fileno() for sock in sockets]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *map(str, numbers),
                pass_fds=numbers,
                stdin=asyncio.subprocess.DEVNULL,
                process_group=0,  # with what it starts; Ctrl-C is for us, who then end them all
            )
        finally:
            for sock in sockets:
                sock.close()
        companions.add(process.pid)
        return cls(process)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """What it ended with, minus the signal that ended it; None while it runs."""
        return self._process.returncode

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._process.wait()
        companions.discard(self.pid)

    async def kill(self) -> None:
        """End it and what it has started at once, and wait until it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.wait()
