"""Generations come, are cancelled and end at random, with steps under way."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

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
    run_while,
    small_sizes,
)
from pluribus import Generation, SamplingParams

arrivals = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(1, 9),
        st.integers(1, 5),
        st.sampled_from([(), tuple(range(3, 60, 5)), tuple(range(4, 60, 3))]),
        st.sampled_from([None, None, None, 0, 1, 2, 3]),
        st.booleans(),
    ),
    min_size=2,
    max_size=7,
)


@settings(max_examples=6, deadline=None)
@given(arrivals, st.sampled_from([1, 2, 4]), st.integers(0, 1))
def test_joins_cancels_and_ends_leave_everybody_else_alone(
    arriving: list[tuple[int, int, int, tuple[int, ...], int | None, bool]],
    passes: int,
    lookahead: int,
) -> None:
    worker = busy_worker()
    worker.passes = passes
    core = engine(worker, lookahead=lookahead)
    generations: list[Generation] = []
    cancels: list[tuple[int, Generation]] = []
    for delay, length, max_tokens, stops, cancel_after, is_seeded in arriving:
        params = replace(
            SEEDED if is_seeded else GREEDY,
            max_tokens=max_tokens,
            stop_token_ids=stops,
            seed=length,
            frequency_penalty=0.7 if length == 9 else 0.0,
        )
        generation = ask(len(generations), PROMPT[:length], params)
        generations.append(generation)
        with small_sizes():
            core.add(generation)
            if cancel_after is not None:
                cancels.append((core.num_steps + cancel_after, generation))
            until = core.num_steps + delay
            run_while(core, lambda until=until: core.has_work and core.num_steps < until)  # type: ignore[misc]
        for due, gone in list(cancels):
            if core.num_steps >= due:
                cancels.remove((due, gone))
                if gone.finish_reason is None:
                    core.finish(gone)
    run(core, [])
    assert not core.ledger.num_used_tokens
    for generation in generations:
        theirs = on_cpu(generation.prompt, generation.params)
        if generation.finish_reason is not None:
            assert_same(generation, theirs)
        else:
            assert generation.tokens == theirs.tokens[: len(generation.tokens)]


@cache
def busy_worker() -> TinyWorker:
    """Return a worker that keeps what every example leaves in its slots."""
    return TinyWorker()


@cache
def on_cpu(prompt: tuple[int, ...], params: SamplingParams) -> Generation:
    return alone(cpu_worker(), ask(0, prompt, params))
