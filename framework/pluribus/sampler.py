"""Chooses the next tokens of slots: groups rows that need the same, and runs each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.sampling import add_biases, cut, free, greedy, penalize, ranked
from pluribus.slots import Needs, SlotState


@dataclass(frozen=True, slots=True)
class NextTokens:
    """The tokens to choose, one a row.

    Attributes:
        owners: the slot of each, known to the host.
        longest: no position is above it, known to the host.
        slots: the owners on the device, int64, [num_rows].
        position: of each token in its slot's text, int64, [num_rows].
    """

    owners: Sequence[int]
    longest: int
    slots: Tensor
    position: Tensor

    def select(self, rows: Sequence[int], index: Tensor) -> NextTokens:
        """Return the rows at these indices, which the host and the device need."""
        owners = [self.owners[row] for row in rows]
        return NextTokens(owners, self.longest, self.slots[index], self.position[index])


class Sampler:
    """Chooses tokens by what each slot's parameters ask, and runs no more than that takes."""

    def __init__(self, state: SlotState) -> None:
        self.state = state

    def choose(self, logits: Tensor, following: NextTokens) -> Tensor:
        """Return a token for each row, [num_rows], and write it into its slot's text.

        ``logits`` [num_rows, num_token_ids] stay as they are.
        """
        groups = self._groups(following.owners)
        if len(groups) == 1:
            tokens = self.choose_alike(logits, following)
        else:
            tokens = torch.empty_like(following.slots)
            for rows in groups:
                index = torch.tensor(rows, device=logits.device)
                group = following.select(rows, index)
                tokens[index] = self.choose_alike(logits.index_select(0, index), group)
        self.state.tokens[following.slots, following.position] = tokens
        return tokens

    def _groups(self, owners: Sequence[int]) -> list[list[int]]:
        """Return the rows that need the same, for each need there is."""
        needs = [self.state.needs[slot] for slot in owners]
        if needs.count(needs[0]) == len(needs):
            return [list(range(len(needs)))]
        groups: dict[Needs, list[int]] = {}
        for row, need in enumerate(needs):
            groups.setdefault(need, []).append(row)
        return list(groups.values())

    def choose_alike(self, logits: Tensor, following: NextTokens) -> Tensor:
        """Return a token for each row where all rows need the same, [num_rows]."""
        state, slots = self.state, following.slots
        needs = state.needs[following.owners[0]]
        logits = self._adjusted(logits, following, needs)
        if not needs & (Needs.NOISE | Needs.RANKS | Needs.CUT):
            return greedy(logits)
        rows = state.sampling_rows(slots, following.position)
        if needs & Needs.RANKS:
            widest = max(state.params[slot].top_k for slot in following.owners)
            return ranked(logits, rows, widest)
        return cut(logits, rows) if needs & Needs.CUT else free(logits, rows)

    def _adjusted(self, logits: Tensor, following: NextTokens, needs: Needs) -> Tensor:
        """Return the logits after penalties and biases, as a copy if there are any."""
        state, slots, position = self.state, following.slots, following.position
        if needs & (Needs.PENALTIES | Needs.BIASES):
            logits = logits.to(torch.float32, copy=True)
        if needs & Needs.PENALTIES:
            history = state.history(slots, position, following.longest)
            penalize(logits, history, state.penalties(slots))
        if needs & Needs.BIASES:
            add_biases(logits, position, state.biases(slots))
        return logits
