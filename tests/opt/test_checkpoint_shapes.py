"""What a network is made of, told from its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from opt.reading import whole
from opt.variants import VARIANTS, architecture, hugging_face
from pluribus_opt.checkpoint.names import canonical, is_fused, split_fused
from pluribus_opt.checkpoint.shapes import Shape, flat_layout, num_elements, tensor_shapes
from pluribus_opt.config import SIZES, OPTConfig
from pluribus_opt.decoder import OPTDecoder

SHARED = Path(__file__).parents[3] / "shared"


def shapes_of_decoder(config: OPTConfig) -> dict[str, Shape]:
    place = whole(config.num_hidden_layers)
    decoder = OPTDecoder.empty(config, place, torch.device("meta"), torch.float16)
    return {part.name: part.shape for part in decoder.parts()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shapes_are_those_that_the_decoder_asks_for(variant: str) -> None:
    config = architecture(hugging_face(variant))
    assert tensor_shapes(config) == shapes_of_decoder(config)


@pytest.mark.parametrize("size", SIZES)
def test_the_shapes_add_up_to_the_parameters(size: str) -> None:
    assert num_elements(tensor_shapes(SIZES[size])) == SIZES[size].num_parameters


@pytest.mark.parametrize("num_parts", [1, 2, 4, 8])
def test_parts_hold_all_that_is_split_and_copies_of_the_rest(num_parts: int) -> None:
    config = SIZES["opt-66b"]
    parts = sum(num_elements(flat) for flat in flat_layout(config, num_parts).values())
    hidden = config.hidden_size
    norms = 2 * hidden * (2 * config.num_hidden_layers + 1)
    copied = norms + 2050 * hidden + 2 * hidden * config.num_hidden_layers  # fc2's and out's bias
    assert parts * num_parts == config.num_parameters + copied * (num_parts - 1)


def test_the_order_within_opt_175b_is_that_of_its_release() -> None:
    file = SHARED / "opt175b_flat-meta.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    released = {
        flat: [
            (name, tuple(shape))
            for stored, shape in zip(held["names"], held["shapes"], strict=True)
            for name, shape in unfused(canonical(stored), shape)
        ]
        for flat, held in json.loads(file.read_text()).items()
    }
    derived = flat_layout(SIZES["opt-175b"], num_parts=8)
    assert {flat: list(shapes.items()) for flat, shapes in derived.items()} == released


def unfused(name: str, shape: list[int]) -> list[tuple[str, list[int]]]:
    if not is_fused(name):
        return [(name, shape)]
    return [(one, [shape[0] // 3, *shape[1:]]) for one in split_fused(name)]
