"""An engine's process before it is told what to run: that is when it imports what takes long."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self

from pluribus.companion import Companion


class SpareProcess:
    """A process that waits for its configuration; as a context, it ends there if nobody took it.

    Attributes:
        process: the process.
        socket: our end of its socket.
    """

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.process = Companion("pluribus.engine.process", [theirs])
        self._is_taken = False

    def take(self) -> Self:
        """Return it, to be ended by whoever has it now."""
        self._is_taken = True
        return self

    def end(self) -> None:
        """End it, unless somebody has taken it."""
        if not self._is_taken:
            self._is_taken = True
            self.socket.close()
            self.process.end()
            self.process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
