"""Blocks that pass from one to the next while steps run ahead, several passes each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import pytest

from gpu.stages import NUM_LAYERS, CudaStages
from gpu.tiny import GREEDY, NUM_SLOTS, PROMPT, TinyWorker, alone, cpu_worker, engine, small_sizes
from pluribus import Generation
from pluribus.interfaces import Executor
from pluribus.kernels.passes import NUM_ENDS
from pluribus_caches.kv import timetable

NUM_TOKENS = 88
"""Of the KV cache: less than half of what the crowd comes to at once."""
ENDS = tuple(range(3, 60, 3))
"""More than a device knows: it goes on after some of them, in blocks that are given back."""


def uneven() -> list[Generation]:
    """Return long answers among short ones to long prompts, some of which end early."""
    chance = Random(20)
    crowd = []
    for number in range(16):
        is_long = chance.random() < 0.4
        length = chance.randint(1, 6 if is_long else 20)
        params = replace(
            GREEDY,
            max_tokens=chance.randint(14, 26) if is_long else chance.randint(1, 3),
            stop_token_ids=chance.choice([(), ENDS]),
            seed=0,
        )
        prompt = (*(2 * PROMPT)[:length], number + 3)
        crowd.append(Generation(id=number, prompt=prompt, params=params))
    return crowd


@pytest.mark.parametrize(
    ("make", "num_stages", "lookahead"),
    [
        pytest.param(partial(TinyWorker, 1, NUM_LAYERS), 1, 1, id="one pass"),
        pytest.param(partial(TinyWorker, 8, NUM_LAYERS), 1, 0, id="eight passes"),
        pytest.param(partial(TinyWorker, 8, NUM_LAYERS), 1, 1, id="eight passes, ahead"),
        pytest.param(partial(CudaStages, 2), 2, 1, id="two stages"),
    ],
)
def test_answers_are_those_of_each_alone_though_some_wait_for_blocks(
    make: Callable[[], Executor],
    num_stages: int,
    lookahead: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(ENDS) > NUM_ENDS
    monkeypatch.setattr(timetable, "BLOCKS_LATE", 0)  # so that everybody who can be late is
    lone, members = cpu_worker(NUM_LAYERS), uneven()
    expected = [alone(lone, member) for member in members]
    core = engine(
        make(),
        lookahead=lookahead,
        max_batch_tokens=NUM_SLOTS,
        num_parts=num_stages,
        num_tokens=NUM_TOKENS,
    )
    num_waits = 0
    with small_sizes():
        for member in members:
            core.add(member)
        while core.has_work:
            core.step()
            core.ledger.check_integrity()
            limits = core.ledger.limits.items()
            num_waits += any(member.num_scheduled >= limit for member, limit in limits)
    for ours, theirs in zip(members, expected, strict=True):
        assert (ours.tokens, ours.finish_reason) == (theirs.tokens, theirs.finish_reason)
    assert num_waits, "nobody had to wait"
    assert core.ledger.num_used_tokens == 0
