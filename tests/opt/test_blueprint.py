"""What is counted from the architecture is what the decoder allocates, to the byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opt.variants import VARIANTS, architecture, hugging_face
from pluribus import Place, Share
from pluribus.parallel.group import TensorParallel
from pluribus_opt.blueprint import OPTBlueprint
from pluribus_opt.config import SIZES, OPTConfig
from pluribus_opt.decoder import OPTDecoder
from pluribus_opt.linear import Linear
from pluribus_opt.quantizing import Quantizer

TENSOR_SIZES = (1, 2, 3, 4, 5, 8)
TINY = {name: architecture(hugging_face(name)) for name in VARIANTS}


def blueprint(
    config: OPTConfig, *, is_random: bool = False, weights: str | None = None
) -> OPTBlueprint:
    return OPTBlueprint(
        name="some",
        architecture=config,
        num_token_ids=config.vocab_size,
        is_random=is_random,
        weights=weights,
    )


def allocated(config: OPTConfig, share: Share, dtype: torch.dtype = torch.float16) -> int:
    """Return the bytes of the rank's decoder, put together without memory."""
    tensor = TensorParallel(share.tensor_rank, share.tensor_size)
    with torch.device("meta"):
        decoder = OPTDecoder(config, Place(share=share, tensor=tensor)).to(dtype)
    return sum(parameter.nbytes for parameter in decoder.parameters())


def shares(config: OPTConfig, tensor_size: int, num_stages: int = 1) -> list[Share]:
    """Return every rank's share, the layers dealt out to the stages in order."""
    cuts = [config.num_hidden_layers * stage // num_stages for stage in range(num_stages + 1)]
    return [
        Share(
            rank=stage * tensor_size + tensor_rank,
            layers=range(cuts[stage], cuts[stage + 1]),
            stage=stage,
            num_stages=num_stages,
            tensor_rank=tensor_rank,
            tensor_size=tensor_size,
        )
        for stage in range(num_stages)
        for tensor_rank in range(tensor_size)
    ]


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("tensor_size", TENSOR_SIZES)
@pytest.mark.parametrize("size", SIZES)
def test_the_weights_of_every_size_are_exact(size: str, tensor_size: int, num_stages: int) -> None:
    config = SIZES[size]
    for share in shares(config, tensor_size, num_stages):
        assert blueprint(config).weight_bytes(share, "float16", "cuda") == allocated(config, share)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("tensor_size", TENSOR_SIZES)
@pytest.mark.parametrize("variant", TINY)
def test_the_weights_of_every_variant_are_exact(
    variant: str, tensor_size: int, num_stages: int
) -> None:
    config = TINY[variant]
    for share in shares(config, tensor_size, num_stages):
        assert blueprint(config).weight_bytes(share, "float16", "cuda") == allocated(config, share)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_weights_are_exact_in_every_dtype(dtype: str) -> None:
    [share] = shares(SIZES["opt-125m"], 1)
    expected = allocated(SIZES["opt-125m"], share, getattr(torch, dtype))
    assert blueprint(SIZES["opt-125m"]).weight_bytes(share, dtype, "cuda") == expected


def eight_bits(config: OPTConfig, share: Share, weights: str, dtype: torch.dtype) -> OPTDecoder:
    """Return the rank's decoder, put together without memory."""
    place = Place(share=share, tensor=TensorParallel(share.tensor_rank, share.tensor_size))
    quantizer = Quantizer(weights, dtype)
    return OPTDecoder.empty(config, place, torch.device("meta"), dtype, quantizer)


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("tensor_size", [1, 2, 3])
@pytest.mark.parametrize("config", [*SIZES.values(), *TINY.values()], ids=[*SIZES, *TINY])
def test_eight_bits_and_where_they_are_made_plain_are_exact(
    config: OPTConfig, tensor_size: int, num_stages: int
) -> None:
    for share in shares(config, tensor_size, num_stages):
        decoder = eight_bits(config, share, "int8", torch.float16)
        held = sum(parameter.nbytes for parameter in decoder.parameters())
        planned = blueprint(config, weights="int8")
        assert planned.weight_bytes(share, "float16", "cpu") == held
        linears = [each for each in decoder.layers.modules() if isinstance(each, Linear)]
        scratch = 2 * max((each.weight.numel() for each in linears), default=0)
        assert planned.weight_bytes(share, "float16", "cuda") == held + scratch


def test_eight_bits_are_a_quarter_of_single_precision_and_their_scales() -> None:
    config = SIZES["opt-6.7b"]
    [share] = shares(config, 1)
    plain, rounded = (
        blueprint(config, weights=weights).weight_bytes(share, "float32", "cpu")
        for weights in (None, "fp8")
    )
    numbers, rows = 12 * 4096**2, (3 + 1 + 4 + 1) * 4096
    assert plain - rounded == 32 * (3 * numbers - 4 * rows)
    spec = blueprint(config, weights="fp8").spec
    assert (spec.weights, blueprint(config).spec.weights) == ("fp8", None)


@given(st.sampled_from(sorted(TINY)), st.integers(1, 8), st.integers(1, 3))
def test_all_ranks_hold_the_whole_and_what_is_replicated(
    variant: str, tensor_size: int, num_stages: int
) -> None:
    config = TINY[variant]
    ranks = shares(config, tensor_size, num_stages)
    together = sum(blueprint(config).weight_bytes(share, "float16", "cuda") for share in ranks)
    replicated = together - 2 * config.num_parameters
    assert replicated >= 0
    assert replicated == 0 or tensor_size * num_stages > 1
    assert replicated < 2 * config.num_parameters * tensor_size


def test_one_rank_holds_as_many_numbers_as_the_model_has() -> None:
    for config in SIZES.values():
        [share] = shares(config, 1)
        assert blueprint(config).weight_bytes(share, "float16", "cuda") == 2 * config.num_parameters


def test_a_rank_reads_what_is_stored_whatever_it_makes_of_it() -> None:
    [share] = shares(SIZES["opt-125m"], 1)
    assert blueprint(SIZES["opt-125m"]).stored_bytes(share) == 2 * 125_239_296
    assert blueprint(SIZES["opt-125m"], is_random=True).stored_bytes(share) == 0
