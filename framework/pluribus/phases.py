"""What a start takes, part by part."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil


class Phases:
    """Times the parts of a start, one after another.

    Attributes:
        seconds: of each part that has ended, in their order.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, name: str) -> None:
        """End a part: it has lasted since the one before it."""
        now = time.monotonic()
        self.seconds[name] = now - self._since
        self._since = now

    def split(self, name: str, seconds: float) -> None:
        """Give so many seconds of the part that has not ended yet a name of their own."""
        self.seconds[name] = seconds
        self._since += seconds


def told(seconds: Mapping[str, float]) -> str:
    """Return the whole and its parts, for people."""
    parts = ", ".join(f"{name} {duration:.1f}" for name, duration in seconds.items())
    return f"ready after {sum(seconds.values()):.1f} s: {parts}"


def process_age() -> float:
    """Return the seconds since this process began."""
    if sys.platform == "linux":  # psutil counts from a second that the system has rounded
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - float(psutil.Process().create_time())
