"""What is planned is what is allocated: a rank is started for real and every tensor counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from framework.allocations import Allocations
from pluribus import ConfigError, assembly, composition, rank_worker
from pluribus.generation import SamplingParams
from pluribus.interfaces import Seat
from pluribus.plan.demand import Demand, demand
from pluribus.plugins import discover
from pluribus.step import Admission, Row, Step
from pluribus.worker import Worker
from pluribus_opt.decoder import OPTDecoder

SAMPLED = SamplingParams(
    temperature=0.9, top_p=0.9, max_tokens=500, seed=3, repetition_penalty=1.2, ignore_eos=True
)


def parts(*overrides: str) -> assembly.Parts:
    return assembly.assemble(composition.load("serve", [*overrides, "device=cpu"]), discover())


def start(chosen: assembly.Parts) -> Worker:
    worker = rank_worker.start_rank(chosen, lambda done, total: None, Seat())
    return cast(Worker, worker)


def needs(chosen: assembly.Parts) -> Demand:
    return demand(chosen.outline, 0, "cpu")


def tensors_of(thing: object) -> int:
    """Return the bytes of the tensors that an object itself holds, views not counted again."""
    storages: dict[int, Any] = {}
    for value in vars(thing).values():
        if isinstance(value, torch.Tensor):
            storages[id(value.untyped_storage())] = value.untyped_storage()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("cache", ["paged", "contiguous"])
@pytest.mark.parametrize("memory", ["20MiB", "33333333B"])
def test_keys_and_values_take_what_is_planned(cache: str, memory: str) -> None:
    batcher = "bucket" if cache == "contiguous" else "continuous"
    chosen = parts(f"cache/kv={cache}", f"batcher={batcher}", f"cache.kv.memory={memory}")
    worker = start(chosen)
    planned = chosen.kv_cache.capacity(worker.kv_shape) * needs(chosen).kv_bytes_per_token
    pool = cast(Any, worker.store)._pool
    assert pool.nbytes == planned
    assert planned <= 33_333_333


@pytest.mark.parametrize("weights", ["null", "int8"])
def test_weights_take_what_is_planned(weights: str) -> None:
    chosen = parts("cache.kv.memory=20MiB", f"model.weights={weights}")
    network = cast(OPTDecoder, start(chosen).network)
    held = sum(parameter.nbytes for parameter in network.parameters())
    assert network.head is not None
    assert network.head.tokens.packed is not None
    assert held + network.head.tokens.packed.nbytes == needs(chosen).weights


def test_a_rank_asks_its_own_device_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = parts("cache.kv.memory=20MiB")
    planned = needs(chosen)
    enough = planned.weights + planned.work + 20 * 2**20
    free = iter([enough, enough - planned.weights, enough - 2**21])
    monkeypatch.setattr(rank_worker, "free_memory", lambda device: next(free))
    start(chosen)
    said = r"opt-stories-14m does not fit: cache.kv.memory=20MiB is more than rank 0's device has"
    with pytest.raises(ConfigError, match=said):
        start(chosen)


def admission(slot: int, length: int, blocks: range) -> Admission:
    return Admission(
        slot=slot,
        prompt=(5,) * length,
        max_length=length + 4,
        params=replace(SAMPLED, seed=slot),
        ends=(),
        placement=tuple(blocks),
    )


def largest_steps(worker: Worker, num_texts: int, length: int) -> None:
    """Compute as many tokens as a step may, then sample in as many texts as there may be."""
    per_text = -(-(length + 4) // 16)
    admitted = tuple(
        admission(slot, length, range(slot * per_text, (slot + 1) * per_text))
        for slot in range(num_texts)
    )
    rows = tuple(Row(slot, 0, length, samples=True) for slot in range(num_texts))
    worker.submit(Step(0, (), admitted, rows))()
    rows = tuple(Row(slot, length, 1, samples=True) for slot in range(num_texts))
    worker.submit(Step(1, (), (), rows))()


@pytest.mark.parametrize(("num_texts", "length"), [(2, 1000), (64, 31)], ids=["long", "many"])
@pytest.mark.parametrize(
    ("dtype", "weights"),
    [("float32", "null"), ("bfloat16", "null"), ("float32", "int8"), ("bfloat16", "int8")],
)
def test_no_step_takes_more_work_space_than_is_planned(
    num_texts: int, length: int, dtype: str, weights: str
) -> None:
    settings = (f"dtype={dtype}", f"model.weights={weights}", "batcher.max_batch_tokens=2048")
    chosen = parts("cache.kv.memory=100MiB", *settings)
    planned = needs(chosen)
    worker = start(chosen)
    with Allocations() as allocations:
        largest_steps(worker, num_texts, length)
    assert allocations.peak <= planned.work - planned.slots
    assert allocations.peak >= planned.activations / 2
