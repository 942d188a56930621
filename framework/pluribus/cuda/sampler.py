"""Chooses the next tokens of slots on a CUDA device."""

from __future__ import annotations

import torch
from torch import Tensor

from pluribus.cuda.state import ADJUSTED, CudaSlotState
from pluribus.kernels.sample import sample
from pluribus.kernels.upload import upload
from pluribus.sampler import NextTokens, Sampler


class CudaSampler(Sampler):
    """One kernel chooses every row's token; logits that something adjusts are copied before."""

    def __init__(self, state: CudaSlotState) -> None:
        super().__init__(state)
        self.slots = state

    def choose(self, logits: Tensor, following: NextTokens) -> Tensor:
        """Return a token for each row, [num_rows], and write it into its slot's text."""
        logits = self._all_adjusted(logits, following)
        tokens = self.draw(logits, following.slots, following.position)
        self.append(tokens, following.slots, following.position)
        return tokens

    def append(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Write the token of each row at its position of its slot's text."""
        texts = self.slots.texts
        texts.tokens[slots, positions] = tokens
        texts.position[slots] = positions

    def draw(self, logits: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Return a token for each row; see ``pluribus.kernels.sample``."""
        num_ids, choices = self.slots.num_token_ids, self.slots.choices
        return sample(logits, num_ids, slots, positions, choices)

    def _all_adjusted(self, logits: Tensor, following: NextTokens) -> Tensor:
        adjusted = logits
        for rows in self._groups(following.owners):
            needs = self.slots.needs[following.owners[rows[0]]]
            if not needs & ADJUSTED:
                continue
            if adjusted is logits:
                adjusted = logits.to(torch.float32, copy=True)
            [index] = upload(logits.device, rows)
            group = following.select(rows, index)
            adjusted[index] = self._adjusted(adjusted[index], group, needs)
        return adjusted
