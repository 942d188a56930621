"""Two machines of a Ray cluster, both of them this one: a rank on each, either may be lost."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from machines import await_that
from pluribus import Engine, EngineError, SamplingParams
from processes import environment

if find_spec("ray") is None:
    pytest.skip("needs the extra pluribus[ray]", allow_module_level=True)

PARALLEL = ("parallel=tensor", "cache.kv.memory=64MiB", "launcher=ray")
GREEDY = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=40, temperature=0.8, top_k=20, seed=5)
PROMPT = "Once upon a time"
MARK = "PLURIBUS_TEST_CLUSTER"
SMALL = ("--num-cpus=1", f"--object-store-memory={80 * 10**6}", "--block")


class Cluster:
    """A head with room for one rank, and a machine that has room for another."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        self._log = folder / "start.log"
        self.address = f"127.0.0.1:{port}"
        self._machines = [self._start(*head)]
        await_that(self._answers, "a Ray cluster")
        self.add()

    def add(self) -> None:
        """Add the other machine."""
        address = (f"--address={self.address}", "--node-ip-address=127.0.0.2")
        self._machines.append(self._start(*address))

    def lose(self) -> None:
        """End the machine that came last, and all that runs there."""
        machine = self._machines.pop()
        everything = [machine, *machine.children(recursive=True)]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, timeout=20)

    def processes(self, name: str) -> list[psutil.Process]:
        """Return those that it has started, on any machine, with ``name`` in their command."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.address:
                    found += [process] * any(name in word for word in process.cmdline())
        return found

    def end(self) -> None:
        """End them all."""
        while self._machines:
            self.lose()

    def _answers(self) -> bool:
        host, port = self.address.split(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def _start(self, *arguments: str) -> psutil.Popen:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *SMALL, *arguments]
        env = environment(RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1") | {MARK: self.address}
        with self._log.open("ab") as log:
            return psutil.Popen(command, env=env, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Ray's sockets lie in there, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def engine(cluster: Cluster) -> Iterator[Engine]:
    with Engine(*PARALLEL, f"launcher.address={cluster.address}") as engine:
        yield engine
    await_that(lambda: not cluster.processes("RankActor"), "no actor is left")
    assert not cluster.processes("pluribus.parallel.rank")


def test_ranks_on_two_machines_give_the_tokens_of_one(engine: Engine) -> None:
    with Engine("cache.kv.memory=64MiB") as alone:
        expected = alone.generate([PROMPT] * 2, [GREEDY, SEEDED])
    answers = engine.generate([PROMPT] * 2, [GREEDY, SEEDED])
    assert [a.tokens for a in answers] == [e.tokens for e in expected]


def test_a_lost_machine_is_noticed_and_another_takes_its_place(
    engine: Engine, cluster: Cluster
) -> None:
    [expected] = engine.generate(PROMPT, GREEDY)
    noticed: list[float] = []

    def replace() -> None:
        time.sleep(0.2)
        cluster.lose()
        lost = engine.service.fleet
        noticed.append(await_that(lambda: lost.num_restarts == 1, "noticed"))
        cluster.add()

    replacing = threading.Thread(target=replace)
    replacing.start()
    [answer] = engine.generate(PROMPT, GREEDY)
    replacing.join()
    assert answer.tokens == expected.tokens
    assert noticed[0] < 5


def test_a_rank_that_is_killed_is_reported_with_its_reason(
    engine: Engine, cluster: Cluster
) -> None:
    details: list[str] = []
    engine.service.fleet.watch(lambda status: details.append(status.detail))
    [rank] = cluster.processes("pluribus.parallel.rank")
    rank.kill()
    engine.generate(PROMPT, GREEDY)
    assert "rank 1" in details[0]
    assert "SIGKILL" in details[0]


def test_no_cluster_is_an_error_that_says_how_to_start_one() -> None:
    with pytest.raises(EngineError, match="ray start --head"):
        Engine(*PARALLEL, "launcher.address=127.0.0.1:1", "launcher.timeout=5")
