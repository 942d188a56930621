"""A server of our own to measure, and what it weighs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

COMMAND = (sys.executable, "-c", "from pluribus.cli import main; main()", "serve")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    url: str
    process: psutil.Process

    def resident_bytes(self) -> int:
        """Return the memory that its processes take together."""
        family = (self.process, *self.process.children(recursive=True))
        return sum(int(each.memory_info().rss) for each in family)


@contextmanager
def serving(*overrides: str) -> Iterator[Server]:
    """Run ``pluribus serve`` until it is not needed any more."""
    url = f"http://127.0.0.1:{(port := _free_port())}"
    command = (*COMMAND, f"server.port={port}", "server.log_level=error", *overrides)
    with subprocess.Popen(command) as process:
        try:
            while not _is_ready(url):
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with exit code {process.returncode}")
                time.sleep(0.2)
            yield Server(url, psutil.Process(process.pid))
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz") as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:
        return False
