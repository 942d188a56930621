"""Eight-bit weights: transformers with the numbers that they stand for gives the same logits."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import OPTForCausalLM

from opt.checkpoint_files import canonical_state, tiny_opt
from opt.folders import write_folder, write_tokenizer
from opt.metaseq_files import LAYOUTS
from opt.ranks import run_on_ranks
from opt.reading import Reading, whole
from opt.variants import VARIANTS, architecture, canonical, hugging_face
from pluribus import CheckpointError, ConfigError
from pluribus.ops import scaled_linear
from pluribus.parallel.group import TensorParallel
from pluribus.quantized import DTYPES, LARGEST, dequantize, quantize, scale_for
from pluribus.units import format_bytes
from pluribus_opt.checkpoint import resolve
from pluribus_opt.config import WEIGHTS, OPTConfig
from pluribus_opt.decoder import OPTDecoder
from pluribus_opt.model import OPTModel, OPTModelConfig
from pluribus_opt.quantizing import Quantizer

TEXT = [2, 50, 7, 91, 33, 33, 4, 68, 12, 29, 5]
TEXTS = [TEXT, [2], [2, 11, 80, 3, 45]]
MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

every_format = pytest.mark.parametrize("weights", list(DTYPES))


def load(
    folder: Path,
    weights: str | None,
    tp: TensorParallel | None = None,
    dtype: torch.dtype = torch.float32,
) -> OPTDecoder:
    model = OPTModel(OPTModelConfig(checkpoint=str(folder), weights=weights))
    place = whole(model.spec.num_layers, tp)
    network = model.load(place, torch.device("cpu"), dtype, lambda done, total: None)
    assert isinstance(network, OPTDecoder)
    return network


def filled(theirs: OPTForCausalLM, weights: str) -> OPTDecoder:
    """Return a decoder with transformers' weights, those of layers quantised."""
    config, tensors = architecture(theirs), canonical(theirs)
    place, quantizer = whole(config.num_hidden_layers), Quantizer(weights, torch.float32)
    network = OPTDecoder.empty(config, place, torch.device("cpu"), torch.float32, quantizer)
    for part in network.parts():
        part.fill(torch.float32, partial(copy_from, tensors[part.name]))
    network.pack()
    return network


def copy_from(tensor: Tensor, index: tuple[slice, ...], target: Tensor) -> None:
    target.copy_(tensor[index])


def quantized(values: Tensor, weights: str) -> tuple[Tensor, Tensor]:
    """Return a matrix's numbers and scales, computed in one go."""
    scale = scale_for(values.abs().amax(1), DTYPES[weights])
    return quantize(values, scale, DTYPES[weights]), scale


def stood_for(theirs: OPTForCausalLM, weights: str) -> OPTForCausalLM:
    """Return transformers' network with the numbers that its quantised weights stand for."""
    copy = OPTForCausalLM(theirs.config)
    state = theirs.state_dict()
    for name, values in state.items():
        if name.endswith(tuple(f"{matrix}.weight" for matrix in MATRICES)):
            state[name] = dequantize(*quantized(values, weights), torch.float32)
    copy.load_state_dict(state)
    copy.train(False)
    return copy


@torch.inference_mode()
def logits_of(theirs: OPTForCausalLM) -> Tensor:
    """Return transformers' logits at the end of every text."""
    return torch.stack([theirs(torch.tensor([text])).logits[0, -1] for text in TEXTS])


def read(network: OPTDecoder) -> Tensor:
    return Reading(network, TEXTS).step({slot: len(text) for slot, text in enumerate(TEXTS)})


@every_format
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_is_transformers_with_rounded_weights(variant: str, weights: str) -> None:
    theirs = hugging_face(variant)
    ours = read(filled(theirs, weights))
    torch.testing.assert_close(ours, logits_of(stood_for(theirs, weights)), atol=1e-4, rtol=0)
    assert (ours - logits_of(theirs)).abs().max() > 1e-3


@every_format
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_close_to_single(
    tmp_path: Path, dtype: torch.dtype, weights: str
) -> None:
    theirs = hugging_face("pre-norm", vocab_size=264)
    logits = read(load(write_folder(tmp_path / "tiny", theirs), weights, dtype=dtype))
    assert logits.dtype == dtype
    wanted = logits_of(stood_for(theirs, weights))
    torch.testing.assert_close(logits.float(), wanted, atol=0.05 * wanted.std().item(), rtol=0)


