"""`pluribus bench` measures what it says, prints JSON lines and leaves nothing behind."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any, cast

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.counting import CountingExecutor, ask, core
from pluribus import Step, StepResult, composition
from pluribus import config as conf
from pluribus.bench.command import BenchConfig
from pluribus.bench.engine import BenchEngine
from pluribus.bench.measurement import Course, Measurement, quantile
from pluribus.bench.stopwatch import ForwardPass, TimedNetwork
from pluribus.bench.turns import TimedExecutor, Turn
from pluribus.bench.workloads import WORKLOADS, fixed, mixed
from pluribus.errors import ConfigError
from pluribus.interfaces import KVStore, Network
from pluribus.plugins import discover
from processes import environment

PLURIBUS = [sys.executable, "-c", "from pluribus.cli import main; main()"]
SMALL = ("workload=lat8", "num_requests=3", "prompt_tokens=5", "output_tokens=4", "warmups=1")
NUM_IDS = 8192


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PLURIBUS, "bench", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def is_rank(process: psutil.Process) -> bool:
    return "pluribus.parallel.rank" in process.cmdline()


def records(run: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_each_repeat_and_the_summary_are_a_line_of_json(tmp_path: Path) -> None:
    *repeats, summary = records(bench(tmp_path, *SMALL, "repeats=2"))
    assert [repeat["repeat"] for repeat in repeats] == [1, 2]
    for record in (*repeats, summary):
        assert record["output_tokens"] == 3 * 4
        assert record["steps"] == 4
        for part in ("model_ms", "choosing_ms", "engine_ms"):
            assert 0 < record[part]["p50"] < record["step_ms"]["p99"]
        assert record["engine_ms_a_pass"] == record["engine_ms"]
        assert record["passes_a_step"] == 1
        assert 0 < record["tpot_ms"]["p50"] <= record["tpot_ms"]["p99"]
    assert summary["model"] == {"name": "opt-stories-14m", "parameters": 14187264}
    assert summary["config"]["batcher"]["name"] == "continuous"
    assert summary["peak_rss_mib"] > 100
    assert summary["versions"]["python"].startswith("3.")


def test_a_sweep_measures_each_combination_and_leaves_no_files(tmp_path: Path) -> None:
    run = bench(tmp_path, "-m", *SMALL, "repeats=1", "batcher.max_batch_size=1,2")
    summaries = [record for record in records(run) if record["record"] == "summary"]
    assert [s["config"]["batcher"]["max_batch_size"] for s in summaries] == [1, 2]
    assert [summary["steps"] for summary in summaries] == [3 * 4, 2 * 4]
    assert not list(tmp_path.iterdir())


def test_a_lost_rank_ends_it_with_a_reason(tmp_path: Path) -> None:
    command = [*PLURIBUS, "bench", "workload=lat8", "output_tokens=900", "repeats=1000"]
    command += ["parallel=tensor", "cache.kv.memory=64MiB"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=PIPE, stderr=PIPE, text=True
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()  # a first repeat is done
        [rank] = [each for each in psutil.Process(run.pid).children() if is_rank(each)]
        rank.kill()
        _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "pluribus: rank 1 was killed (SIGKILL)" in said


def test_other_verbs_refuse_to_sweep(tmp_path: Path) -> None:
    command = [*PLURIBUS, "serve", "-m", "server.port=1,2"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == (
        "pluribus: serve runs one configuration, so -m is not for it; pluribus bench takes it\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workload=lat9", "workload must be one of lat1, "),
        ("repeats=0", "repeats must be at least 1, got 0"),
        ("warmups=-1", "warmups must be at least 0, got -1"),
        ("prompt_tokens=1", "prompt_tokens must be at least 2, got 1"),
        ("temperature=3", "temperature must be from 0 to 2, got 3.0"),
        ("prompt_tokens=1000", "the workload's longest request has 1128 tokens"),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_a_wrong_setting_is_refused_before_anything_runs(
    tmp_path: Path, override: str, message: str
) -> None:
    run = bench(tmp_path, override)
    assert run.returncode == 1
    assert run.stderr.startswith(f"pluribus: {message}")
    assert run.stdout == ""


def test_settings_change_the_workload_they_are_given_with() -> None:
    config = composition.load("bench", ["workload=mix16", "num_requests=3", "output_tokens=20"])
    chosen = conf.pick(config, BenchConfig).chosen()
    assert chosen.num_requests == 3
    assert chosen.output.median == 20
    assert chosen.output.spread == WORKLOADS["mix16"].output.spread
    assert chosen.prompt == WORKLOADS["mix16"].prompt


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(sorted(set(WORKLOADS) - {"mix512", "b256", "prefill"})), st.integers(1, 50))
def test_rounds_are_as_long_as_each_other_and_share_no_prompt(name: str, round_: int) -> None:
    first, other = (WORKLOADS[name].requests(i, [2], NUM_IDS) for i in (0, round_))
    assert [(len(r.prompt), r.num_tokens) for r in first] == [
        (len(r.prompt), r.num_tokens) for r in other
    ]
    assert not {r.prompt[:16] for r in first} & {r.prompt[:16] for r in other}
    assert all(4 <= id_ < NUM_IDS for r in (*first, *other) for id_ in r.prompt[1:])


def test_fixed_requests_are_all_alike() -> None:
    requests = fixed(3, 7, 5).requests(0, [2], NUM_IDS)
    assert [(len(r.prompt), r.num_tokens, r.length) for r in requests] == [(7, 5, 12)] * 3


def test_mixed_lengths_are_the_documented_ones() -> None:
    requests = mixed(200).requests(0, [2], 50265)
    rng = random.Random(1)
    for request in requests:
        prompt = min(1024, max(4, int(rng.lognormvariate(4.6, 1.1))))
        output = min(768, max(4, int(rng.lognormvariate(4.9, 0.9))))
        assert request.num_tokens == output
        assert request.prompt == (2, *(rng.randrange(4, 50000) for _ in range(prompt - 1)))


def test_the_engines_own_time_is_what_the_model_does_not_take() -> None:
    passes = [ForwardPass(0.0, 1.0, 0.125), ForwardPass(1.5, 2.0), ForwardPass(2.25, 3.0, 0.25)]
    measurement = Measurement(3.0, [Course(1.0, 3.0, 3)], [1.0, 1.0, 1.0], passes)
    assert measurement.engine_seconds == [0.375, 0.25]
    report = measurement.report()
    assert report["output_tokens_per_second"] == 1.0
    assert report["model_ms"] == {"p50": 750.0, "p99": 1000.0}
    assert report["choosing_ms"] == {"p50": 125.0, "p99": 250.0}
    assert report["ttft_ms"] == {"p50": 1000.0, "p99": 1000.0}
    assert report["tpot_ms"] == {"p50": 1000.0, "p99": 1000.0}


def test_what_cannot_be_timed_is_null() -> None:
    report = Measurement(1.0, [Course(1.0, 1.0, 1)], [1.0], []).report()
    for name in ("model_ms", "choosing_ms", "engine_ms", "engine_ms_a_pass", "tpot_ms"):
        assert report[name] is None
    assert report["passes_a_step"] is None


def test_of_a_device_that_runs_ahead_the_host_has_what_it_does_not_wait() -> None:
    turns = [Turn(1.0, 0.25, 1), Turn(2.0, 1.0, 4), Turn(2.5, 1.0, 2)]
    measurement = Measurement(3.0, [Course(1.0, 3.0, 3)], [1.0, 1.0, 1.0], [], turns)
    assert measurement.engine_seconds == [0.25, 0.5]
    report = measurement.report()
    assert report["engine_ms"] == {"p50": 500.0, "p99": 500.0}
    assert report["engine_ms_a_pass"] == {"p50": 250.0, "p99": 250.0}
    assert report["passes_a_step"] == 2.33
    assert report["model_ms"] is None


class WaitingExecutor(CountingExecutor):
    """Waits a while for each result, and counts it."""

    waited = 0.0

    @property
    def seconds_waited(self) -> float:
        return self.waited

    def submit(self, step: Step) -> Callable[[], StepResult]:
        read = super().submit(step)

        def wait() -> StepResult:
            time.sleep(0.05)
            self.waited += 0.05
            return read()

        return wait


def test_turns_are_noted_as_results_are_read() -> None:
    executor = WaitingExecutor()
    executor.passes = 3
    turns: list[Turn] = []
    timed = TimedExecutor(executor, turns)
    engine = core(timed)
    engine.add(ask(1, max_tokens=5))
    while engine.has_work:
        engine.step()
    assert timed.kv_shape is executor.kv_shape
    assert [turn.passes for turn in turns] == [step.passes for step in executor.steps]
    assert max(turn.passes for turn in turns) > 1
    assert turns[-1].waited == pytest.approx(0.05 * len(turns))
    seconds = [turn.seconds_since(before) for before, turn in itertools.pairwise(turns)]
    assert all(each > 0 for each in seconds)


def test_a_pass_lasts_until_its_last_logits() -> None:
    class SlowNetwork:
        def embed(self, *_: object) -> object:
            time.sleep(0.02)
            return None

        def __call__(self, *_: object) -> object:
            time.sleep(0.02)
            return None

        def logits(self, _: object) -> object:
            time.sleep(0.02)
            return None

    passes: list[ForwardPass] = []
    network: Any = TimedNetwork(cast(Network, SlowNetwork()), passes)
    network.embed(None, None)
    network(None, cast(KVStore, None))
    [timed] = passes
    assert timed.ended - timed.started >= 0.04
    network.logits(None)
    network.logits(None)
    assert timed.ended - timed.started >= 0.08


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_a_value_that_its_share_lies_below(values: list[float], at: float) -> None:
    value = quantile(values, at)
    assert value in values
    assert sum(each <= value for each in values) >= at * len(values)


def test_an_engine_that_cannot_load_says_why() -> None:
    config = composition.load("bench", ["cache.kv.memory=1KiB"])
    with pytest.raises(Exception, match=r"cache\.kv\.memory"), BenchEngine(config, discover()):
        pass


def test_more_than_a_texts_length_is_refused() -> None:
    engine = BenchEngine(composition.load("bench", []), discover())
    with pytest.raises(ConfigError, match="takes 1024"):
        engine.requests(fixed(1, 1000, 25), 0)
    engine.requests(fixed(1, 1000, 24), 0)
