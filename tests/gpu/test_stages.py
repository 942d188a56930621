"""Stages that replay their part of a pass give what a CPU's worker gives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from gpu.stages import NUM_LAYERS, CudaStages
from gpu.test_worker import MIXTURE, RANKED
from gpu.tiny import (
    GREEDY,
    PROMPT,
    SEEDED,
    TinyWorker,
    alone,
    ask,
    assert_same,
    cpu_worker,
    engine,
    run,
)
from pluribus import Generation, SamplingParams
from pluribus.cuda.graphs import Graphs

KINDS = {**MIXTURE, **RANKED}


def asked() -> list[Generation]:
    """Return a generation of each kind; some end early, so that others take their slots."""
    return [
        ask(number, PROMPT[: 1 + number * 5 % len(PROMPT)], params)
        for number, params in enumerate(KINDS.values())
    ]


@cache
def expected() -> list[Generation]:
    """What each is alone: on a CPU, but for what kernels choose in their own way."""
    cpu, cuda = cpu_worker(NUM_LAYERS), TinyWorker(num_layers=NUM_LAYERS)
    return [
        alone(cuda if kind in RANKED else cpu, generation)
        for kind, generation in zip(KINDS, asked(), strict=True)
    ]


@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize(("num_parts", "lookahead"), [(1, 0), (3, 1)], ids=["plain", "ahead"])
def test_stages_are_as_one_rank(num_stages: int, num_parts: int, lookahead: int) -> None:
    generations = asked()
    stages = CudaStages(num_stages)
    core = engine(stages, lookahead=lookahead, num_parts=num_parts)
    run(core, generations)
    for generation, kind, wanted in zip(generations, KINDS, expected(), strict=True):
        assert generation.finish_reason is not None, kind
        assert_same(generation, wanted)
    assert all(link.is_empty for link in stages.links)


def test_a_pass_that_decodes_is_replayed_on_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = CudaStages(3)
    replayed: list[int] = []
    replay = Graphs.replay

    def note(graphs: Graphs[int], size: int, times: int = 1) -> None:
        replayed.append(size)
        replay(graphs, size, times)

    monkeypatch.setattr(Graphs, "replay", note)
    generations = [ask(number, PROMPT[:3], GREEDY) for number in range(2)]
    generations.append(ask(2, PROMPT[:4], replace(SEEDED, top_k=5, top_p=0.9)))
    run(engine(stages, max_batch_tokens=64), generations)
    # Prompts give each its first token; three rows run in a pass of four.
    assert replayed[:3] == [4, 4, 4]
    num_passes = len(replayed) // 3
    assert num_passes == GREEDY.max_tokens - 1


def test_what_cannot_be_replayed_is_launched_and_the_rest_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replayed: list[object] = []
    monkeypatch.setattr(Graphs, "replay", lambda graphs, key, times=1: replayed.append(key))
    core = engine(CudaStages(2))
    core.add(ask(0, PROMPT[:2], GREEDY))
    core.add(ask(1, PROMPT[:2], replace(GREEDY, frequency_penalty=0.4)))
    run(core, [])
    assert core.num_steps == GREEDY.max_tokens
    assert not replayed


def test_results_that_are_read_late_are_those_of_their_step() -> None:
    """Two steps are under way while a third is read: no buffer is shared between them."""
    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    generations = [ask(number, PROMPT[number : number + 4], params) for number in range(4)]
    run(engine(CudaStages(2), lookahead=2, num_parts=2), generations)
    cpu = cpu_worker(NUM_LAYERS)
    for generation in generations:
        assert_same(generation, alone(cpu, generation))


def test_rows_that_pad_do_not_go_round() -> None:
    stages = CudaStages(3)
    run(engine(stages), [ask(number, PROMPT[:2], GREEDY) for number in range(3)])
    for worker in stages.workers:
        received = worker._decoding._received
        assert not received[3:].any(), "nobody has sent more than three rows"
    assert stages.workers[1]._decoding._received[:3].any()


def test_what_is_rehearsed_does_no_harm_where_it_is_run() -> None:
    generation = asked()[0]
    stages = CudaStages(2)
    with torch.inference_mode():
        for worker in stages.workers:
            for rehearse in worker._decoding.runs():
                rehearse()
    run(engine(stages), [generation])
    assert_same(generation, expected()[0])
