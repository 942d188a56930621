"""The CUDA worker, where Triton's kernels run, gives what a CPU's worker gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gpu.tiny import (
    GREEDY,
    NUM_SLOTS,
    PROMPT,
    SEEDED,
    SHAPE,
    TinyWorker,
    alone,
    ask,
    assert_same,
    cpu_worker,
    engine,
    run,
    small_sizes,
)
from kernels.device import DEVICE
from pluribus import FinishReason, Generation, SamplingParams
from pluribus.cuda.arrival import Arrival
from pluribus.cuda.decoding import Decoding
from pluribus.cuda.graphs import Graphs
from pluribus.cuda.prefilling import Work
from pluribus.cuda.worker import CudaWorker
from pluribus.step import Row
from pluribus_caches.kv.cuda_store import CudaPagedStore

MIXTURE = {
    "greedy": GREEDY,
    "seeded": SEEDED,
    "hot": replace(SEEDED, temperature=2.0, seed=2**63 - 1),
    "coldest": replace(GREEDY, temperature=1e-40),
    "top-k of one": replace(SEEDED, top_k=1),
    "top-p": replace(SEEDED, top_p=0.6),
    "min-p": replace(SEEDED, top_p=0.9, min_p=0.05),
    "penalties": replace(
        GREEDY, repetition_penalty=1.7, presence_penalty=0.5, frequency_penalty=0.4
    ),
    "penalised noise": replace(SEEDED, frequency_penalty=1.5, top_p=0.8),
    "bias": replace(SEEDED, logit_bias=((17, 4.0), (3, -100.0), (59, 2.0), (63, 90.0))),
    "min-tokens": replace(GREEDY, min_tokens=4, stop_token_ids=tuple(range(3, 60))),
    "logprobs": replace(SEEDED, logprobs=2),
    "prompt": replace(GREEDY, prompt_logprobs=1, max_tokens=3),
    "prompt alone": replace(GREEDY, prompt_logprobs=0, max_tokens=0),
    "stop ids": replace(SEEDED, stop_token_ids=tuple(range(3, 60, 4)), max_tokens=12),
    "one token": replace(GREEDY, max_tokens=1),
    "least top-p": replace(SEEDED, top_p=1e-320),
    "least penalty": replace(SEEDED, repetition_penalty=1e-40, temperature=1e-40, top_p=0.5),
}
RANKED = {
    "top-k": replace(SEEDED, top_k=4),
    "top-k and top-p": replace(SEEDED, top_k=6, top_p=0.7, max_tokens=2),
}


def asked() -> list[Generation]:
    """Return a generation of each kind, prompts of 1 to 11 tokens, some beginning alike."""
    kinds = {**MIXTURE, **RANKED}
    return [
        ask(number, PROMPT[: 1 + number * 5 % len(PROMPT)], params)
        for number, params in enumerate(kinds.values())
    ]


@pytest.fixture(scope="module")
def expected() -> list[Generation]:
    """What each is when it is alone: on a CPU, but for what kernels choose in their own way."""
    cpu, cuda = cpu_worker(), TinyWorker()
    return [
        alone(cuda if number >= len(MIXTURE) else cpu, generation)
        for number, generation in enumerate(asked())
    ]


def test_what_decodes_beside_a_prompt_runs_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = Decoding.run

    def note(decoding: Decoding, rows: Sequence[Row], passes: int = 1) -> Any:
        decoded.append(len(rows))
        return decode(decoding, rows, passes)

    monkeypatch.setattr(Decoding, "run", note)
    core = engine(TinyWorker())
    first, second = ask(0, PROMPT[:3], GREEDY), ask(1, PROMPT[:5], SEEDED)
    core.add(first)
    core.step()
    core.step()
    assert decoded == [1]
    core.add(second)
    core.step()
    assert decoded == [1]
    core.step()
    assert decoded == [1, 2]
    run(core, [])
    for generation in (first, second):
        assert_same(generation, alone(cpu_worker(), generation))


@pytest.mark.parametrize(("passes", "lookahead"), [(1, 0), (4, 1)], ids=["plain", "ahead"])
def test_whatever_shares_a_step_each_gets_what_it_gets_alone(
    passes: int, lookahead: int, expected: list[Generation]
) -> None:
    generations = asked()
    run(engine(TinyWorker(passes), lookahead=lookahead), generations)
    for generation, kind, wanted in zip(generations, [*MIXTURE, *RANKED], expected, strict=True):
        assert generation.finish_reason is not None, kind
        assert_same(generation, wanted)


def test_only_prompts_that_are_scored_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else a row asks for, its layers are replayed with everybody's."""
    launched: list[Row] = []
    launch = CudaWorker._run

    def note(worker: CudaWorker, rows: Sequence[Row]) -> Any:
        launched.extend(rows)
        return launch(worker, rows)

    monkeypatch.setattr(CudaWorker, "_run", note)
    run(engine(TinyWorker(4), lookahead=1), asked())
    assert launched
    assert all(row.scores for row in launched)


