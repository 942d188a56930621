"""Our decoder, filled from tensors and read with step by step; needs no transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pluribus.generation import SamplingParams
from pluribus.interfaces import ModelSpec, Place, Share, TokenLayout
from pluribus.parallel.group import TensorParallel, tensor_group
from pluribus.parallel.hybrid import HybridParallelism, HybridParallelismConfig
from pluribus.parallel.ring import join_ring
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


def spec(config: OPTConfig) -> ModelSpec:
    """Return what a split must know of an architecture."""
    return ModelSpec(
        name="tiny",
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        num_token_ids=config.vocab_size,
        max_length=config.max_position_embeddings,
        eos_token_ids=config.eos_token_ids,
        pad_token_id=config.pad_token_id,
        dtype=config.dtype,
        num_parameters=config.num_parameters,
        num_layer_parameters=config.num_layer_parameters,
        num_head_parameters=config.num_head_parameters,
    )


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
        return self._run(torch.tensor(tokens), layout)

    def _run(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        x = self.network.embed(tokens, layout.positions)
        return self.network.logits(self.network(x, self.store, layout.last))


class StageReading(Reading):
    """The same on one stage of a pipeline; the logits come from the last one."""

    def __init__(
        self, network: OPTDecoder, texts: Sequence[Sequence[int]], place: Place, width: int
    ) -> None:
        super().__init__(network, texts)
        self.place = place
        self.width = width
        self.num_steps = 0

    def _run(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        ring, share = self.place.ring, self.place.share
        assert ring is not None
        if share.is_first:
            x = self.network.embed(tokens, layout.positions)
        else:
            x = ring.inlet.receive([len(tokens), self.width], torch.float32)
        hidden: Tensor = self.network(x, self.store, layout.last if share.is_last else None)
        if share.is_last:
            return self.network.logits(hidden)
        ring.outlet.send(hidden, self.num_steps)
        self.num_steps += 1
        return hidden.new_zeros(0)


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


def read_cases_in_stages(ranks: TensorParallel, cases: Mapping[str, Case]) -> dict[str, Tensor]:
    """Return the same from the last of two stages of two ranks each; nothing from the first."""
    parallelism = HybridParallelism(HybridParallelismConfig(tensor_size=2, pipeline_size=2))
    share = parallelism.share(ranks.rank, spec(next(iter(cases.values())).config))
    device = torch.device("cpu")
    tensor, ring = tensor_group(share, device), join_ring(share, device)
    place = Place(share=share, tensor=tensor, ring=ring)
    logits = {}
    for name, case in cases.items():
        network = decoder_at(place, case.config, case.tensors)
        reading = StageReading(network, case.texts, place, case.config.hidden_size)
        logits[name] = _read_on(reading)
    # Whoever sends stays until all has been received.
    dist.barrier()
    return logits


def _read(tp: TensorParallel, case: Case) -> Tensor:
    return _read_on(Reading(decoder(case.config, case.tensors, tp), case.texts))


def _read_on(reading: Reading) -> Tensor:
    before = reading.step({slot: len(text) - 1 for slot, text in enumerate(reading.texts)})
    return torch.stack([before, reading.step(dict.fromkeys(range(len(reading.texts)), 1))])
