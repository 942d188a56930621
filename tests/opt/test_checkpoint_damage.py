"""Whatever is wrong with files or tensors is one error that names them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opt.checkpoint_files import (
    NOT_SERVED,
    canonical_state,
    open_at,
    parts_for,
    save_bins,
    tiny_opt,
    write_index,
)
from pluribus.errors import CheckpointError

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"


def refusal(path: Path) -> str:
    """Return why the checkpoint at ``path`` is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_at(path)
    return str(caught.value)


def empty(content: bytes) -> bytes:
    return b""


def replaced_by_pointer(content: bytes) -> bytes:
    return LFS_POINTER


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def cut_by_one_byte(content: bytes) -> bytes:
    return content[:-1]


def cut_early(content: bytes) -> bytes:
    return content[:40]


def overwritten_at_the_start(content: bytes) -> bytes:
    return b"\xff" * 100 + content[100:]


def overwritten_after_the_magic(content: bytes) -> bytes:
    return content[:30] + b"\xff" * 300 + content[330:]


DAMAGES = pytest.mark.parametrize(
    "damage",
    [
        empty,
        replaced_by_pointer,
        cut_in_half,
        cut_by_one_byte,
        cut_early,
        overwritten_at_the_start,
        overwritten_after_the_magic,
    ],
    ids=lambda damage: damage.__name__,
)


def write_safetensors(folder: Path) -> Path:
    tiny_opt().save_pretrained(folder)
    return folder / "model.safetensors"


def write_last_shard(folder: Path) -> Path:
    tiny_opt().save_pretrained(folder, max_shard_size="20KB")
    return sorted(folder.glob("*.safetensors"))[-1]


def write_unindexed_shard(folder: Path) -> Path:
    shard = write_last_shard(folder)
    (folder / "model.safetensors.index.json").unlink()
    return shard


def write_bin(folder: Path) -> Path:
    torch.save(tiny_opt().state_dict(), file := folder / "pytorch_model.bin")
    return file


def write_legacy_bin(folder: Path) -> Path:
    file = folder / "pytorch_model.bin"
    torch.save(tiny_opt().state_dict(), file, _use_new_zipfile_serialization=False)
    return file


def write_bin_shard(folder: Path) -> Path:
    save_bins(tiny_opt(), folder, 3)
    return folder / "pytorch_model-00002-of-00003.bin"


@DAMAGES
@pytest.mark.parametrize(
    "write",
    [
        write_safetensors,
        write_last_shard,
        write_unindexed_shard,
        write_bin,
        write_legacy_bin,
        write_bin_shard,
    ],
    ids=lambda write: write.__name__.removeprefix("write_"),
)
def test_a_damaged_file_is_named(
    tmp_path: Path, write: Callable[[Path], Path], damage: Callable[[bytes], bytes]
) -> None:
    file = write(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in refusal(tmp_path)


def test_a_file_that_ends_too_early_says_where(tmp_path: Path) -> None:
    file = write_legacy_bin(tmp_path)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    assert f"it ends at byte {size - 1}, not at {size}" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["restored.pt", "pytorch_model-00001-of-00001.bin"])