def test_special_rows_share_their_passes_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[int] = []
    replay = Graphs.replay

    def note(graphs: Graphs[Any], key: int, times: int = 1) -> None:
        replayed.append(key)
        replay(graphs, key, times)

    monkeypatch.setattr(Graphs, "replay", note)
    worker = TinyWorker()
    core = engine(worker)
    kinds = ("penalties", "greedy", "logprobs", "seeded")
    generations = [ask(n, PROMPT[:1], MIXTURE[kind]) for n, kind in enumerate(kinds)]
    with small_sizes():
        for generation in generations:
            core.add(generation)
        core.step()
        del replayed[:]
        core.step()
    assert replayed == [4]
    run(core, [])
    for generation in generations:
        assert_same(generation, alone(cpu_worker(), generation))


def test_who_has_its_prompt_scored_decodes_like_anybody_else() -> None:
    core = engine(worker := TinyWorker(4), lookahead=1)
    generations = [
        ask(0, PROMPT[:5], replace(GREEDY, prompt_logprobs=1)),
        ask(1, PROMPT[:1], replace(SEEDED, prompt_logprobs=0)),
        ask(2, PROMPT[:3], SEEDED),
    ]
    run(core, generations)
    assert not worker._decoding._layers._replays
    assert core.num_steps < 8
    for generation in generations:
        assert_same(generation, alone(cpu_worker(), generation))


def test_the_mixture_ends_in_every_way(expected: list[Generation]) -> None:
    ends = dict(zip([*MIXTURE, *RANKED], expected, strict=True))
    reasons = {name: generation.finish_reason for name, generation in ends.items()}
    assert {"min-tokens", "stop ids"} == {
        name for name, reason in reasons.items() if reason is FinishReason.STOP
    }
    assert len(ends["min-tokens"].tokens) >= 4
    assert 1 <= len(ends["stop ids"].tokens) < 12
    assert len(ends["logprobs"].logprobs) == 6
    assert ends["prompt"].prompt_logprobs


def test_an_answer_repeats_exactly() -> None:
    worker = TinyWorker(4)
    first, second = (
        alone(worker, ask(number, PROMPT, replace(SEEDED, seed=7))) for number in (1, 2)
    )
    assert first.tokens == second.tokens
    assert alone(worker, ask(3, PROMPT, replace(SEEDED, seed=8))).tokens != first.tokens


@pytest.mark.parametrize("max_batch_tokens", [6, 16, 40], ids=["cut", "captured", "launched"])
def test_a_long_prompt_is_what_it_is_in_one_piece(max_batch_tokens: int) -> None:
    prompts = [[2, *range(3, 3 + length)] for length in (19, 13)]
    generations = [
        ask(number, prompt, replace(GREEDY, max_tokens=4)) for number, prompt in enumerate(prompts)
    ]
    run(engine(TinyWorker(4), lookahead=1, max_batch_tokens=max_batch_tokens), generations)
    for generation in generations:
        assert_same(generation, alone(cpu_worker(), generation))


def test_few_prompts_leave_alone_who_was_prefilled_among_many() -> None:
    """Sampling runs for more rows than the prompts have tokens: the rest must be nobody's."""
    core = engine(TinyWorker(), max_batch_tokens=16)
    first = [
        ask(number, PROMPT[number : number + 3], replace(GREEDY, max_tokens=1 if number < 2 else 6))
        for number in range(NUM_SLOTS)
    ]
    later = [ask(number, [2, number], GREEDY) for number in (10, 11)]
    with small_sizes():
        for generation in first:
            core.add(generation)
        core.step()
        assert all(len(generation.tokens) == 1 for generation in first)
    run(core, later)
    for generation in (*first, *later):
        assert_same(generation, alone(cpu_worker(), generation))


