"""Tokens come up as often as their probabilities say, and depend on nothing but their row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pluribus import sampling
from pluribus.sampling import SamplingRows, sample


def rows(
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    position: int = 5,
) -> SamplingRows:
    return SamplingRows(
        temperature=torch.full((count,), temperature),
        top_k=torch.full((count,), top_k),
        top_p=torch.full((count,), top_p),
        seed=torch.arange(count) if seed is None else torch.full((count,), seed),
        position=torch.full((count,), position),
    )


def exact_probabilities(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """What transformers would sample from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    no_ids: Any = torch.zeros(1, 1, dtype=torch.int64)
    warped: Tensor = warpers(no_ids, logits[None].clone())
    return warped.softmax(-1)[0]


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Return the statistic over its degrees of freedom; about 1 when the counts fit."""
    expected = probabilities * counts.sum()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    return float(statistic / (int(kept.sum()) - 1))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (1.3, 12, 0.9), (2.0, 3, 0.5)],
)
@pytest.mark.parametrize("by", ["seed", "position"])
def test_frequencies_fit_the_exact_probabilities(
    temperature: float, top_k: int, top_p: float, by: str
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(40) * 2
    count = 60_000
    chosen = rows(count, temperature=temperature, top_k=top_k, top_p=top_p)
    if by == "position":
        numbers = torch.arange(count)
        chosen = SamplingRows(
            chosen.temperature, chosen.top_k, chosen.top_p, torch.full((count,), 3), numbers
        )
    tokens = sample(logits.expand(count, -1), chosen)
    exact = exact_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert chi_square(torch.bincount(tokens, minlength=40).float(), exact) < 2.5


def test_neighbouring_seeds_and_positions_are_independent() -> None:
    """The joint frequencies of two draws are the product of their own."""
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    count = 40_000
    exact = logits.softmax(-1)
    first = sample(logits.expand(count, -1), rows(count, position=9))
    for other in (
        sample(logits.expand(count, -1), rows(count, position=10)),
        first.roll(1),
    ):
        joint = torch.bincount(first * 4 + other, minlength=16).float()
        assert chi_square(joint, (exact[:, None] * exact[None]).flatten()) < 2.5


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}])
def test_greedy_takes_the_likeliest(options: dict[str, float]) -> None:
    logits = torch.randn(16, 50)
    assert sample(logits, rows(16, **options)).equal(logits.argmax(-1))  # type: ignore[arg-type]


row_options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 2, 7, 90]),
        "top_p": st.sampled_from([0.1, 0.9, 1.0]),
        "seed": st.integers(0, 2**63 - 1),
        "position": st.integers(1, 5000),
    }
)


@settings(deadline=None, max_examples=60)
@given(st.lists(row_options, min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_row_is_chosen_as_if_it_were_alone(options: list[dict[str, float]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(options), 80, generator=generator)
    single = [rows(1, **one) for one in options]  # type: ignore[arg-type]
    fields = ("temperature", "top_k", "top_p", "seed", "position")
    together = SamplingRows(*(torch.cat([getattr(one, name) for one in single]) for name in fields))
    alone = [sample(logits[i : i + 1], one) for i, one in enumerate(single)]
    assert sample(logits, together).equal(torch.cat(alone))


def test_a_flat_distribution_is_searched_beyond_the_first_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", 4)
    count = 40_000
    logits = torch.linspace(0, 0.5, 40)
    tokens = sample(logits.expand(count, -1), rows(count, top_p=0.9))
    exact = exact_probabilities(logits, temperature=1.0, top_k=0, top_p=0.9)
    assert chi_square(torch.bincount(tokens, minlength=40).float(), exact) < 2.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled(dtype: torch.dtype) -> None:
    logits = torch.randn(8, 30, dtype=dtype)
    tokens = sample(logits, rows(8, top_p=0.9))
    assert ((tokens >= 0) & (tokens < 30)).all()
