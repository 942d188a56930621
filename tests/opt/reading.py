"""Our decoder, filled from tensors and read with step by step; needs no transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.generation import SamplingParams
from pluribus.interfaces import Place, Share
from pluribus.parallel.group import TensorParallel
from pluribus.step import Admission, Row
from pluribus.testing.reference import ReferenceKVStore
from pluribus_opt.config import OPTConfig
from pluribus_opt.decoder import OPTDecoder
from pluribus_opt.parts import Part


def fill(parts: Iterable[Part], tensors: Mapping[str, Tensor]) -> None:
    """Copy every part's piece to where it goes."""
    for part in parts:
        assert tensors[part.name].shape == part.shape
        part.target.copy_(tensors[part.name][part.index])


def whole(num_layers: int, tp: TensorParallel | None = None) -> Place:
    """Return a rank's place in a group that shares every layer, or alone."""
    tp = tp or TensorParallel()
    layers = range(num_layers)
    share = Share(rank=tp.rank, layers=layers, tensor_rank=tp.rank, tensor_size=tp.size)
    return Place(share=share, tensor=tp)


def decoder(
    config: OPTConfig,
    tensors: Mapping[str, Tensor],
    tp: TensorParallel | None = None,
    dtype: torch.dtype = torch.float32,
) -> OPTDecoder:
    """Return our decoder on the CPU, all layers of it, filled."""
    return decoder_at(whole(config.num_hidden_layers, tp), config, tensors, dtype)


def decoder_at(
    place: Place,
    config: OPTConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> OPTDecoder:
    """Return what a rank holds of our decoder on the CPU, filled."""
    network = OPTDecoder.empty(config, place, torch.device("cpu"), dtype)
    for parameter in network.parameters():
        parameter.fill_(math.nan)  # what stays unfilled must not matter
    fill(network.parts(), tensors)
    return network


class Reading:
    """Texts that a decoder reads over several steps, each in its own slot."""

    def __init__(self, network: OPTDecoder, texts: Sequence[Sequence[int]]) -> None:
        self.network = network
        self.texts = [list(text) for text in texts]
        self.num_read = [0] * len(texts)
        self.store = ReferenceKVStore()
        for slot, text in enumerate(self.texts):
            self.store.admit(_admission(slot, text))

    def step(self, num_tokens: Mapping[int, int]) -> Tensor:
        """Read on in some of the texts; return the logits after each, by row."""
        rows = [
            Row(slot, self.num_read[slot], count, samples=True)
            for slot, count in num_tokens.items()
        ]
        layout = self.store.begin(rows)
        tokens = [
            token for row in rows for token in self.texts[row.slot][row.start :][: row.num_tokens]
        ]
        for row in rows:
            self.num_read[row.slot] += row.num_tokens
        x = self.network.embed(torch.tensor(tokens), layout.positions)
        return self.network.logits(self.network(x, self.store)[layout.last])


def _admission(slot: int, prompt: Sequence[int]) -> Admission:
    return Admission(
        slot=slot,
        prompt=tuple(prompt),
        max_length=len(prompt) + 1,
        params=SamplingParams(seed=0),
        ends=(),
        placement=(),
    )


@dataclass(frozen=True)
class Case:
    """Texts to read, each whole and then one token more, and with what."""

    config: OPTConfig
    tensors: Mapping[str, Tensor]
    texts: Sequence[Sequence[int]]


def read_cases(tp: TensorParallel, cases: Mapping[str, Case]) -> dict[str, Tensor]:
    """Return each case's logits before and after the last token of every text."""
    return {name: _read(tp, case) for name, case in cases.items()}


def _read(tp: TensorParallel, case: Case) -> Tensor:
    reading = Reading(decoder(case.config, case.tensors, tp), case.texts)
    before = reading.step({slot: len(text) - 1 for slot, text in enumerate(case.texts)})
    return torch.stack([before, reading.step(dict.fromkeys(range(len(case.texts)), 1))])
