"""Say how far reading weights has come: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from pluribus.interfaces.model import Progress
from pluribus.terminal import is_terminal

SECONDS_BETWEEN_LINES = 5.0
Report = Callable[[str], AbstractContextManager[Progress]]
"""Opens a report on reading something."""

_MEGABYTE = 1_000_000
_logger = logging.getLogger("pluribus.load")


def report_progress(what: str) -> AbstractContextManager[Progress]:
    """Open a report on reading ``what``; call what it gives with (bytes done, bytes in all)."""
    return draw_progress(what) if is_terminal(sys.stderr) else log_progress(what)


@contextmanager
def draw_progress(what: str) -> Iterator[Progress]:
    """Draw a bar with bytes, speed and time left on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}", markup=False)
    with Bars(text, *columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(f"Loading {what}", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def log_progress(what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
    """Log a line about every five seconds, and one at the end unless an exception ends it."""
    start = last_line = clock()
    num_read = 0

    def progress(done: int, total: int) -> None:
        nonlocal last_line, num_read
        num_read = done
        now = clock()
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            _logger.info(
                "Loading %s: %d of %d MB, %.0f %%",
                what,
                done // _MEGABYTE,
                total // _MEGABYTE,
                100 * done / total,
            )

    yield progress
    seconds = clock() - start
    speed = num_read / _MEGABYTE / seconds if seconds else 0.0
    _logger.info(
        "Loaded %s: %.1f MB in %.1f s, %.0f MB/s", what, num_read / _MEGABYTE, seconds, speed
    )