def test_a_chunk_of_a_prompt_is_waited_for_like_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Arrival] = []
    wait = Arrival.wait

    def note(arrival: Arrival) -> None:
        waits.append(arrival)
        wait(arrival)

    monkeypatch.setattr(Arrival, "wait", note)
    core = engine(TinyWorker())
    core.add(ask(1, PROMPT, GREEDY))
    with small_sizes():
        assert core.step() == []
    assert len(waits) == 1
    run(core, [])


def watch_captures(worker: TinyWorker, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what is captured from now on, by key; no text's keys and values may change by it."""
    captured: list[Any] = []
    capture = Graphs.capture
    store = worker.store
    assert isinstance(store, CudaPagedStore)
    texts = store._pool[..., : SHAPE.num_tokens, :]

    def watch(graphs: Graphs[Any], key: Any) -> None:
        before = texts.clone()
        if DEVICE.type == "cpu":
            graphs._run(key)  # as capturing a graph does
        capture(graphs, key)
        assert texts.equal(before), f"capturing {key} has written into somebody's text"
        captured.append(key)

    monkeypatch.setattr(Graphs, "capture", watch)
    return captured


def test_a_prompt_that_is_captured_on_demand_runs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine(worker := TinyWorker(), max_batch_tokens=16)
    captured = watch_captures(worker, monkeypatch)
    first = ask(1, PROMPT[:8], replace(GREEDY, max_tokens=12))
    second = ask(2, range(3, 15), GREEDY)
    with small_sizes():
        core.add(first)
        core.step()
    run(core, [second])
    assert captured == [Work(16, is_mixed=True)]
    for generation in (first, second):
        assert_same(generation, alone(cpu_worker(), generation))


def test_layers_that_are_captured_on_demand_run_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose slots the last pass had are gone by then, and their blocks are another's."""
    core = engine(worker := TinyWorker(), max_batch_tokens=16, num_tokens=32)
    captured = watch_captures(worker, monkeypatch)
    gone = [ask(number, PROMPT[:8], replace(GREEDY, max_tokens=8)) for number in range(2)]
    with small_sizes():
        for generation in gone:
            core.add(generation)
        for _ in range(4):
            core.step()
        for generation in gone:
            core.finish(generation)
    special = ask(2, range(3, 30), replace(GREEDY, max_tokens=4, frequency_penalty=0.4))
    run(core, [special])
    assert 1 in captured
    assert_same(special, alone(cpu_worker(), special))


@pytest.mark.parametrize(
    "params",
    [
        replace(SEEDED, top_k=5, top_p=0.9, max_tokens=4),
        replace(MIXTURE["penalties"], max_tokens=4, logprobs=1),
    ],
    ids=["ranked", "special"],
)
def test_what_is_captured_on_demand_runs_nobody(
    monkeypatch: pytest.MonkeyPatch, params: SamplingParams
) -> None:
    worker = TinyWorker()
    watch_captures(worker, monkeypatch)
    run(core := engine(worker), generations := [ask(1, PROMPT[:3], params), ask(2, [2], GREEDY)])
    assert core.num_steps == 7
    for generation in generations:
        assert_same(alone(worker, generation), generation)
    assert_same(generations[1], alone(cpu_worker(), generations[1]))


def test_who_follows_a_special_row_in_its_slot_is_as_anybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = TinyWorker()
    core = engine(worker)
    run(core, [ask(1, PROMPT[:3], MIXTURE["penalties"])])
    replayed: list[Graphs[Any]] = []
    replay = Graphs.replay

    def note(graphs: Graphs[Any], key: Any, times: int = 1) -> None:
        replayed.append(graphs)
        replay(graphs, key, times)

    monkeypatch.setattr(Graphs, "replay", note)
    run(core, [ask(2, PROMPT[:3], GREEDY)])
    assert replayed
    assert worker._decoding._layers not in replayed
