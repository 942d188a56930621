"""Finding a checkpoint, and what is known of it before its weights are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opt.checkpoint_files import assert_loads, canonical_state, tiny_opt
from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint import fetch_tokenizer, resolve


def test_a_folder_is_described_by_the_files_in_it(tmp_path: Path) -> None:
    tiny_opt().save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    assert source.where == str(tmp_path)
    assert source.config is not None
    assert source.config["hidden_size"] == 32
    assert source.config_where == str(tmp_path / "config.json")
    assert source.tokenizer_folder is None


def test_a_file_is_described_by_the_files_beside_it(tmp_path: Path) -> None:
    model = tiny_opt()
    model.save_pretrained(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "tokenizer.json").write_text("{}")
    source = resolve(str(tmp_path / "model.safetensors"))
    assert source.config is not None
    assert source.tokenizer_folder == tmp_path
    assert_loads(tmp_path / "model.safetensors", canonical_state(model))


def test_a_file_alone_has_neither_config_nor_tokenizer(tmp_path: Path) -> None:
    torch.save({"decoder.a": torch.ones(1)}, tmp_path / "restored.pt")
    source = resolve(str(tmp_path / "restored.pt"))
    assert (source.config, source.config_where, source.tokenizer_folder) == (None, None, None)


def test_the_bundled_model_is_found_by_name_and_not_shadowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "opt-stories-14m").mkdir()
    bundled = resolve("opt-stories-14m")
    assert bundled.config is not None
    assert bundled.config["hidden_size"] == 384
    assert bundled.tokenizer_folder is not None
    assert resolve("./opt-stories-14m").config is None


def test_a_path_that_looks_like_a_repo_id_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_opt().save_pretrained(tmp_path / "organisation" / "name")
    assert resolve("organisation/name").config is not None


@pytest.mark.parametrize(
    "checkpoint", ["", "opt-125m", "/no/such/folder", "./no/folder", "a/b/c", "../a", "a b/c"]
)
def test_anything_else_says_what_is_allowed(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = re.escape(f"model.checkpoint={checkpoint}: there is no such folder or file")
    with pytest.raises(CheckpointError, match=rf"{expected}.*repo id.*opt-stories-14m"):
        resolve(checkpoint)


@pytest.mark.parametrize("find", [resolve, fetch_tokenizer])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("x" * 300, "File name too long"),
        ("./" + "x/" * 3000, "File name too long"),
        ("~nosuchuser/x", "Could not determine home directory"),
        ("a\0b", "there is no such folder or file"),
        ("/dev/zero", "is neither a folder nor a file with contents"),
    ],
    ids=["long name", "long path", "no such user", "NUL", "device"],
)
def test_what_can_be_no_path_is_refused_by_its_setting(
    find: Callable[[str], object], value: str, why: str
) -> None:
    setting = "model.checkpoint" if find is resolve else "model.tokenizer"
    with pytest.raises(CheckpointError, match=why) as caught:
        find(value)
    assert str(caught.value).startswith(f"{setting}={value}")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is neither a folder nor a file with contents"):
        resolve(str(tmp_path / "pipe"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    for path in (tmp_path / "locked", tmp_path / "locked" / "model"):
        with pytest.raises(CheckpointError, match=re.escape(f"model.checkpoint={path} cannot be")):
            resolve(str(path))


def test_a_revision_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.revision=v1 .* repo id only"):
        resolve(str(tmp_path), "v1")


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"], ids=["cut", "a-list", "not-utf-8"])
def test_a_config_that_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "config.json"))):
        resolve(str(tmp_path))


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    tiny_opt().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    fingerprints = [resolve(str(tmp_path)).fingerprint]
    assert resolve(str(tmp_path)).fingerprint == fingerprints[0]
    os.utime(weights, ns=(1, 1))
    fingerprints.append(resolve(str(tmp_path)).fingerprint)
    weights.write_bytes(weights.read_bytes() + b" ")
    os.utime(weights, ns=(1, 1))
    fingerprints.append(resolve(str(tmp_path)).fingerprint)
    weights.rename(tmp_path / "a.safetensors")
    fingerprints.append(resolve(str(tmp_path)).fingerprint)
    (tmp_path / "tokenizer.json").write_text("{}")
    fingerprints.append(resolve(str(tmp_path)).fingerprint)
    assert len(set(fingerprints)) == 5


def test_a_tokenizer_is_found_by_bundled_name_and_folder(tmp_path: Path) -> None:
    assert (fetch_tokenizer("opt-stories-14m") / "tokenizer.json").is_file()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"model\.tokenizer=.* has no tokenizer"):
        fetch_tokenizer(str(tmp_path))
    (tmp_path / "merges.txt").write_text("")
    assert fetch_tokenizer(str(tmp_path)) == tmp_path


def test_a_tokenizer_that_is_not_there_is_refused_by_its_own_setting() -> None:
    with pytest.raises(CheckpointError, match=r"^model\.tokenizer=nowhere: "):
        fetch_tokenizer("nowhere")


def test_finding_a_checkpoint_imports_neither_torch_nor_the_hub() -> None:
    code = (
        "import sys; from pluribus_opt.checkpoint import resolve; resolve('opt-stories-14m'); "
        "sys.exit(bool({'torch', 'huggingface_hub', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
