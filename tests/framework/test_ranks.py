"""Ranks in processes of their own: as one while they live, and never left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pluribus import ConfigError, Engine, EngineError, SamplingParams

SHARED_MEMORY = Path("/dev/shm")
LONG = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)


def ranks(engine: Engine) -> list[psutil.Process]:
    """Return the processes of ranks 1 and up."""
    [process] = psutil.Process().children()
    return [child for child in process.children() if "pluribus.parallel.rank" in child.cmdline()]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine("parallel=tensor", "parallel.size=3", "cache.kv.memory=64MiB") as engine:
        yield engine


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = set(SHARED_MEMORY.iterdir())
    with Engine("parallel=tensor", "cache.kv.memory=64MiB") as engine:
        processes = psutil.Process().children(recursive=True)
        assert len(ranks(engine)) == 1
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    assert len(gone) == 2
    assert not list(tmp_path.iterdir())
    assert set(SHARED_MEMORY.iterdir()) <= before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_is_noticed_and_nobody_notices(engine: Engine, how: signal.Signals) -> None:
    [expected] = engine.generate("Once upon a time", LONG)
    victims = ranks(engine)
    processes = psutil.Process().children(recursive=True)
    left: list[psutil.Process] = []

    def lose() -> None:
        time.sleep(0.3)
        victims[1].send_signal(how)
        _, alive = psutil.wait_procs(processes, timeout=20)
        left.extend(alive)

    loser = threading.Thread(target=lose)
    loser.start()
    [answer] = engine.generate("Once upon a time", LONG)
    loser.join()
    assert answer.tokens == expected.tokens
    assert engine.service.supervisor.num_restarts == 1
    assert not left
    assert len(ranks(engine)) == 2


@pytest.fixture
def deaths(engine: Engine) -> list[str]:
    """Return what the engine's deaths are put down to, as they happen."""
    details: list[str] = []
    engine.service.supervisor.watch(lambda status: details.append(status.detail))
    return details


def test_a_rank_that_is_killed_is_reported_so(engine: Engine, deaths: list[str]) -> None:
    ranks(engine)[1].kill()
    engine.generate("Once upon a time", LONG)
    assert "rank 2 was killed (SIGKILL), as the system does when memory runs out" in deaths[0]


def test_a_rank_that_runs_out_of_memory_is_reported_so(engine: Engine, deaths: list[str]) -> None:
    victim = ranks(engine)[0]
    victim.rlimit(psutil.RLIMIT_AS, (victim.memory_info().vms, -1))
    engine.generate([[2] * 900] * 8, SamplingParams(max_tokens=2))
    assert "rank 1 died: " in deaths[0]
    assert "memory" in deaths[0]


def test_ranks_end_with_an_engine_that_is_killed(engine: Engine) -> None:
    victims = ranks(engine)
    [process] = psutil.Process().children()
    process.kill()
    _, alive = psutil.wait_procs(victims, timeout=10)
    assert not alive


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel.size=7: .* 6 attention heads"):
        Engine("parallel=tensor", "parallel.size=7")


def test_a_rank_that_cannot_start_is_an_error_not_a_wait() -> None:
    with pytest.raises(EngineError, match="CUDA device"):
        Engine("parallel=tensor", "device=cuda")