@pytest.mark.parametrize("damage", [empty, replaced_by_pointer], ids=lambda d: d.__name__)
def test_a_damaged_file_is_named_where_nothing_lists_it(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(damage(b""))
    assert str(tmp_path / name) in refusal(tmp_path)


def test_a_pointer_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(LFS_POINTER)
    assert "git lfs pull" in refusal(tmp_path)


def test_an_index_that_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    shard = write_last_shard(tmp_path)
    shard.unlink()
    assert f"names {shard.name}, which is not in its folder" in refusal(tmp_path)


def test_an_index_that_lists_a_tensor_its_file_does_not_hold(tmp_path: Path) -> None:
    shard = write_last_shard(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    write_index(index, {**listed, "model.decoder.extra": shard.name})
    message = refusal(tmp_path)
    assert "model.decoder.extra" in message
    assert str(shard) in message


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../a"}}'],
    ids=["not-json", "a-list", "no-map", "a-number", "outside"],
)
def test_an_index_that_makes_no_sense_is_named(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    assert str(index) in refusal(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    name = "model.decoder.layers.0.fc1.bias"
    for file in ("a", "b"):
        save_file({name: torch.ones(2)}, tmp_path / f"{file}.safetensors")
    message = refusal(tmp_path)
    assert message.startswith("decoder.layers.0.fc1.bias is there twice")
    assert str(tmp_path / "a.safetensors") in message
    assert str(tmp_path / "b.safetensors") in message


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    both = {"model.decoder.layers.0.fc1.bias": torch.ones(2)}
    both |= {"decoder.layers.0.fc1.bias": torch.ones(2)}
    save_file(both, tmp_path / "model.safetensors")
    assert "decoder.layers.0.fc1.bias is there twice" in refusal(tmp_path)


def test_everything_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    expected = canonical_state(tiny_opt())
    stored = dict(expected)
    del stored["decoder.layers.0.fc1.bias"]
    stored["decoder.layers.1.fc2.bias"] = torch.ones(5)
    stored["decoder.layers.1.fc1.bias"] = torch.ones(64, dtype=torch.int8)
    stored["decoder.layers.7.fc2.bias"] = torch.ones(6)
    save_file(stored, file := tmp_path / "model.safetensors")
    parts = parts_for(expected)
    for part in parts:
        part.target.fill_(7)
    with pytest.raises(CheckpointError) as caught:
        open_at(tmp_path).read_into(parts, lambda done, total: None)
    message = str(caught.value)
    assert "1 missing:\n  decoder.layers.0.fc1.bias [64]" in message
    assert f"1 unexpected:\n  decoder.layers.7.fc2.bias [6] of float32 in {file}" in message
    assert f"fc2.bias: expected [32], got [5] of float32 in {file}" in message
    assert f"fc1.bias: expected [64], got [64] of int8 in {file}" in message
    assert all(bool((part.target == 7).all()) for part in parts), "nothing may be read before"


def test_a_long_list_is_cut_and_counted(tmp_path: Path) -> None:
    save_file({"decoder.layers.0.fc1.bias": torch.ones(64)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_at(tmp_path).read_into(parts_for(canonical_state(tiny_opt())), lambda d, t: None)
    message = str(caught.value)
    assert "35 missing:" in message
    assert "… and 30 more" in message
    assert len(message.splitlines()) < 12


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "legacy.bin"])
@pytest.mark.parametrize("dtype", NOT_SERVED, ids=str)
def test_weights_of_a_dtype_that_cannot_be_served_are_refused_by_name(
    tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    bias = "decoder.layers.1.fc1.bias"
    expected = canonical_state(tiny_opt())
    stored = {**expected, bias: torch.zeros(64 * dtype.itemsize, dtype=torch.uint8).view(dtype)}
    if name.endswith("safetensors"):
        save_file(stored, tmp_path / name)
    else:
        is_zip = name != "legacy.bin"
        torch.save(stored, tmp_path / name, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError) as caught:
        open_at(tmp_path).read_into(parts_for(expected), lambda done, total: None)
    message = str(caught.value)
    kind = str(dtype).removeprefix("torch.")
    assert "or of none of float64, float32, float16, bfloat16:" in message
    assert f"{bias}: expected [64], got [64] of {kind} in {tmp_path / name}" in message


def test_an_untied_head_that_is_asked_for_has_to_be_there(tmp_path: Path) -> None:
    tiny_opt().save_pretrained(tmp_path)
    expected = canonical_state(tiny_opt(tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match=r"1 missing:\n  lm_head\.weight \[96, 32\]"):
        open_at(tmp_path).read_into(parts_for(expected), lambda done, total: None)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "weights.zip"])
def test_weights_of_another_model_are_refused(tmp_path: Path, name: str) -> None:
    state = {"transformer.h.0.weight": torch.ones(2)}
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    assert f"{tmp_path} holds no OPT weights" in refusal(tmp_path)
    assert f"{tmp_path / name} holds no OPT weights" in refusal(tmp_path / name)


def test_a_file_that_the_system_does_not_let_us_read_is_refused() -> None:
    assert "/proc/self/mem cannot be read: " in refusal(Path("/proc/self/mem"))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert f"{tmp_path} holds no OPT weights" in refusal(tmp_path)


def test_a_fused_projection_has_to_divide_into_three(tmp_path: Path) -> None:
    name = "decoder.layers.0.self_attn.qkv_proj.bias"
    torch.save({name: torch.ones(10)}, tmp_path / "restored.pt")
    assert re.search(rf"{name} \[10\] does not divide", refusal(tmp_path))
