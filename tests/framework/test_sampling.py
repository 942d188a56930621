"""Tokens come up as often as their probabilities say, and depend on nothing but their row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from framework.chances import NUM_DRAWS, NUM_IDS, OPTIONS, Options, assert_fits, some_logits
from pluribus.sampling import (
    Biases,
    History,
    Penalties,
    SamplingRows,
    add_biases,
    choose,
    cut,
    free,
    greedy,
    logprobs,
    penalize,
    ranked,
)
from pluribus.sampling.blocks import BLOCK, top
from pluribus.sampling.noise import exponential


def by(variable: str) -> tuple[Tensor, Tensor]:
    """Return seeds and positions, of which one varies."""
    numbers, same = torch.arange(NUM_DRAWS), torch.full((NUM_DRAWS,), 5)
    return (numbers, same) if variable == "seed" else (same, numbers + 1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("variable", ["seed", "position"])
def test_frequencies_fit_the_exact_probabilities(options: Options, variable: str) -> None:
    logits = some_logits()
    tokens = options.sample(logits.expand(NUM_DRAWS, -1), *by(variable))
    assert_fits(tokens, options.exact(logits))


def test_frequencies_fit_over_many_blocks() -> None:
    logits = some_logits(5000) * 2
    tokens = free(logits.expand(8000, -1), Options().rows(torch.arange(8000), torch.arange(8000)))
    assert_fits(tokens, logits.softmax(-1))


def test_neighbouring_seeds_and_positions_are_independent() -> None:
    """The joint frequencies of two draws are the product of their own."""
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    exact = logits.softmax(-1)
    seeds, position = by("seed")
    first = Options().sample(logits.expand(NUM_DRAWS, -1), seeds, position)
    for other in (
        Options().sample(logits.expand(NUM_DRAWS, -1), seeds, position + 1),
        first.roll(1),
    ):
        assert_fits(first * 4 + other, (exact[:, None] * exact[None]).flatten())


def test_noise_is_independent_from_draw_to_draw_and_id_to_id() -> None:
    seed, position = torch.arange(20_000), torch.full((20_000,), 3)
    columns = torch.cat(
        [exponential(seed, position, draw, torch.arange(4)) for draw in (0, 1, 2)], dim=1
    )
    assert (columns > 0).all()
    assert columns.isfinite().all()
    torch.testing.assert_close(columns.mean(0), torch.ones(12), atol=0.04, rtol=0)
    torch.testing.assert_close(columns.T.cov(), torch.eye(12), atol=0.06, rtol=0)


@pytest.mark.parametrize(
    "options", [Options(top_k=1), Options(top_p=1e-6), Options(min_p=1.0), Options(1e-30)]
)
def test_the_narrowest_choice_is_the_likeliest(options: Options) -> None:
    logits = torch.randn(50, NUM_IDS)
    tokens = options.sample(logits, torch.arange(50), torch.arange(50))
    assert tokens.equal(logits.argmax(-1))


@pytest.mark.parametrize("name", ["top_p", "top_k"])
def test_of_equal_logits_the_lower_ids_are_kept(name: str) -> None:
    options = Options(top_p=0.4975) if name == "top_p" else Options(top_k=NUM_IDS // 2)
    tokens = options.sample(torch.zeros(NUM_DRAWS, NUM_IDS), *by("seed"))
    kept = torch.arange(NUM_IDS) < NUM_IDS // 2
    assert_fits(tokens, kept / kept.sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_half_precision_logits_give_what_they_give_in_single(
    options: Options, dtype: torch.dtype
) -> None:
    logits = (torch.randn(5000, NUM_IDS) * 2).to(dtype)
    seed = torch.arange(5000)
    assert options.sample(logits, seed, seed).equal(options.sample(logits.float(), seed, seed))
    assert greedy(logits).equal(greedy(logits.float()))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_ruled_out_never_comes_up(options: Options) -> None:
    logits = torch.full((2000, NUM_IDS), -torch.inf)
    logits[:, [3, 70, NUM_IDS - 1]] = torch.tensor([1e4, 1e4 - 1, 1e4 + 1])
    tokens = options.sample(logits, torch.arange(2000), torch.arange(2000))
    assert set(tokens.tolist()) <= {3, 70, NUM_IDS - 1}


row_options = st.builds(
    Options,
    temperature=st.sampled_from([1e-30, 0.5, 1.0, 2.0]),
    top_k=st.just(0),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
)
keys = st.tuples(st.integers(0, 2**63 - 1), st.integers(1, 5000))


@settings(deadline=None)
@given(st.lists(st.tuples(row_options, keys), min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_row_is_chosen_as_if_it_were_alone(
    wanted: list[tuple[Options, tuple[int, int]]], seed: int
) -> None:
    logits = torch.randn(len(wanted), NUM_IDS, generator=torch.Generator().manual_seed(seed))
    single = [one.rows(torch.tensor([s]), torch.tensor([p])) for one, (s, p) in wanted]
    together = SamplingRows(
        **{key: torch.cat([getattr(one, key) for one in single]) for key in FIELDS}
    )
    alone = torch.cat([cut(logits[i : i + 1], one) for i, one in enumerate(single)])
    assert cut(logits, together).equal(alone)
    for i, (one, _) in enumerate(wanted):
        if (one.top_p, one.min_p) == (1.0, 0.0):
            assert free(logits[i : i + 1], single[i]).equal(alone[i : i + 1])


FIELDS = ("temperature", "top_k", "top_p", "min_p", "seed", "position")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pieces_and_a_wider_ranking_change_nothing(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, seed = torch.randn(100, NUM_IDS), torch.arange(100)
    whole = options.sample(logits, seed, seed)
    monkeypatch.setattr(choose, "PIECE", 7 * NUM_IDS)
    assert options.sample(logits, seed, seed).equal(whole)
    if options.top_k:
        assert ranked(logits, options.rows(seed, seed), NUM_IDS).equal(whole)


few_values = st.sampled_from([-torch.inf, -1.5, -0.0, 0.5, 2.0])


@given(st.lists(few_values, min_size=1, max_size=300), st.integers(0, 300))
@example([0.5] * (4 * BLOCK) + [2.0], 2)
@example([-1.5] * 10 + [0.5] + [-1.5] * 189 + [2.0] + [0.5] * 99, 2)
def test_the_top_is_the_beginning_of_a_stable_sort(values: list[float], count: int) -> None:
    logits = torch.tensor([values, values[::-1]])
    count = min(count, len(values))
    order = logits.sort(dim=-1, descending=True, stable=True)
    found, ids = top(logits, count)
    assert found.equal(order.values[:, :count])
    assert ids.equal(order.indices[:, :count])
    assert greedy(logits).equal(order.indices[:, 0])


# What changes the logits.

histories = st.lists(st.integers(0, 9), min_size=1, max_size=12)
penalty_values = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 2.0])


@given(
    histories,
    st.integers(0, 12),
    st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    penalty_values,
    penalty_values,
    st.lists(st.integers(0, 9), max_size=4),
)
def test_penalties_are_transformers_and_their_formulas(
    text: list[int],
    num_prompt: int,
    repetition: float,
    presence: float,
    frequency: float,
    garbage: list[int],
) -> None:
    num_prompt = max(1, min(num_prompt, len(text)))
    logits = some_logits(10)
    ids: Any = torch.tensor([text])
    expected = RepetitionPenaltyLogitsProcessor(repetition)(ids, logits[None].clone())[0]
    for id_ in range(10):
        times = text[num_prompt:].count(id_)
        expected[id_] -= frequency * times + presence * (times > 0)
    changed = torch.stack([logits, logits])
    history = History(
        tokens=torch.tensor([text + garbage] * 2),
        prompt_length=torch.tensor([num_prompt, num_prompt]),
        position=torch.tensor([len(text), len(text)]),
    )
    penalties = Penalties(
        repetition=torch.tensor([repetition, 1.0]),
        presence=torch.tensor([presence, 0.0]),
        frequency=torch.tensor([frequency, 0.0]),
    )
    penalize(changed, history, penalties)
    torch.testing.assert_close(changed, torch.stack([expected, logits]))


def test_penalised_and_filtered_frequencies_fit() -> None:
    logits = some_logits()
    options = OPTIONS["everything"]
    text = logits.topk(4).indices.tolist() * 2 + [7]
    changed = logits[None].clone()
    history = History(torch.tensor([text]), torch.tensor([5]), torch.tensor([9]))
    weights = (torch.tensor([1.4]), torch.tensor([0.3]), torch.tensor([0.2]))
    penalize(changed, history, Penalties(*weights))
    ids: Any = torch.tensor([text])
    expected = RepetitionPenaltyLogitsProcessor(1.4)(ids, logits[None].clone())[0]
    for id_ in text[5:]:
        expected[id_] -= 0.3 + 0.2
    tokens = options.sample(changed.expand(NUM_DRAWS, -1), *by("seed"))
    assert_fits(tokens, options.exact(expected))


def test_biases_add_and_bans_end() -> None:
    logits = torch.zeros(2, 5)
    bias = Biases(
        ids=torch.tensor([[1, 1, 3, 0]]).expand(2, -1),
        values=torch.tensor([[2.0, 0.5, -torch.inf, 0.0]]).expand(2, -1),
        until=torch.tensor([[99, 99, 10, 0]]).expand(2, -1),
    )
    add_biases(logits, torch.tensor([9, 10]), bias)
    inf = torch.inf
    assert logits.tolist() == [[0, 2.5, 0, -inf, 0], [0, 2.5, 0, 0, 0]]


def test_biased_frequencies_fit() -> None:
    logits = some_logits()
    expected, changed = logits.clone(), logits[None].clone()
    expected[[4, 9]] += torch.tensor([3.0, -2.0])
    bias = Biases(torch.tensor([[4, 9]]), torch.tensor([[3.0, -2.0]]), torch.tensor([[9, 9]]))
    add_biases(changed, torch.tensor([1]), bias)
    tokens = OPTIONS["top-p"].sample(changed.expand(NUM_DRAWS, -1), *by("seed"))
    assert_fits(tokens, OPTIONS["top-p"].exact(expected))


@pytest.mark.parametrize("count", [0, 1, 5, NUM_IDS])
def test_logprobs_are_those_of_log_softmax(count: int) -> None:
    logits = torch.randn(3, NUM_IDS)
    tokens = torch.tensor([4, 0, NUM_IDS - 1])
    exact = logits.log_softmax(-1)
    first, second, third = logprobs(logits, tokens, count).read([count, 0, count])
    for row, line, token in zip((first, second, third), exact, tokens.tolist(), strict=True):
        assert (row.token, row.logprob) == (token, line[token].item())
    for row, line in ((first, exact[0]), (third, exact[2])):
        values, ids = line.topk(count)
        assert row.top == tuple(zip(ids.tolist(), values.tolist(), strict=True))
    assert second.top == ()
