"""Ranks in processes of their own: as one while they live, and never left behind."""

from __future__ import annotations

import queue
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from framework.counting import CountingExecutor
from pluribus import ConfigError, Engine, EngineError, Executor, SamplingParams
from pluribus.parallel.ranks import RankProcesses

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
    with Engine("parallel=tensor", "cache.kv.memory=64MiB") as engine:
        processes = psutil.Process().children(recursive=True)
        assert len(ranks(engine)) == 1
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    assert len(gone) == 2
    assert not list(tmp_path.iterdir())


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
    assert engine.service.fleet.num_restarts == 1
    assert not left
    assert len(ranks(engine)) == 2


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


def test_a_rank_may_be_slow_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no reason to start over, which would make it busier."""
    monkeypatch.setattr("pluribus.parallel.ranks.SILENCE", 0.5)
    losses: list[str] = []

    def start_rank(rank: int, rendezvous: str) -> Executor:
        [process] = psutil.Process().children()
        process.suspend()
        time.sleep(1.5)
        assert not losses
        return CountingExecutor()

    ranks = RankProcesses(start_rank, "", 2, losses.append)
    ranks.shutdown()
    assert not psutil.Process().children()


def test_a_rank_that_raises_is_ended_and_its_reason_told() -> None:
    losses: queue.SimpleQueue[str] = queue.SimpleQueue()
    reasons: list[str] = []

    def start_rank(rank: int, rendezvous: str) -> Executor:
        reasons.append(losses.get(timeout=60))
        return CountingExecutor()

    ranks = RankProcesses(start_rank, "server: nonsense", 2, losses.put)
    ranks.shutdown()
    assert re.match(r"rank 1 died: ConfigError: .*server", reasons[0])
