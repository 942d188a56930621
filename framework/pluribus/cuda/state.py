"""What a CUDA device knows of every running generation, written a step's worth at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from pluribus.generation import SamplingParams
from pluribus.interfaces import KVShape
from pluribus.kernels.passes import NUM_ENDS, Texts
from pluribus.kernels.sample import Choices
from pluribus.kernels.upload import upload
from pluribus.slots import Needs, SlotState, floats_of
from pluribus.step import Admission

ADJUSTED = Needs.PENALTIES | Needs.BIASES
"""Logits are changed before a token is chosen."""


class CudaSlotState(SlotState):
    """Adds a slot for rows that pad, and what passes need that the host takes no part in.

    Attributes:
        padding: the slot that pads.
        special: slots for whose tokens, since they were last admitted to, it takes more than
            the sampling kernel.
    """

    def __init__(self, shape: KVShape, num_token_ids: int, device: torch.device) -> None:
        num_slots = shape.num_slots + 1
        self.padding = shape.num_slots
        self.special: set[int] = set()
        super().__init__(replace(shape, num_slots=num_slots), num_token_ids, device)
        # One row of each table for a parameter, so that a step's admissions are a write each.
        self._floats = torch.zeros(6, num_slots, device=device)
        self._ints = torch.zeros(6 + NUM_ENDS, num_slots, dtype=torch.int64, device=device)
        self.temperature, self.top_p, self.min_p, *penalties = self._floats
        self.repetition, self.presence, self.frequency = penalties
        self.seed, self.top_k, position, is_over, last, self.prompt_length = self._ints[:6]
        self.choices = Choices(self.temperature, self.top_k, self.top_p, self.min_p, self.seed)
        self.texts = Texts(self.tokens, position, self._ints[6:], last, is_over)

    def admit_all(self, admissions: Sequence[Admission]) -> None:
        """Take generations into their slots."""
        if not admissions:
            return
        for admission in admissions:
            self.note(admission)
            params, needs = admission.params, self.needs[admission.slot]
            tells = params.logprobs is not None
            if tells or needs & ADJUSTED:
                self.special.add(admission.slot)
            else:
                self.special.discard(admission.slot)
        floats = np.array([_floats(each.params) for each in admissions], np.float32)
        ints = np.array([_ints(each) for each in admissions], np.int64)
        width = max(len(each.prompt) for each in admissions)
        tokens = np.zeros((len(admissions), width), np.int64)
        for row, each in zip(tokens, admissions, strict=True):
            row[: len(each.prompt)] = each.prompt
        slots, floats_, ints_, tokens_ = upload(
            self.device,
            [each.slot for each in admissions],
            floats.T.ravel().view(np.int32),
            ints.T.ravel(),
            tokens.ravel(),
        )
        num = len(admissions)
        self._floats[:, slots] = floats_.to(torch.int32).view(torch.float32).view(-1, num)
        self._ints[:, slots] = ints_.view(-1, num)
        self.tokens[slots, :width] = tokens_.view(num, width)


def _floats(params: SamplingParams) -> tuple[float, ...]:
    temperature, *others = floats_of(params)
    return (0.0 if params.is_greedy else temperature, *others)


def _ints(admission: Admission) -> tuple[int, ...]:
    params = admission.params
    assert params.seed is not None
    ends = admission.ends[:NUM_ENDS]
    return (
        params.seed,
        params.top_k,
        len(admission.prompt) - 1,
        0,
        admission.max_length - 1,
        len(admission.prompt),
        *ends,
        *([-1] * (NUM_ENDS - len(ends))),
    )