@every_format
def test_all_but_the_layers_matrices_is_as_it_was(tmp_path: Path, weights: str) -> None:
    folder = write_folder(
        tmp_path / "tiny", hugging_face("post-norm-with-projections", vocab_size=264)
    )
    plain = {part.name: part for part in load(folder, None, dtype=torch.float64).parts()}
    for part in load(folder, weights, dtype=torch.float64).parts():
        if part.name.endswith(tuple(f"{matrix}.weight" for matrix in MATRICES)):
            assert part.target.dtype == DTYPES[weights]
            assert part.scaled is not None
            numbers, scale = quantized(plain[part.name].target.float(), weights)
            assert_same_numbers(part.target, numbers)
            assert torch.equal(part.scaled.scale, scale)
        else:
            assert torch.equal(part.target, plain[part.name].target), part.name


def assert_same_numbers(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours.float(), theirs.float())


Matrices = dict[str, tuple[Tensor, Tensor]]


def matrices(network: OPTDecoder) -> Matrices:
    """Return the numbers and the scales of every quantised part."""
    return {
        part.name: (part.target.float(), part.scaled.scale.clone())
        for part in network.parts()
        if part.scaled is not None
    }


def read_matrices(tp: TensorParallel, argument: tuple[str, str]) -> Matrices:
    folder, weights = argument
    return matrices(load(Path(folder), weights, tp))


@every_format
def test_ranks_hold_what_one_rank_holds(tmp_path: Path, weights: str) -> None:
    folder = write_folder(tmp_path / "tiny", hugging_face("three-heads", vocab_size=264))
    network = load(folder, weights)
    alone = matrices(network)
    (ranks := tmp_path / "ranks").mkdir()
    for rank, held in enumerate(run_on_ranks(2, read_matrices, (str(folder), weights), ranks)):
        parts = {part.name: part for part in load_nothing(folder, weights, rank).parts()}
        assert held.keys() == alone.keys()
        for name, (numbers, scale) in held.items():
            rows, columns = parts[name].index
            assert torch.equal(numbers, alone[name][0][rows, columns]), name
            assert torch.equal(scale, alone[name][1][rows]), name


def load_nothing(folder: Path, weights: str, rank: int) -> OPTDecoder:
    """Return one of two ranks' decoders, for where its parts come from."""
    config = OPTConfig.from_json(resolve(str(folder)).config or {}, "tiny")
    place = whole(config.num_hidden_layers, TensorParallel(rank, 2))
    quantizer = Quantizer(weights, torch.float32)
    return OPTDecoder.empty(config, place, torch.device("cpu"), torch.float32, quantizer)


TINY = tiny_opt(hidden_size=48, num_attention_heads=24, ffn_dim=96, vocab_size=264)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_numbers(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](TINY, tmp_path)
    config = OPTConfig.from_json(TINY.config.to_dict(), "transformers")
    quantizer = Quantizer("int8", torch.float16)
    place = whole(config.num_hidden_layers)
    network = OPTDecoder.empty(config, place, torch.device("cpu"), torch.float16, quantizer)
    parts = list(network.parts())
    resolve(str(tmp_path)).open(config).read_into(parts, lambda done, total: None)
    held = matrices(network)
    assert len(held) == 6 * config.num_hidden_layers
    for name, (numbers, scale) in held.items():
        expected, scales = quantized(canonical_state(TINY)[name], "int8")
        assert_same_numbers(numbers, expected)
        assert torch.equal(scale, scales)


@every_format
def test_random_weights_are_those_of_the_dtype_rounded(tmp_path: Path, weights: str) -> None:
    settings: dict[str, Any] = {
        "checkpoint": "random",
        "config": str(write_folder(tmp_path / "tiny", TINY) / "config.json"),
        "tokenizer": str(write_tokenizer(tmp_path / "tokenizer")),
    }
    plain, rounded = (
        OPTModel(OPTModelConfig(**settings, weights=each)).load(
            whole(2), torch.device("cpu"), torch.float16, lambda done, total: None
        )
        for each in (None, weights)
    )
    assert isinstance(plain, OPTDecoder)
    assert isinstance(rounded, OPTDecoder)
    values = {part.name: part.target for part in plain.parts()}
    for name, (numbers, scale) in matrices(rounded).items():
        expected, scales = quantized(values[name].float(), weights)
        assert_same_numbers(numbers, expected)
        assert torch.equal(scale, scales)


