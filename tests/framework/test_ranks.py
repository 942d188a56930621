"""Ranks in processes of their own: as one while they live, and never left behind."""

from __future__ import annotations

import queue
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from framework.counting import CountingExecutor
from pluribus import ConfigError, Engine, EngineError, Executor, SamplingParams
from pluribus.engine.channel import Channel
from pluribus.interfaces import Seat
from pluribus.parallel import rank
from pluribus.parallel.crew import Crew, Member, Roster
from pluribus.parallel.local import LocalCrew
from pluribus.parallel.messages import FromRank, RankBeat, RankDied, ToRank
from pluribus.parallel.ranks import RankProcesses

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
    shared = set(SHARED_MEMORY.iterdir())
    with Engine("parallel=tensor", "cache.kv.memory=64MiB") as engine:
        processes = psutil.Process().children(recursive=True)
        assert len(ranks(engine)) == 1
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive
    assert len(gone) == 2
    assert not list(tmp_path.iterdir())
    assert set(SHARED_MEMORY.iterdir()) <= shared


@pytest.fixture
def details(engine: Engine) -> list[str]:
    """Return what is told of the engine's state, as it changes."""
    details: list[str] = []
    engine.service.fleet.watch(lambda status: details.append(status.detail))
    return details


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (signal.SIGKILL, "rank 2 was killed (SIGKILL), as the system does when memory runs out"),
        (signal.SIGSTOP, "rank 2 has said nothing for 4."),
    ],
)
def test_a_lost_rank_is_noticed_and_reported_and_nobody_notices(
    engine: Engine, details: list[str], how: signal.Signals, reason: str
) -> None:
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
    assert reason in details[0]
    assert engine.service.fleet.num_restarts == 1
    assert not left
    assert len(ranks(engine)) == 2


def test_a_rank_that_runs_out_of_memory_is_reported_so(engine: Engine, details: list[str]) -> None:
    victim = ranks(engine)[0]
    victim.rlimit(psutil.RLIMIT_AS, (victim.memory_info().vms, -1))
    engine.generate([[2] * 900] * 8, SamplingParams(max_tokens=2))
    assert "rank 1 died: " in details[0]
    assert "memory" in details[0]


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

    def start_rank(seat: Seat) -> Executor:
        [process] = psutil.Process().children()
        process.suspend()
        time.sleep(1.5)
        assert not losses
        return CountingExecutor()

    ranks = RankProcesses(start_rank, "", LocalCrew(2), losses.append)
    ranks.shutdown()
    assert not psutil.Process().children()


def test_a_rank_that_raises_is_ended_and_its_reason_told() -> None:
    losses: queue.SimpleQueue[str] = queue.SimpleQueue()
    reasons: list[str] = []

    def start_rank(seat: Seat) -> Executor:
        reasons.append(losses.get(timeout=60))
        return CountingExecutor()

    ranks = RankProcesses(start_rank, "server: nonsense", LocalCrew(2), losses.put)
    ranks.shutdown()
    assert re.match(r"rank 1 died: ConfigError: .*server", reasons[0])


def test_a_rank_says_that_it_runs_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has said nothing is given a minute: it may still be importing."""
    monkeypatch.setattr(rank, "SECONDS_BETWEEN_BEATS", 3600.0)
    ours, theirs = socket.socketpair()
    channel: Channel[FromRank, ToRank] = Channel(ours, ToRank)
    threading.Thread(target=rank.beat, args=(channel,), daemon=True).start()
    first: Channel[ToRank, FromRank] = Channel(theirs, FromRank)
    assert first.receive(block=True) == [RankBeat()]
    channel.close()
    first.close()


class Puppets(Crew):
    """Ranks without processes: the test says what they say."""

    def __init__(self, num_ranks: int) -> None:
        pairs = [socket.socketpair() for _ in range(num_ranks)]
        self.ranks: list[Channel[FromRank, ToRank]] = [Channel(ours, ToRank) for ours, _ in pairs]
        self._others = [
            Member(seat=Seat(rank=rank), channel=Channel(theirs, FromRank), host=f"host-{rank}")
            for rank, (_, theirs) in enumerate(pairs, start=1)
        ]

    def gather(self, lose: Callable[[str], None]) -> Roster:
        return Roster(first=Seat(), others=self._others)

    def epitaph(self, member: Member) -> str:
        return "is gone"

    def dismiss(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        for each in self.ranks:
            each.close()


def test_who_is_gone_is_to_blame_and_not_who_raised_because_of_that() -> None:
    puppets, losses = Puppets(3), queue.SimpleQueue[str]()
    ranks = RankProcesses(lambda seat: CountingExecutor(), "", puppets, losses.put)
    puppets.ranks[0].send(RankDied("RuntimeError: connection closed by peer", ""))
    time.sleep(0.2)
    puppets.ranks[1].close()
    assert losses.get(timeout=10) == "rank 2 on host-2 is gone"
    ranks.shutdown()
    assert losses.empty()


def test_who_is_lost_is_told_before_the_first_rank_s_own_error_is() -> None:
    puppets, losses = Puppets(1), queue.SimpleQueue[str]()

    def start_rank(seat: Seat) -> Executor:
        puppets.ranks[0].close()
        raise RuntimeError("connection closed by peer")

    with pytest.raises(RuntimeError, match="by peer"):
        RankProcesses(start_rank, "", puppets, losses.put)
    assert losses.get_nowait() == "rank 1 on host-1 is gone"
