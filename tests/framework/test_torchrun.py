"""Two machines under torchrun: one service, whichever of them is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from machines import LIMIT, SECRET, TORCHRUN, Machine, await_that, two_machines, why_not
from pluribus import Engine, SamplingParams
from processes import environment

PARALLEL = ("launcher=torchrun", "parallel=tensor", "parallel.size=2", "cache.kv.memory=64MiB")
SERVE = ("serve", *PARALLEL, "launcher.timeout=20", "server.log_format=json")
PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
SEEDED: dict[str, Any] = {"max_tokens": 40, "temperature": 0.8, "top_k": 20, "seed": 5}
NOTICED = 5.0 + 1.0
"""Seconds, and a second to ask."""


def one_rank(*params: dict[str, Any]) -> list[str]:
    """Return what a single rank makes of the prompt."""
    with Engine("cache.kv.memory=64MiB") as engine:
        answers = engine.generate([PROMPT] * len(params), [SamplingParams(**p) for p in params])
    return [answer.prompt + answer.text for answer in answers]


class Service:
    """One service on two machines."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = machines
        self.first, self.second = machines
        self.runs = [machine.torchrun(*SERVE) for machine in machines]

    def await_ready(self) -> None:
        """Wait until it answers."""
        await_that(self.first.is_ready, f"ready\n{self.first.log.read_text()}")

    def lose(self, number: int) -> None:
        """End one machine's processes at once."""
        self.machines[number].kill()
        self.runs[number].wait(LIMIT)

    def answer(self, **params: Any) -> str:
        """Return what it makes of the prompt."""
        return str(self.first.get("/generation", prompt=PROMPT, **params)["text"])

    def log(self) -> str:
        """Return what was said on both machines."""
        return "".join(machine.log.read_text() for machine in self.machines)


@contextmanager
def running(machines: Sequence[Machine]) -> Iterator[Service]:
    """Start a service, wait until it is ready, and leave nothing of it."""
    service = Service(machines)
    try:
        service.await_ready()
        yield service
    finally:
        for number in range(2):
            service.lose(number)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Machine]]:
    if reason := why_not():
        pytest.skip(reason)
    with two_machines(tmp_path_factory.mktemp("machines")) as pair:
        yield pair


@pytest.fixture(scope="module")
def service(machines: Sequence[Machine]) -> Iterator[Service]:
    with running(machines) as service:
        yield service


def ranks_on(machine: Machine) -> list[psutil.Process]:
    """Return the processes there that are ranks."""
    return [each for each in machine.processes() if "pluribus.parallel.rank" in each.cmdline()]


def generate_on_one_machine(*overrides: str) -> subprocess.CompletedProcess[str]:
    """Have torchrun start two ranks that answer the prompt."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = ("--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}")
    generate = ("generate", f"prompt={PROMPT}", "temperature=0", "max_tokens=40", *PARALLEL)
    return subprocess.run(
        [*TORCHRUN, *where, "-m", "pluribus", *generate, *overrides],
        env=environment(OMP_NUM_THREADS="1", PLURIBUS_SECRET=SECRET),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_ranks_of_one_machine_give_the_answer_of_one_rank() -> None:
    done = generate_on_one_machine()
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip() == one_rank(GREEDY)[0].rstrip()


def test_ranks_refuse_together_what_does_not_fit_where_they_are() -> None:
    done = generate_on_one_machine("cache.kv.memory=1KiB")
    assert done.returncode != 0
    assert (
        "opt-stories-14m does not fit: cache.kv.memory=1KiB gives 1KiB on rank 0's" in done.stderr
    )


def test_two_machines_give_the_tokens_of_one_rank(service: Service) -> None:
    assert [service.answer(**GREEDY), service.answer(**SEEDED)] == one_rank(GREEDY, SEEDED)


def test_only_torchrun_itself_listens_on_every_address(service: Service) -> None:
    for machine in service.machines:
        listeners = machine.inside("ss", "--listening", "--tcp", "--processes", "--no-header")
        ours = [line.split()[3] for line in listeners.splitlines() if "pt_elastic" not in line]
        hosts = {address.rpartition(":")[0] for address in ours}
        assert hosts <= {"127.0.0.1", machine.address}


def test_a_cut_cable_is_noticed_and_mended(service: Service) -> None:
    expected = service.answer(**GREEDY)
    service.second.inside("ip", "link", "set", service.second.cable, "down")
    noticed = await_that(lambda: not service.first.is_ready(), "noticed")
    detail = service.first.get("/readyz")["detail"]
    service.second.inside("ip", "link", "set", service.second.cable, "up")
    assert noticed < NOTICED
    assert "rank 1 on" in detail
    assert service.second.address in detail
    service.await_ready()
    assert service.answer(**GREEDY) == expected


def test_a_lost_machine_is_noticed_and_may_come_back(service: Service) -> None:
    expected = service.answer(**GREEDY)
    service.lose(1)
    noticed = await_that(lambda: not service.first.is_ready(), "noticed")
    assert noticed < NOTICED
    service.runs[1] = service.second.torchrun(*SERVE)
    service.await_ready()
    assert service.answer(**GREEDY) == expected


def test_a_rank_that_stops_on_another_machine_is_ended_and_comes_again(service: Service) -> None:
    expected = service.answer(**GREEDY)
    [rank] = ranks_on(service.second)
    rank.suspend()
    noticed = await_that(lambda: not service.first.is_ready(), "noticed")
    assert noticed < NOTICED
    service.await_ready()
    assert service.answer(**GREEDY) == expected
    assert not rank.is_running()


def test_a_machine_that_only_follows_has_no_engine(service: Service) -> None:
    lines = [" ".join(process.cmdline()) for process in service.second.processes()]
    assert not [line for line in lines if "pluribus.engine" in line]
    assert len(ranks_on(service.second)) == 1


def test_the_end_of_the_service_is_everybodys(service: Service) -> None:
    service.runs[0].send_signal(signal.SIGTERM)
    service.runs[0].wait(LIMIT)
    assert service.runs[1].wait(LIMIT) == 0
    assert not any(machine.processes() for machine in service.machines)
    assert not list(service.first.folder.glob("tmp-*/pluribus-*"))


def test_losing_the_first_machine_ends_the_others(machines: Sequence[Machine]) -> None:
    with running(machines) as service:
        service.lose(0)
        assert service.runs[1].wait(LIMIT) != 0
        assert not service.second.processes()
        first = "the first machine, 10.213.77.1:29500"
        assert f"rank 1 ends: {first}: the service has ended" in service.log()