def test_what_is_saved_and_lost_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = hugging_face("pre-norm", vocab_size=264)
    folder = write_folder(tmp_path / "tiny", theirs)
    with caplog.at_level(logging.INFO, logger="pluribus_opt.model"):
        load(folder, "int8", dtype=torch.float16)
    [record] = caplog.records
    # Of three layers: 4 * 32 * 32 + 2 * 32 * 56 numbers, and 3 * 32 + 32 + 56 + 32 scales.
    saved = 3 * ((4096 + 3584) * 1 - 216 * 4)
    lost, name = max(
        (largest_loss(values), name)
        for name, values in canonical(theirs).items()
        if name.endswith(tuple(f"{matrix}.weight" for matrix in MATRICES))
    )
    assert record.message == (
        f"rank 0: weights of layers in int8: {format_bytes(saved)} less than in float16, and at "
        f"most {100 * lost:.2f} % of a channel lost to rounding ({name})"
    )


def largest_loss(values: Tensor) -> float:
    lost = values - dequantize(*quantized(values, "int8"), torch.float32)
    return float((lost.norm(dim=1) / values.norm(dim=1)).max())


@every_format
@pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=str)
def test_what_is_not_finite_is_refused_by_name(tmp_path: Path, bad: float, weights: str) -> None:
    folder = write_folder(tmp_path / "tiny", hugging_face("pre-norm", vocab_size=264))
    state = load_file(folder / "model.safetensors")
    state["model.decoder.layers.1.fc2.weight"][3, 5] = bad
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    load(folder, None)
    with pytest.raises(CheckpointError) as refused:
        load(folder, weights)
    assert str(refused.value).startswith("decoder.layers.1.fc2.weight has numbers that are not")
    assert f"model.weights={weights}" in str(refused.value)


def test_other_weights_are_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"^model\.weights .* null .*int8, fp8; got 'int4'"):
        OPTModelConfig(weights="int4")


def test_the_settings_are_the_formats_there_are() -> None:
    assert (*DTYPES,) == WEIGHTS


def test_a_conversion_refuses_what_is_of_no_use_to_it(tmp_path: Path) -> None:
    config = OPTModelConfig(checkpoint="opt-stories-14m", weights="int8")
    with pytest.raises(ConfigError, match=r"^model\.weights=int8 .*leave it at null"):
        OPTModel.convert(
            config,
            to=tmp_path / "new",
            dtype=None,
            max_shard_size=10**9,
            progress=lambda done, total: None,
        )


def test_the_fingerprint_follows_the_format() -> None:
    made = {
        OPTModel(OPTModelConfig(checkpoint="opt-stories-14m", weights=weights)).fingerprint
        for weights in (None, *WEIGHTS)
    }
    assert len(made) == 3


numbers = st.floats(-1e4, 1e4, width=32)
vectors = st.lists(numbers, min_size=1, max_size=9)


@every_format
@given(vectors)
def test_a_row_is_rounded_to_what_is_nearest(weights: str, row: list[float]) -> None:
    values = torch.tensor([row])
    dtype = DTYPES[weights]
    held, scale = quantized(values, weights)
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    every = every[every.abs() <= LARGEST[dtype]] * scale
    error = (values - dequantize(held, scale, torch.float32)).abs()
    best = (values[0][:, None] - every).abs().amin(1)
    torch.testing.assert_close(error[0], best, rtol=1e-3, atol=float(scale) * 1e-3)
    again, same = quantized(dequantize(held, scale, torch.float32), weights)
    torch.testing.assert_close(same, scale, rtol=1e-6, atol=0)
    assert_same_numbers(again, held)


@every_format
def test_a_row_of_zeros_stays_one(weights: str) -> None:
    held, scale = quantized(torch.zeros(2, 3), weights)
    assert torch.equal(dequantize(held, scale, torch.float32), torch.zeros(2, 3))


@every_format
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("num_rows", [0, 1, 5, 70, 300])
@pytest.mark.parametrize("shape", [(40, 24), (1000, 300), (5, 0)], ids=str)
def test_a_product_on_a_cpu_is_torchs(
    shape: tuple[int, int], num_rows: int, has_bias: bool, relu: bool, weights: str
) -> None:
    torch.manual_seed(0)
    x, values = torch.randn(num_rows, shape[1]), torch.randn(shape)
    bias = torch.randn(shape[0]) if has_bias else None
    scale = scale_for(values.norm(dim=1), DTYPES[weights])
    held = quantize(values, scale, DTYPES[weights])
    wanted = F.linear(x, dequantize(held, scale, torch.float32), bias)
    product = scaled_linear(x, held, scale, bias, relu=relu)
    torch.testing.assert_close(product, wanted.relu() if relu else wanted, atol=1e-4, rtol=1e-4)
