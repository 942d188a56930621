"""Any layout gives any rank its share, and reads no more than that share.

transformers' weights are what every rank's share is compared with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import OPTForCausalLM

from opt.checkpoint_files import canonical_state, tiny_opt
from opt.mapped_reads import MappedReads
from opt.metaseq_files import LAYOUTS, save_parts, save_shards
from opt.reading import spec, whole
from pluribus.interfaces import Place
from pluribus.parallel.group import TensorParallel
from pluribus.parallel.hybrid import HybridParallelism, HybridParallelismConfig
from pluribus_opt.checkpoint import resolve
from pluribus_opt.checkpoint.stored import StoredTensor, join, unflatten
from pluribus_opt.config import OPTConfig
from pluribus_opt.decoder import OPTDecoder
from pluribus_opt.model import OPTModel, OPTModelConfig
from pluribus_opt.parts import Part

# Heads divide by 1, 2, 3, 4 and 8, the vocabulary by 8 and not by 3.
SIZES = {
    "vocab_size": 104,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "ffn_dim": 96,
    "num_attention_heads": 24,
    "word_embed_proj_dim": 48,
}
POST_NORM = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}

MODELS = {
    "pre-norm": tiny_opt(**SIZES),
    "post-norm": tiny_opt(**{**SIZES, **POST_NORM}),
}


@dataclass(frozen=True)
class Split:
    """So many pipeline stages of so many tensor-parallel ranks."""

    tensor: int
    pipeline: int = 1

    def __str__(self) -> str:
        return f"tensor-{self.tensor}-pipeline-{self.pipeline}"

    def ranks(self, config: OPTConfig) -> Iterator[list[Part]]:
        """Yield what each rank holds, its targets full of something else."""
        sizes = HybridParallelismConfig(tensor_size=self.tensor, pipeline_size=self.pipeline)
        parallelism = HybridParallelism(sizes)
        for rank in range(parallelism.world_size):
            share = parallelism.share(rank, spec(config))
            tp = TensorParallel(share.tensor_rank, share.tensor_size)
            place = Place(share=share, tensor=tp)
            decoder = OPTDecoder.empty(config, place, torch.device("cpu"), torch.float32)
            for parameter in decoder.parameters():
                parameter.fill_(torch.nan)
            yield list(decoder.parts())


SPLITS = [Split(1), Split(2), Split(3), Split(4), Split(1, 2), Split(1, 3), Split(2, 2)]


def architecture(model: OPTForCausalLM) -> OPTConfig:
    return OPTConfig.from_json(model.config.to_dict(), "transformers")


def assert_filled(parts: list[Part], state: dict[str, Tensor]) -> None:
    for part in parts:
        # Copies of what is not split differ by noise from part to part; the first counts.
        assert torch.equal(part.target, state[part.name][part.index]), part.name


def assert_shares(folder: Path, model: OPTForCausalLM, layout: str, split: Split) -> None:
    LAYOUTS[layout](model, folder)
    held: set[str] = set()
    for parts in split.ranks(config := architecture(model)):
        checkpoint = resolve(str(folder)).open(config)
        with MappedReads(folder.iterdir()) as reads:
            checkpoint.read_into(parts, lambda done, total: None)
        assert_filled(parts, canonical_state(model))
        assert reads.num_bytes.total() == sum(part.target.nbytes for part in parts)
        held.update(part.name for part in parts)
    assert held == canonical_state(model).keys()


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_rank_gets_its_share_and_reads_no_more(
    tmp_path: Path, layout: str, split: Split
) -> None:
    assert_shares(tmp_path, MODELS["pre-norm"], layout, split)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_projections_and_norms_that_follow_find_their_place(tmp_path: Path, layout: str) -> None:
    assert_shares(tmp_path, MODELS["post-norm"], layout, Split(2, 2))


def files_read(path: Path, config: OPTConfig, parts: list[Part]) -> set[str]:
    checkpoint = resolve(str(path)).open(config)
    with MappedReads(path.iterdir()) as reads:
        checkpoint.read_into(parts, lambda done, total: None)
    return {file.name for file in reads.num_bytes}


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_rank_reads_only_the_parts_that_its_share_lies_in(tmp_path: Path, num_ranks: int) -> None:
    model = MODELS["pre-norm"]
    save_parts(model, tmp_path, 4)
    for rank, parts in enumerate(Split(num_ranks).ranks(config := architecture(model))):
        split = [part for part in parts if part.target.numel() < torch.Size(part.shape).numel()]
        mine = range(rank * 4 // num_ranks, (rank + 1) * 4 // num_ranks)
        expected = {f"reshard-model_part-{i}.pt" for i in mine}
        assert files_read(tmp_path, config, split) == expected


def test_a_piece_of_a_flattened_matrix_comes_from_the_shards_it_lies_in(tmp_path: Path) -> None:
    model = MODELS["pre-norm"]
    save_shards(model, tmp_path, 1, 5)
    name = "decoder.layers.0.self_attn.k_proj.weight"  # the first numbers of its layer
    part = Part(name, (48, 48), (slice(0, 8), slice(None)), torch.empty(8, 48))
    files = files_read(tmp_path, architecture(model), [part])
    assert files == {"checkpoint_last-model_part-0-shard0.pt"}


def test_progress_counts_the_bytes_of_the_share(tmp_path: Path) -> None:
    model = MODELS["pre-norm"]
    save_parts(model, tmp_path, 2)
    config = architecture(model)
    parts = next(Split(4).ranks(config))
    calls: list[tuple[int, int]] = []
    resolve(str(tmp_path)).open(config).read_into(parts, lambda *call: calls.append(call))
    share = sum(part.target.nbytes for part in parts)
    assert calls[-1] == (share, share)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


@st.composite
def matrices_in_parts(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """Return a matrix, and how it is split: into how many parts, along which dimension."""
    rows, columns, num_parts = (draw(st.integers(1, 6)) for _ in range(3))
    dim = draw(st.integers(0, 1))
    shape = (rows, columns * num_parts) if dim else (rows * num_parts, columns)
    return torch.arange(math.prod(shape)).view(shape), num_parts, dim


@given(matrices_in_parts(), st.data())
def test_any_slice_is_the_same_however_a_tensor_is_pieced_together(
    tmp_path_factory: pytest.TempPathFactory,
    split: tuple[Tensor, int, int],
    data: st.DataObject,
) -> None:
    matrix, num_parts, dim = split
    folder = tmp_path_factory.mktemp("pieces")
    parts = [
        unflatten(shards_of(part, folder / str(i), data), 3, tuple(part.shape))
        for i, part in enumerate(matrix.chunk(num_parts, dim))
    ]
    stored = join(parts, dim)
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in matrix.shape]
    rows, columns = (slice(start, end) for start, end in bounds)
    assert stored.shape == matrix.shape
    assert torch.equal(stored.read((rows, columns)), matrix[rows, columns])
    some = stored.rows(rows.start, rows.stop)
    assert torch.equal(some.read((slice(None), columns)), matrix[rows, columns])


def shards_of(part: Tensor, file: Path, data: st.DataObject) -> StoredTensor:
    """Return a vector of ``part``'s numbers, three before and two after, cut anywhere."""
    numbers = F.pad(part.flatten(), (3, 2))
    numbers.numpy().tofile(file)
    mapped = torch.from_file(str(file), size=len(numbers), dtype=numbers.dtype)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(numbers)), max_size=4)))
    return join([StoredTensor.in_one(file, shard) for shard in mapped.tensor_split(cuts)], 0)


@pytest.mark.parametrize("layout", ["parts-2", "bare-shards-2x3", "energonai-66b"])
def test_the_plugin_loads_what_does_not_describe_itself(tmp_path: Path, layout: str) -> None:
    model = MODELS["post-norm"]
    (folder := tmp_path / "checkpoint").mkdir()
    LAYOUTS[layout](model, folder)
    (described := tmp_path / "opt.json").write_text(json.dumps(model.config.to_dict()))
    settings = OPTModelConfig(
        checkpoint=str(folder),
        config=str(described),
        tokenizer=str(small_tokenizer(tmp_path / "tokenizer")),
    )
    opt = OPTModel(settings)
    network = opt.load(
        whole(opt.spec.num_layers),
        torch.device("cpu"),
        torch.float64,  # in which nothing is packed, so that it can be read
        lambda done, total: None,
    )
    assert isinstance(network, OPTDecoder)
    state = {name: tensor.double() for name, tensor in canonical_state(model).items()}
    assert_filled(list(network.parts()), state)


def small_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of few enough ids for the models here."""
    folder.mkdir()
    words = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b"])}
    Tokenizer(BPE(vocab=words, merges=[])).save(str(folder / "tokenizer.json"))
    return folder
