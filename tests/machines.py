"""Two network namespaces with a cable between them: two machines, as far as the network knows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from processes import environment

LIMIT = 90.0
SECRET = "a secret that both machines know"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def await_that(happens: Callable[[], bool], what: str, limit: float = LIMIT) -> float:
    """Return the seconds until it does."""
    start = time.monotonic()
    while not happens():
        assert time.monotonic() - start < limit, f"not within {limit} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - start


def ip(*arguments: str) -> str:
    """Run ``ip`` and return what it prints."""
    return subprocess.run(
        ["ip", *arguments], check=True, capture_output=True, text=True, timeout=30
    ).stdout


class Machine:
    """One of the two.

    Attributes:
        number: 0 or 1.
        address: by which the other one sees it.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.namespace = f"pluribus-{os.getpid()}-{number}"
        self.cable = f"pl{os.getpid()}-{number}"
        self.address = f"10.213.77.{number + 1}"
        self.folder = folder
        self.log = folder / f"log-{number}"

    def plug_in(self) -> None:
        """Make its namespace, and connect its end of the cable."""
        ip("netns", "add", self.namespace)
        ip("link", "set", self.cable, "netns", self.namespace)
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", self.cable)
        for device in ("lo", self.cable):
            self.inside("ip", "link", "set", device, "up")

    def remove(self) -> None:
        """End whatever runs there, and take it away."""
        self.kill()
        ip("netns", "delete", self.namespace)

    def inside(self, *command: str) -> str:
        """Run a command there and return what it prints."""
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def torchrun(self, *arguments: str, secret: str = SECRET) -> subprocess.Popen[bytes]:
        """Start torchrun there, with one process of two."""
        nodes = ("--nnodes=2", f"--node-rank={self.number}", "--nproc-per-node=1")
        where = ("--master-addr=10.213.77.1", "--master-port=29500")
        command = ["ip", "netns", "exec", self.namespace, *TORCHRUN, *nodes, *where]
        temporary = self.folder / f"tmp-{self.number}"
        temporary.mkdir(exist_ok=True)
        env = environment(OMP_NUM_THREADS="1", PLURIBUS_SECRET=secret, TMPDIR=str(temporary))
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*command, "-m", "pluribus", *arguments], cwd=self.folder, env=env, stderr=log
            )

    def processes(self) -> list[psutil.Process]:
        """Return all that run there."""
        pids = ip("netns", "pids", self.namespace).split()
        with contextlib.suppress(psutil.NoSuchProcess):
            return [psutil.Process(int(pid)) for pid in pids]
        return self.processes()

    def kill(self) -> None:
        """End all that runs there, as the end of the machine would."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(self.processes(), timeout=10)

    def get(self, path: str, **body: object) -> Any:
        """Return what the service there answers; None if there is no answer."""
        data = ("--header", "Content-Type: application/json", "--data", json.dumps(body))
        url = f"http://127.0.0.1:8020{path}"
        answer = self.inside("curl", "--silent", "--max-time", "50", url, *(data if body else ()))
        return json.loads(answer) if answer else None

    def is_ready(self) -> bool:
        """Return whether the service there answers."""
        ready = self.get("/readyz")
        return ready is not None and ready.get("state") == "ready"


def why_not() -> str | None:
    """Return why there can be no such machines here, or None."""
    if not all(map(shutil.which, ("ip", "curl"))):
        return "needs ip (iproute2) and curl"
    name = f"pluribus-probe-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted: {error.stderr.strip()}"
    return None


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[Sequence[Machine]]:
    """Make two machines, joined by a cable, and take them away at last."""
    first, second = machines = [Machine(number, folder) for number in range(2)]
    ip("link", "add", first.cable, "type", "veth", "peer", "name", second.cable)
    with contextlib.ExitStack() as stack:
        for machine in machines:
            machine.plug_in()
            stack.callback(machine.remove)
        yield machines
