"""Ways to choose tokens, the exact probabilities they give, and whether frequencies fit those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pluribus.sampling import SamplingRows, cut, free, ranked
from pluribus.sampling.blocks import BLOCK

NUM_IDS = 3 * BLOCK + 8
NUM_DRAWS = 30_000


@dataclass(frozen=True)
class Options:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def rows(self, seed: Tensor, position: Tensor) -> SamplingRows:
        def every(value: float) -> Tensor:
            return torch.full(seed.shape, value, dtype=torch.float32)

        return SamplingRows(
            temperature=every(self.temperature),
            top_k=torch.full(seed.shape, self.top_k),
            top_p=every(self.top_p),
            min_p=every(self.min_p),
            seed=seed,
            position=position,
        )

    def sample(self, logits: Tensor, seed: Tensor, position: Tensor) -> Tensor:
        rows = self.rows(seed, position)
        if self.top_k:
            return ranked(logits, rows, self.top_k)
        return cut(logits, rows) if self.top_p < 1 or self.min_p > 0 else free(logits, rows)

    def exact(self, logits: Tensor) -> Tensor:
        """What transformers would sample from."""
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0:
            warpers.append(MinPLogitsWarper(self.min_p))
        no_ids: Any = torch.zeros(1, 1, dtype=torch.int64)
        warped: Tensor = warpers(no_ids, logits[None].clone())
        return warped.softmax(-1)[0]


OPTIONS: Mapping[str, Options] = {
    "all": Options(),
    "cold": Options(temperature=0.6),
    "hot": Options(temperature=2.0),
    "top-k": Options(top_k=5),
    "top-k-of-many": Options(temperature=2.0, top_k=70),
    "top-p": Options(top_p=0.8),
    "top-p-small": Options(temperature=1.5, top_p=0.2),
    "top-p-flat": Options(temperature=4.0, top_p=0.9),
    "min-p": Options(min_p=0.1),
    "min-p-flat": Options(temperature=2.0, min_p=0.02),
    "top-k-top-p": Options(temperature=1.3, top_k=12, top_p=0.9),
    "top-k-min-p": Options(top_k=12, min_p=0.15),
    "top-p-min-p": Options(temperature=1.5, top_p=0.9, min_p=0.05),
    "everything": Options(temperature=1.5, top_k=20, top_p=0.9, min_p=0.05),
}


def some_logits(num_ids: int = NUM_IDS) -> Tensor:
    return torch.randn(num_ids, generator=torch.Generator().manual_seed(0)) * 2


def assert_fits(tokens: Tensor, probabilities: Tensor) -> None:
    """Pearson's chi-square test, at five standard deviations; rare ids count as one."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(tokens)
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if wanted[-1] < 1:
        observed, wanted = observed[:-1], wanted[:-1]
    statistic = ((observed - wanted) ** 2 / wanted).sum().item()
    freedom = len(wanted) - 1
    assert statistic <= freedom + 5 * (2 * freedom) ** 0.5
