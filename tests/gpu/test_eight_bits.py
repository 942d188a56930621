"""Passes of a network with eight-bit weights, captured and not, give what a CPU's worker gives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from gpu import tiny
from gpu.test_bundled import GREEDY as LONG
from gpu.test_bundled import MEMORY, OURS, PROMPTS, assert_alike, perplexity, texts, texts_alone
from gpu.tiny import CPU, GREEDY, PROMPT, SEEDED, alone, ask, assert_same
from opt.reading import whole
from pluribus import Engine
from pluribus.quantized import DTYPES
from pluribus_opt.decoder import OPTDecoder
from pluribus_opt.linear import share_scratch
from pluribus_opt.quantizing import Quantizer

PLAIN = tiny.network


@cache
def network(weights: str, device: torch.device = CPU, num_layers: int = 2) -> OPTDecoder:
    """Return the tiny network, its layers' weights rounded."""
    plain = {part.name: part.target for part in PLAIN(CPU, num_layers).parts()}
    quantizer, place = Quantizer(weights, torch.float32), whole(num_layers)
    config = tiny.config_of(num_layers)
    decoder = OPTDecoder.empty(config, place, CPU, torch.float32, quantizer)
    for part in decoder.parts():
        part.fill(torch.float32, partial(copy_from, plain[part.name]))
    decoder.to(device)
    share_scratch(decoder.layers)
    return decoder


def copy_from(tensor: Tensor, index: tuple[slice, ...], target: Tensor) -> None:
    target.copy_(tensor[index])


@pytest.mark.parametrize("weights", DTYPES)
def test_whatever_shares_a_step_each_gets_what_it_gets_on_a_cpu(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "network", partial(network, weights))
    params = [GREEDY, SEEDED, replace(SEEDED, top_p=0.6), replace(GREEDY, logprobs=2)]
    generations = [ask(number, PROMPT[number:], each) for number, each in enumerate(params)]
    tiny.run(tiny.engine(tiny.TinyWorker(2), lookahead=1), generations)
    for generation in generations:
        assert_same(generation, alone(tiny.cpu_worker(), generation))
    monkeypatch.undo()
    plain = alone(tiny.cpu_worker(), ask(3, PROMPT[3:], params[3]))
    assert plain.logprobs[0].logprob != pytest.approx(generations[3].logprobs[0].logprob, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("weights", DTYPES)
def test_the_bundled_model_says_what_it_says_on_a_cpu(weights: str, dtype: str) -> None:
    chosen = f"model.weights={weights}"
    with Engine("device=cpu", "dtype=float32", MEMORY, chosen) as judge:
        right = texts(judge, [LONG] * len(PROMPTS))
        with Engine(*OURS, f"dtype={dtype}", chosen) as engine:
            allowed = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.02}[dtype]
            assert perplexity(engine, right) == pytest.approx(perplexity(judge, right), rel=allowed)
            if dtype != "bfloat16":  # its ties are wider
                assert_alike(judge, texts(engine, [LONG] * len(PROMPTS)), right)
                assert_alike(judge, texts_alone(engine, LONG), right)
