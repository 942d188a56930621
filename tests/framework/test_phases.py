"""What a start takes is told part by part."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pluribus import phases
from pluribus.phases import Phases, told


class Clock:
    """Tells the time that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_each_part_lasts_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(phases, "time", clock)
    start = Phases()
    clock.now += 2.0
    start.end("device")
    clock.now += 5.0
    start.split("kernels", 3.5)
    start.end("graphs")
    assert start.seconds == pytest.approx({"device": 2.0, "kernels": 3.5, "graphs": 1.5})


def test_the_whole_is_told_before_its_parts() -> None:
    assert told({"imports": 2.06, "weights": 0.3}) == "ready after 2.4 s: imports 2.1, weights 0.3"


def test_time_goes_on() -> None:
    start = Phases()
    time.sleep(0.02)
    start.end("device")
    assert 0.02 <= start.seconds["device"] < 10


def test_a_process_knows_its_age() -> None:
    code = "import time; time.sleep(0.5); from pluribus.phases import process_age as a; print(a())"
    began = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 <= float(told.stdout) <= time.monotonic() - began + 0.02
