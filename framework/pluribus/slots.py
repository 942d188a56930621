"""What a device knows of every running generation, by slot."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pluribus.generation import SamplingParams
from pluribus.interfaces import KVShape
from pluribus.kernels.upload import upload
from pluribus.sampling import Biases, History, Penalties, SamplingRows
from pluribus.step import Admission, Row

COLDEST = 1e-30
"""Temperatures below it would make logits infinite; none of them is told from greedy."""
LEAST_TOP_P = 1e-30
"""A smaller one may be 0 in float32: no draw would be the last, as no sum is less than that."""
LEAST_REPETITION = 1e-4
"""Smaller penalties would make logits infinite; what has been said is all that counts before."""


class Needs(IntFlag):
    """What choosing a slot's token takes, besides finding the likeliest.

    Kept on the host, so that a step knows what to run without asking the device.
    """

    NOTHING = 0
    NOISE = 1
    RANKS = 2
    """Noise, and ``top_k``."""
    CUT = 4
    """Noise, and ``top_p`` or ``min_p``."""
    PENALTIES = 8
    BIASES = 16


class SlotState:
    """Tokens and sampling parameters, on the device; the host sends what changes."""

    def __init__(self, shape: KVShape, num_token_ids: int, device: torch.device) -> None:
        slots = shape.num_slots
        self.num_token_ids = num_token_ids
        self.device = device
        # One column more than a text has: its last token is written there, and never read.
        self.tokens = torch.zeros(slots, shape.max_length + 1, dtype=torch.int64, device=device)
        # A row for each parameter, so that to admit a generation takes a write to each table.
        self._ints = torch.ones(3, slots, dtype=torch.int64, device=device)
        self._floats = torch.ones(6, slots, device=device)
        self.prompt_length, self.seed, self.top_k = self._ints
        self.temperature, self.top_p, self.min_p, *penalties = self._floats
        self.repetition, self.presence, self.frequency = penalties
        self.bias_table = BiasTable(slots, device)
        self.params = [SamplingParams()] * slots
        self.needs = [Needs.NOTHING] * slots
        self.num_prompt_tokens = [0] * slots

    def admit(self, admission: Admission) -> None:
        """Take a generation into its slot."""
        self.note(admission)
        slot, params = admission.slot, admission.params
        assert params.seed is not None
        self.tokens[slot, : len(admission.prompt)] = torch.tensor(admission.prompt)
        ints = (len(admission.prompt), params.seed, params.top_k)
        self._ints[:, slot] = torch.tensor(ints)
        self._floats[:, slot] = torch.tensor(floats_of(params))

    def note(self, admission: Admission) -> None:
        """Keep what the host itself needs to know, and what few generations have."""
        slot, params = admission.slot, admission.params
        self.params[slot] = params
        self.num_prompt_tokens[slot] = len(admission.prompt)
        biases = self._biases(admission)
        if biases:
            self.bias_table.put(slot, biases)
        self.needs[slot] = self._needs(params, biases=bool(biases))

    def num_prompt_successors(self, row: Row) -> int:
        """Return how many of the row's tokens, from its first on, precede one of the prompt."""
        left = self.num_prompt_tokens[row.slot] - 1 - row.start
        return max(0, min(row.num_tokens, left))

    def sampling_rows(self, slots: Tensor, position: Tensor) -> SamplingRows:
        """Return how the next token of each slot, at each position, is chosen."""
        return SamplingRows(
            temperature=self.temperature[slots],
            top_k=self.top_k[slots],
            top_p=self.top_p[slots],
            min_p=self.min_p[slots],
            seed=self.seed[slots],
            position=position,
        )

    def penalties(self, slots: Tensor) -> Penalties:
        """Return how much what has come before counts in each slot."""
        return Penalties(self.repetition[slots], self.presence[slots], self.frequency[slots])

    def biases(self, slots: Tensor) -> Biases:
        """Return what is added to the logits of each slot."""
        return self.bias_table.rows(slots)

    def history(self, slots: Tensor, position: Tensor, longest: int) -> History:
        """Return what comes before each position, none of which is above ``longest``."""
        return History(self.tokens[:, :longest][slots], self.prompt_length[slots], position)

    def _needs(self, params: SamplingParams, *, biases: bool) -> Needs:
        needs = Needs.BIASES if biases else Needs.NOTHING
        if params.has_penalties:
            needs |= Needs.PENALTIES
        if params.is_greedy:
            return needs
        if 0 < params.top_k < self.num_token_ids:
            return needs | Needs.RANKS
        return needs | (Needs.CUT if params.top_p < 1 or params.min_p > 0 else Needs.NOISE)

    def _biases(self, admission: Admission) -> list[tuple[int, float, int]]:
        """Return each bias: id, value, and the position from which it counts no more."""
        params = admission.params
        never, free = self.tokens.shape[1], len(admission.prompt) + params.min_tokens
        biases = [(id_, value, never) for id_, value in params.logit_bias]
        if params.min_tokens:
            biases += [(id_, -torch.inf, free) for id_ in admission.ends]
        # The head may be wider than the tokenizer: ids without text never come up.
        return [bias for bias in biases if 0 <= bias[0] < self.num_token_ids]


def floats_of(params: SamplingParams) -> tuple[float, ...]:
    """Return temperature, top_p, min_p and the three penalties as float32 can hold them."""
    return (
        max(params.temperature, COLDEST),
        max(params.top_p, LEAST_TOP_P),
        params.min_p,
        max(params.repetition_penalty, LEAST_REPETITION),
        params.presence_penalty,
        params.frequency_penalty,
    )


class BiasTable:
    """What is added to the logits of a few ids, by slot; as wide as the longest list yet."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self._ids = torch.zeros(num_slots, 0, dtype=torch.int64, device=device)
        self._values = torch.zeros(num_slots, 0, device=device)
        self._until = torch.zeros(num_slots, 0, dtype=torch.int64, device=device)

    def put(self, slot: int, biases: Sequence[tuple[int, float, int]]) -> None:
        """Replace a slot's biases: each an id, a value, and the position where it ends."""
        if (missing := len(biases) - self._ids.shape[1]) > 0:
            self._ids = pad(self._ids, (0, missing))
            self._values = pad(self._values, (0, missing))
            self._until = pad(self._until, (0, missing))
        ids, values, until = zip(*biases, strict=True)
        bits = np.array(values, np.float32).view(np.int32)
        ids_, bits_, until_ = upload(self._ids.device, ids, bits, until)
        self._values[slot] = 0.0  # whatever id lies beyond the list, nothing is added to it
        self._ids[slot, : len(ids)] = ids_
        self._values[slot, : len(ids)] = bits_.to(torch.int32).view(torch.float32)
        self._until[slot, : len(ids)] = until_

    def rows(self, slots: Tensor) -> Biases:
        """Return the biases of each slot."""
        return Biases(self._ids[slots], self._values[slots], self._until[slots])
