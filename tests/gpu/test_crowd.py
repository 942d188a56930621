"""Whoever comes, leaves or is sent away, answers are right and nothing is left in the ledger.

``PLURIBUS_FUZZ_STEPS`` says how many steps are run on each device, ``PLURIBUS_FUZZ_SEED`` what
happens in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from gpu.crowd import Crowd
from gpu.tiny import TinyWorker, cpu_worker, small_sizes
from pluribus.worker import Worker

NUM_STEPS = int(os.environ.get("PLURIBUS_FUZZ_STEPS", "4000"))
SEED = int(os.environ.get("PLURIBUS_FUZZ_SEED", "0"))
STEPS_OF_A_CROWD = 400
"""Then another one comes, to an engine with other settings."""


@pytest.mark.timeout(max(300, NUM_STEPS))
@pytest.mark.parametrize(
    "make_worker",
    [
        pytest.param(cpu_worker, id="cpu"),
        pytest.param(TinyWorker, id="cuda", marks=pytest.mark.gpu),
    ],
)
def test_a_crowd_leaves_nothing_behind(make_worker: Callable[[], Worker]) -> None:
    num_finished = num_cancelled = 0
    with small_sizes():
        for number in range(max(1, NUM_STEPS // STEPS_OF_A_CROWD)):
            crowd = Crowd(make_worker, SEED + number)
            crowd.run(min(NUM_STEPS, STEPS_OF_A_CROWD))
            num_finished += crowd.num_finished
            num_cancelled += crowd.num_cancelled
    assert num_finished > NUM_STEPS // 30
    assert num_cancelled > NUM_STEPS // 50
