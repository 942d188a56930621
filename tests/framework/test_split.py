"""Which rank holds what, and that the costliest stage is as cheap as can be."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.front import SPEC
from pluribus import ConfigError
from pluribus.interfaces import Parallelism
from pluribus.parallel.hybrid import HybridParallelism, HybridParallelismConfig
from pluribus.parallel.pipeline import PipelineParallelism, PipelineParallelismConfig
from pluribus.parallel.split import split_layers
from pluribus.parallel.tensor import TensorParallelism, TensorParallelismConfig

sizes = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
costs = st.integers(1, 50)


def costliest(stages: list[range], layer_cost: int, head_cost: int) -> int:
    *others, last = (len(stage) * layer_cost for stage in stages)
    return max([*others, last + head_cost])


def splits(num_layers: int, num_stages: int) -> list[list[range]]:
    """Return every way to cut the layers."""
    cuts = combinations(range(1, num_layers), num_stages - 1)
    return [[range(*pair) for pair in pairwise((0, *cut, num_layers))] for cut in cuts]


@given(sizes, costs, st.integers(0, 500))
def test_no_other_split_has_a_cheaper_costliest_stage(
    size: tuple[int, int], layer_cost: int, head_cost: int
) -> None:
    stages = split_layers(*size, layer_cost=layer_cost, head_cost=head_cost)
    everything = splits(*size)
    assert stages in everything
    best = min(costliest(each, layer_cost, head_cost) for each in everything)
    assert costliest(stages, layer_cost, head_cost) == best


@given(sizes)
def test_stages_are_alike_where_the_head_costs_nothing(size: tuple[int, int]) -> None:
    lengths = [len(stage) for stage in split_layers(*size, layer_cost=3, head_cost=0)]
    assert max(lengths) - min(lengths) <= 1


def test_the_head_takes_the_place_of_layers() -> None:
    stages = split_layers(12, 2, layer_cost=10, head_cost=40)
    assert stages == [range(8), range(8, 12)]


def test_a_large_head_leaves_every_stage_a_layer() -> None:
    stages = split_layers(4, 3, layer_cost=1, head_cost=1000)
    assert stages == [range(2), range(2, 3), range(3, 4)]


def hybrid(tensor_size: int, pipeline_size: int) -> HybridParallelism:
    return HybridParallelism(
        HybridParallelismConfig(tensor_size=tensor_size, pipeline_size=pipeline_size)
    )


@given(st.integers(1, 4), st.integers(1, 6))
def test_ranks_count_through_a_stage_and_then_on(tensor_size: int, num_stages: int) -> None:
    spec = replace(SPEC, num_layers=6, num_layer_parameters=100, num_head_parameters=170)
    split = hybrid(tensor_size, num_stages)
    shares = [split.share(rank, spec) for rank in range(split.world_size)]
    assert [(s.stage, s.tensor_rank) for s in shares] == [
        (stage, rank) for stage in range(num_stages) for rank in range(tensor_size)
    ]
    assert {(s.num_stages, s.tensor_size) for s in shares} == {(num_stages, tensor_size)}
    assert [s.rank for s in shares] == list(range(tensor_size * num_stages))
    for first in shares[::tensor_size]:
        assert {s.layers for s in shares if s.stage == first.stage} == {first.layers}
    assert [layer for s in shares[::tensor_size] for layer in s.layers] == list(range(6))
    assert [s.is_first for s in shares[::tensor_size]] == [True] + [False] * (num_stages - 1)
    assert [s.is_last for s in shares[::tensor_size]] == [False] * (num_stages - 1) + [True]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            TensorParallelism(TensorParallelismConfig(size=5)),
            r"parallel.size=5: fake has 4 attention heads.* parallel.size=4 or less",
        ),
        (
            PipelineParallelism(PipelineParallelismConfig(size=4)),
            r"parallel.size=4: fake has 3 layers.* parallel.size=3 or less",
        ),
        (hybrid(5, 1), r"parallel.tensor_size=5: fake has 4 .* parallel.tensor_size=4 or less"),
        (hybrid(1, 4), r"parallel.pipeline_size=4: fake has 3 .* parallel.pipeline_size=3 or less"),
    ],
    ids=["tensor", "pipeline", "hybrid-tensor", "hybrid-pipeline"],
)
def test_what_cannot_be_split_so_is_refused_by_its_setting(
    split: Parallelism, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        split.check(replace(SPEC, name="fake", num_layers=3, num_heads=4))


@pytest.mark.parametrize(
    "split",
    [
        TensorParallelism(TensorParallelismConfig(size=4)),
        PipelineParallelism(PipelineParallelismConfig(size=3)),
        hybrid(4, 3),
    ],
    ids=["tensor", "pipeline", "hybrid"],
)
def test_as_many_ranks_as_there_are_heads_and_layers_are_taken(split: Parallelism) -> None:
    split.check(replace(SPEC, num_layers=3, num_heads=4))


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel.size must be at least 1, got 0"):
        PipelineParallelismConfig(size=0)
    with pytest.raises(ConfigError, match=r"parallel.tensor_size must be at least 1, got -1"):
        HybridParallelismConfig(tensor_size=-1)
    with pytest.raises(ConfigError, match=r"parallel.pipeline_size must be at least 1, got 0"):
        HybridParallelismConfig(pipeline_size=0)
