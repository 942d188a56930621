"""Engines of one configuration: each knows which it is, and takes its part of the machine."""

from __future__ import annotations

import psutil
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from pluribus import (
    ConfigError,
    Engine,
    EngineError,
    SamplingParams,
    assembly,
    composition,
    rank_worker,
)
from pluribus.bench.engine import BenchEngine
from pluribus.interfaces import Seat
from pluribus.plugins import discover
from pluribus.replicas import ReplicaConfig, engine_configs

GREEDY = SamplingParams(max_tokens=12, temperature=0)
PROMPTS = ["Once upon a time", "The old man", "A cat", "In the forest"]


def parts_of(replica: int, *overrides: str) -> assembly.Parts:
    """Return the parts as the engine of a replica assembles them."""
    parts = assembly.assemble(composition.load("serve", overrides), discover())
    config = OmegaConf.create(engine_configs(parts.config, parts.replicas.replicas)[replica])
    assert isinstance(config, DictConfig)
    return assembly.assemble(config, discover())


@pytest.mark.parametrize("kind", ["single", "tensor"])
def test_every_kind_of_parallelism_takes_replicas(kind: str) -> None:
    parts = parts_of(1, f"parallel={kind}", "parallel.replicas=2")
    assert parts.replicas == ReplicaConfig(replicas=2, replica=1)


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"parallel\.replicas"):
        Engine(f"parallel.replicas={value}")


@pytest.mark.parametrize(("replica", "rank", "missing"), [(0, 1, 1), (1, 0, 2), (1, 1, 3)])
def test_each_replica_has_devices_of_its_own(
    replica: int, rank: int, missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: missing)
    parts = parts_of(replica, "parallel=tensor", "parallel.replicas=2", "device=cuda")
    seat = Seat(rank=rank, local_rank=rank, num_local=2)
    with pytest.raises(ConfigError, match=f"needs CUDA device {missing}, and torch sees {missing}"):
        rank_worker.start_rank(parts, lambda done, total: None, seat)


@pytest.mark.parametrize(("num_sharing", "num_threads"), [(2, [4]), (3, [2]), (16, [1]), (1, [])])
def test_processors_are_shared_out(
    num_sharing: int, num_threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    rank_worker._share_processors(num_sharing)
    assert chosen == num_threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    rank_worker._share_processors(num_sharing)
    assert chosen == num_threads, "whoever sets it knows better"


def test_free_memory_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def num_kv_tokens(num_replicas: int, free: int) -> int:
        monkeypatch.setattr("pluribus.rank_worker.free_memory", lambda device: free)
        parts = parts_of(
            0, f"parallel.replicas={num_replicas}", "batcher.max_batch_size=999", "device=cpu"
        )
        worker = rank_worker.start_rank(parts, lambda done, total: None, Seat())
        return worker.kv_shape.num_tokens

    threads = torch.get_num_threads()
    try:
        assert num_kv_tokens(2, 1_000_000_000) == num_kv_tokens(1, 500_000_000)
    finally:
        torch.set_num_threads(threads)


def test_a_script_may_have_several_and_gets_the_same_answers() -> None:
    with Engine("device=cpu") as engine:
        expected = [answer.tokens for answer in engine.generate(PROMPTS, GREEDY)]
    with Engine("parallel.replicas=2", "cache.kv.memory=64MiB", "device=cpu") as engine:
        assert len(psutil.Process().children()) == 2
        assert [answer.tokens for answer in engine.generate(PROMPTS, GREEDY)] == expected
        done = [replica.readings.num_prompt_tokens for replica in engine.service.fleet.replicas]
        assert all(done), "both have worked"
    assert not psutil.Process().children()


def test_a_script_is_told_of_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match="needs CUDA device"):
        Engine("parallel.replicas=2", "device=cuda")
    assert not psutil.Process().children()


def test_bench_measures_one_engine() -> None:
    config = composition.load("bench", ["parallel.replicas=2"])
    with pytest.raises(ConfigError, match=r"parallel.replicas=2: bench measures one engine"):
        BenchEngine(config, discover())
