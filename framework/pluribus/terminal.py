"""How a command gets on with the terminal, or whatever it was started from."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import NoReturn, TextIO

INTERRUPTED = 130
"""The exit code that shells know for Ctrl-C."""

UNREAD = 141
"""The exit code that shells know for a command whose reader has left, as ``head`` does."""


SECONDS_TO_END = 1.0
"""That killed processes are waited for, at most."""
companions: set[int] = set()
"""Process groups that this process has started, and that are of no use without it."""


def end_on_interrupt() -> None:
    """Let Ctrl-C end this process at once and without a word, wherever it is.

    For commands that have nothing to clean up. A server that listens to signals itself
    finishes what runs instead.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, partial(_end, INTERRUPTED))


def end_on_terminate() -> None:
    """Let SIGTERM end this process at once, in good order: there is nothing to finish yet.

    An exit that is raised would be taken for the fault of whichever plugin is running.
    """
    signal.signal(signal.SIGTERM, partial(_end, 0))


def _end(code: int, *_: object) -> NoReturn:
    for group in list(companions):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    # Whoever waits for this process may look for those at once. Threads watch them end.
    deadline = time.monotonic() + SECONDS_TO_END
    while companions and time.monotonic() < deadline:
        time.sleep(0.002)
    os._exit(code)


def open_standard_streams() -> None:
    """Let what is printed never fail: not for a closed stream, nor for its encoding."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        # It was closed. A socket would get its number, and then all that libraries print.
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def end_with_reader() -> Iterator[None]:
    """End without a word once nobody reads what is printed inside, and print all of it.

    SIGPIPE would do the same by itself, but also where it is a socket's peer that has left.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread(sys.stdout):
            raise
        # Python flushes what is left once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)


def _is_unread(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a person may be watching; Python has None for a stream that was closed."""
    return stream is not None and stream.isatty()
