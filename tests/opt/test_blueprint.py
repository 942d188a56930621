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

TENSOR_SIZES = (1, 2, 3, 4, 5, 8)
TINY = {name: architecture(hugging_face(name)) for name in VARIANTS}


def blueprint(config: OPTConfig, *, is_random: bool = False) -> OPTBlueprint:
    return OPTBlueprint(
        name="some", architecture=config, num_token_ids=config.vocab_size, is_random=is_random
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
