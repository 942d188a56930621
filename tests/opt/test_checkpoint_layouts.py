"""Every layout gives the same tensors; transformers writes the originals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opt.checkpoint_files import (
    POST_NORM,
    assert_loads,
    canonical_state,
    fuse,
    metaseq_state,
    open_at,
    parts_for,
    save_bins,
    tiny_opt,
)
from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint import resolve
from pluribus_opt.parts import Part

VARIANTS = pytest.mark.parametrize("changes", [{}, POST_NORM], ids=["pre-norm", "post-norm"])


@VARIANTS
@pytest.mark.parametrize("size", ["1GB", "20KB"], ids=["whole", "sharded"])
def test_safetensors_as_transformers_writes_them_load(
    tmp_path: Path, changes: dict[str, object], size: str
) -> None:
    model = tiny_opt(**changes)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "20KB")
    assert_loads(tmp_path, canonical_state(model))


def test_shards_without_an_index_load(tmp_path: Path) -> None:
    model = tiny_opt()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_loads(tmp_path, canonical_state(model))


@pytest.mark.parametrize("index", [True, False], ids=["indexed", "unindexed"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_bin_shards_load(tmp_path: Path, num_shards: int, index: bool) -> None:
    model = tiny_opt()
    save_bins(model, tmp_path, num_shards, index=index)
    assert_loads(tmp_path, canonical_state(model))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_bin_of_any_age_and_dtype_loads(tmp_path: Path, dtype: torch.dtype, is_zip: bool) -> None:
    model = tiny_opt().to(dtype)  # type: ignore[arg-type]
    # A storage of one byte puts those that follow it in a legacy file at odd addresses.
    state = {**model.state_dict(), "decoder.version": torch.zeros(1, dtype=torch.uint8)}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    assert_loads(tmp_path, canonical_state(model))


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_both_prefixes_of_names_load(tmp_path: Path, prefix: str) -> None:
    expected = canonical_state(tiny_opt())
    stored = {prefix + name: tensor for name, tensor in expected.items()}
    save_file(stored, tmp_path / "model.safetensors")
    assert_loads(tmp_path, expected)


@VARIANTS
@pytest.mark.parametrize("wrapped", [True, False], ids=["under-model", "bare"])
@pytest.mark.parametrize("is_fused", [True, False], ids=["fused", "separate"])
def test_metaseq_singletons_load(
    tmp_path: Path, changes: dict[str, object], is_fused: bool, wrapped: bool
) -> None:
    model = tiny_opt(**changes)
    state = fuse(metaseq_state(model)) if is_fused else metaseq_state(model)
    torch.save({"model": state, "cfg": {"lr": 1}} if wrapped else state, tmp_path / "restored.pt")
    assert_loads(tmp_path, canonical_state(model))
    assert_loads(tmp_path / "restored.pt", canonical_state(model))


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    model = tiny_opt()
    save_file(canonical_state(model), tmp_path / "pytorch_model.bin")
    assert_loads(tmp_path, canonical_state(model))
    torch.save(model.state_dict(), tmp_path / "model.safetensors")
    assert_loads(tmp_path / "model.safetensors", canonical_state(model))
    torch.save(model.state_dict(), tmp_path / "weights")
    assert_loads(tmp_path / "weights", canonical_state(model))


def test_safetensors_are_preferred_to_a_bin(tmp_path: Path) -> None:
    model = tiny_opt()
    model.save_pretrained(tmp_path)
    torch.save(
        {name: t + 1 for name, t in model.state_dict().items()}, tmp_path / "pytorch_model.bin"
    )
    assert_loads(tmp_path, canonical_state(model))


@pytest.mark.parametrize("layout", ["safetensors", "bins", "metaseq"])
def test_unrelated_files_are_left_alone(tmp_path: Path, layout: str) -> None:
    model = tiny_opt()
    if layout == "safetensors":
        save_file(canonical_state(model), tmp_path / "part-a.safetensors")
    elif layout == "bins":
        save_bins(model, tmp_path, 2, index=False)
    else:
        torch.save({"model": metaseq_state(model)}, tmp_path / "reshard.pt")
    (tmp_path / "README.md").write_text("# weights")
    (tmp_path / "notes.json").write_text('{"conf":{"a": 1}}')
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x81\xa5model")
    (tmp_path / "picture.bin").write_bytes(b"\x89PNG nothing of ours")
    (tmp_path / "logs").mkdir()
    torch.save({"state": {0: torch.ones(3)}, "lr": 0.1}, tmp_path / "optimizer.pt")
    torch.save([1, 2], tmp_path / "training_args.bin")
    save_file({"base.lora_A.weight": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert_loads(tmp_path, canonical_state(model))


def test_a_tied_head_in_the_file_is_ignored_and_an_untied_one_is_read(tmp_path: Path) -> None:
    model = tiny_opt()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "lm_head.weight" in open_at(tmp_path).tensors
    assert_loads(tmp_path, canonical_state(model))
    untied = tiny_opt(tie_word_embeddings=False)
    untied.save_pretrained(tmp_path)
    assert "lm_head.weight" in canonical_state(untied)
    assert_loads(tmp_path, canonical_state(untied))


@pytest.mark.parametrize("layout", ["safetensors", "bin", "fused"])
def test_a_slice_of_one_tensor_can_be_read(tmp_path: Path, layout: str) -> None:
    state = canonical_state(tiny_opt())
    if layout == "safetensors":
        save_file(state, tmp_path / "model.safetensors")
    else:
        torch.save(fuse(state) if layout == "fused" else state, tmp_path / "pytorch_model.bin")
    name = "decoder.layers.1.self_attn.q_proj.weight"
    index = (slice(8, 16), slice(4, 12))
    assert torch.equal(open_at(tmp_path).read(name, index), state[name][index])


def test_parts_may_be_pieces_and_views_and_of_another_dtype(tmp_path: Path) -> None:
    name = "decoder.layers.0.fc1.weight"
    weight = torch.randn(8, 6).half()
    save_file({name: weight}, tmp_path / "model.safetensors")
    target = torch.zeros(4, 12)
    left, right = (slice(0, 4), slice(None)), (slice(4, 8), slice(None))
    parts = [Part(name, (8, 6), left, target[:, :6]), Part(name, (8, 6), right, target[:, 6:])]
    calls: list[tuple[int, int]] = []
    open_at(tmp_path).read_into(parts, lambda done, total: calls.append((done, total)))
    assert torch.equal(target, torch.cat([weight[:4], weight[4:]], dim=1).float())
    assert calls == [(48, 96), (96, 96)]


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    state = canonical_state(tiny_opt())
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    checkpoint = open_at(tmp_path)
    for _ in range(2):
        parts = parts_for(state)
        checkpoint.read_into(parts, lambda done, total: None)
        assert all(torch.equal(part.target, state[part.name]) for part in parts)


def test_the_bundled_model_is_what_transformers_reads() -> None:
    source = resolve("opt-stories-14m")
    checkpoint = source.open()
    infos = checkpoint.tensors
    parts = [
        Part(name, info.shape, (slice(None),) * len(info.shape), torch.empty(info.shape))
        for name, info in infos.items()
    ]
    checkpoint.read_into(parts, lambda done, total: None)
    for file in {info.files[0] for info in infos.values()}:
        stored = load_file(file)
        for part in parts:
            if f"model.{part.name}" in stored:
                assert torch.equal(part.target, stored[f"model.{part.name}"].float())
    assert sum(part.target.numel() for part in parts) == 14_187_264


def test_an_unknown_name_cannot_be_read(tmp_path: Path) -> None:
    save_file({"decoder.a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no tensor decoder\.b"):
        open_at(tmp_path).read("decoder.b", (slice(None),))
