"""A process of ours at the other end of a socket, that does not outlive us."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from pluribus.terminal import companions


class Companion:
    """A process that runs a module of ours: ``python -m module``.

    Args:
        module: what it runs.
        sockets: whose numbers it is told; they are closed here.
    """

    def __init__(self, module: str, sockets: Sequence[socket.socket]) -> None:
        numbers = [sock.fileno() for sock in sockets]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - it is ourselves
                [sys.executable, "-m", module, *map(str, numbers)],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                process_group=0,  # with what it starts; Ctrl-C is for us, who then end them all
            )
        finally:
            for sock in sockets:
                sock.close()
        companions.add(self.pid)
        self._ended: Future[None] = Future()
        threading.Thread(target=self._watch, name=f"watch-{self.pid}", daemon=True).start()

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
        import asyncio  # only now: the process would begin later by what that takes

        await asyncio.shield(asyncio.wrap_future(self._ended))

    def end(self) -> None:
        """End it and what it has started at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def join(self) -> None:
        """Wait until it has ended, where no event loop runs."""
        self._ended.result()

    async def kill(self) -> None:
        """End it and what it has started at once, and wait until it has ended."""
        self.end()
        await self.wait()

    def _watch(self) -> None:
        self._process.wait()
        companions.discard(self.pid)
        self._ended.set_result(None)
