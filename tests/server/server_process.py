"""A server in a process of its own, whose log is read record by record."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil

from processes import environment

TESTS = Path(__file__).parents[1]
LIMIT = 60


class Server:
    """A server process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = ""
        self._lines: list[str] = []
        self._unread: SimpleQueue[str | None] = SimpleQueue()
        # A pipe that nobody reads would hold the server up once it is full.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            self._unread.put(line)
        self._unread.put(None)

    def await_record(self, event: str) -> dict[str, Any]:
        """Return the next log record whose event starts with ``event``."""
        while (line := self._unread.get(timeout=LIMIT)) is not None:
            record: dict[str, Any] = json.loads(line)
            if record["event"].startswith(event):
                return record
        raise AssertionError(f"it ended without logging {event!r}; it said {self._lines}")

    def log(self) -> str:
        """Return all that it has logged, once it has ended."""
        self._reader.join(LIMIT)
        return "".join(self._lines)

    def await_url(self) -> str:
        """Return where it serves, once it is ready."""
        match = re.search(r"http://\S+", self.await_record("serving ")["event"])
        assert match
        self.url = match.group()
        return self.url

    def engine(self) -> psutil.Process:
        """Return the engine's process, where there is one."""
        [engine] = self.engines()
        return engine

    def engines(self) -> list[psutil.Process]:
        """Return the engines' processes, the eldest first."""
        return [process for process in self.processes() if not is_worker(process)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes that speak HTTP for it, the eldest first."""
        return [process for process in self.processes() if is_worker(process)]

    def processes(self) -> list[psutil.Process]:
        """Return the processes that it has started, the eldest first."""
        started = psutil.Process(self.process.pid).children()
        return sorted(started, key=lambda process: (process.create_time(), process.pid))

    def workers_that_answered(self) -> set[int]:
        """Return the workers that have logged a request."""
        records = [json.loads(line) for line in list(self._lines) if line.startswith("{")]
        return {record["worker"] for record in records if record["event"] == "request"}

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the front."""
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for the end."""
        return self.process.wait(LIMIT)


def is_worker(process: psutil.Process) -> bool:
    """Whether a process speaks HTTP for another."""
    return "pluribus.server.workers.process" in process.cmdline()


@contextmanager
def fake_server(**settings: Any) -> Iterator[Server]:
    """Run ``server.fake_server``."""
    command = [sys.executable, "-m", "server.fake_server", json.dumps(settings)]
    with _running(command, {}) as server:
        yield server


@contextmanager
def real_server(*overrides: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run ``pluribus serve``, which serves the bundled model."""
    command = [sys.executable, "-c", "from pluribus.cli import main; main()", "serve"]
    with _running([*command, "server.port=0", *overrides], env or {}) as server:
        yield server


@contextmanager
def _running(command: list[str], env: Mapping[str, str]) -> Iterator[Server]:
    process = subprocess.Popen(
        command,
        cwd=TESTS,
        env=environment(OMP_NUM_THREADS="1", **env),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        server = Server(process)
        try:
            yield server
        finally:
            process.kill()
            server.log()
