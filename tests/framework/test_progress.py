"""Progress is drawn on a terminal, and logged where there is none."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import subprocess
import sys

import pytest

from pluribus.progress import log_progress, report_progress

MEGABYTE = 1_000_000
READ = """
from pluribus.progress import report_progress
with report_progress("[a] model") as progress:
    for done in range(0, 250_000_001, 50_000_000):
        progress(done, 250_000_000)
"""


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_is_logged_about_every_five_seconds_and_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pluribus.load")
    clock = Clock()
    with log_progress("opt-125m", clock) as progress:
        for done in range(1, 13):
            clock.now += 1
            progress(done * 20 * MEGABYTE, 240 * MEGABYTE)
    assert [record.name for record in caplog.records] == ["pluribus.load"] * 3
    assert caplog.messages == [
        "Loading opt-125m: 100 of 240 MB, 42 %",
        "Loading opt-125m: 200 of 240 MB, 83 %",
        "Loaded opt-125m: 240.0 MB in 12.0 s, 20 MB/s",
    ]


def test_no_line_says_loaded_when_reading_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pluribus.load")
    with contextlib.suppress(OSError), log_progress("opt-125m") as progress:
        progress(1, 2)
        raise OSError("the disk is gone")
    assert caplog.messages == []


def test_a_model_without_weights_is_no_division_by_zero(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pluribus.load")
    with log_progress("nothing", Clock()):
        pass
    assert caplog.messages == ["Loaded nothing: 0.0 MB in 0.0 s, 0 MB/s"]


def test_lines_are_logged_where_standard_error_is_no_terminal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pluribus.load")
    with report_progress("opt-125m") as progress:
        progress(MEGABYTE, MEGABYTE)
    assert caplog.messages[-1].startswith("Loaded opt-125m: 1.0 MB")


def test_lines_are_logged_where_there_is_no_standard_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "pluribus.load")
    monkeypatch.setattr(sys, "stderr", None)
    with report_progress("opt-125m") as progress:
        progress(MEGABYTE, MEGABYTE)
    assert caplog.messages[-1].startswith("Loaded opt-125m: 1.0 MB")


def test_a_bar_is_drawn_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", READ],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    drawn = b""
    with contextlib.suppress(OSError):  # how the end of a terminal is said on Linux
        while chunk := os.read(ours, 4096):
            drawn += chunk
    os.close(ours)
    assert process.wait() == 0
    assert b"Loading [a] model" in drawn
    assert b"250.0/250.0 MB" in drawn
