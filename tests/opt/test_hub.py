"""Checkpoints from a Hugging Face hub: one that we run ourselves on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from opt.checkpoint_files import canonical_state, save_bins, tiny_opt, write_index
from opt.hub_server import REPO, Hub, serve
from opt.tensor_digest import digest

TRY = """
import json, sys
from opt.tensor_digest import digest
from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint import fetch_tokenizer, resolve

def attempt(action, name, revision):
    if action == "fetch_tokenizer":
        return {"folder": str(fetch_tokenizer(name, revision))}
    source = resolve(name, revision)
    answer = {
        "where": source.where,
        "hidden_size": source.config["hidden_size"],
        "tokenizer_folder": source.tokenizer_folder and str(source.tokenizer_folder),
        "fingerprint": source.fingerprint,
    }
    if action == "open":
        checkpoint = source.open()
        whole = {name: [slice(None)] * len(i.shape) for name, i in checkpoint.tensors.items()}
        tensors = {name: checkpoint.read(name, tuple(index)) for name, index in whole.items()}
        answer["digest"] = digest(tensors)
    return answer

action, name, revision = sys.argv[1:]
try:
    print(json.dumps(attempt(action, name, revision or None)))
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
"""

DIGEST = digest(canonical_state(tiny_opt()))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Run a hub whose repo holds a config, a tokenizer and a file of no use."""
    folder = tmp_path / "repo"
    tiny_opt().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "flax_model.msgpack").write_bytes(b"large")
    with serve(folder) as running:
        yield running


def attempt(
    hub: Hub, action: str = "open", name: str = REPO, revision: str = "", **environ: str
) -> dict[str, Any]:
    """Try in a process of its own, as the hub's client reads its settings when imported."""
    tests = Path(__file__).parents[1]
    own = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(hub.folder.parent / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(tests),
        "NO_PROXY": "127.0.0.1",
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    finished = subprocess.run(
        [sys.executable, "-c", TRY, action, name, revision],
        env={**inherited, **own, **environ},
        cwd=hub.folder.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def weights_fetched(hub: Hub) -> list[str]:
    return sorted({*hub.fetched} - {"config.json", "generation_config.json", "tokenizer.json"})


def test_describing_a_repo_downloads_its_small_files_only(hub: Hub) -> None:
    tiny_opt().save_pretrained(hub.folder)
    answer = attempt(hub, "resolve")
    assert answer["hidden_size"] == 32
    assert REPO in answer["where"]
    assert (Path(answer["tokenizer_folder"]) / "tokenizer.json").read_text() == "{}"
    assert {*hub.fetched} == {"config.json", "generation_config.json", "tokenizer.json"}


def test_safetensors_are_preferred_and_nothing_else_is_downloaded(hub: Hub) -> None:
    tiny_opt().save_pretrained(hub.folder, max_shard_size="20KB")
    save_bins(tiny_opt(), hub.folder, 2)
    shards = sorted(file.name for file in hub.folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert attempt(hub)["digest"] == DIGEST
    assert weights_fetched(hub) == sorted([*shards, "model.safetensors.index.json"])


def test_a_whole_file_is_downloaded_once(hub: Hub) -> None:
    tiny_opt().save_pretrained(hub.folder)
    first = attempt(hub)
    assert first["digest"] == DIGEST
    assert weights_fetched(hub) == ["model.safetensors"]
    hub.fetched.clear()
    assert attempt(hub) == first
    assert hub.fetched == []


@pytest.mark.parametrize("index", [True, False], ids=["indexed", "unindexed"])
def test_bin_shards_are_downloaded_where_there_are_no_safetensors(hub: Hub, index: bool) -> None:
    save_bins(tiny_opt(), hub.folder, 2, index=index)
    assert attempt(hub)["digest"] == DIGEST
    shards = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    assert weights_fetched(hub) == sorted([*shards, *["pytorch_model.bin.index.json"] * index])


def test_a_metaseq_file_is_downloaded(hub: Hub) -> None:
    torch.save({"model": canonical_state(tiny_opt())}, hub.folder / "restored.pt")
    assert attempt(hub)["digest"] == DIGEST


def test_a_revision_is_asked_for_by_name(hub: Hub) -> None:
    tiny_opt().save_pretrained(hub.folder)
    assert attempt(hub, revision="v1")["digest"] == DIGEST
    assert "has no revision v2: set model.revision" in attempt(hub, revision="v2")["error"]


def test_what_was_downloaded_works_offline(hub: Hub) -> None:
    tiny_opt().save_pretrained(hub.folder)
    assert attempt(hub)["digest"] == DIGEST
    hub.refusal = (500, "")
    assert attempt(hub)["digest"] == DIGEST
    assert attempt(hub, HF_HUB_OFFLINE="1")["digest"] == DIGEST
    assert attempt(hub, HF_ENDPOINT="http://127.0.0.1:9")["digest"] == DIGEST


@pytest.mark.parametrize(
    "environ", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["told", "cut"]
)
def test_offline_without_a_copy_says_what_to_do(hub: Hub, environ: dict[str, str]) -> None:
    error = attempt(hub, **environ)["error"]
    assert error.startswith(f"model.checkpoint={REPO}: ")
    assert "the hub cannot be asked" in error
    assert "download it elsewhere and set model.checkpoint=FOLDER" in error


def test_a_repo_that_is_not_there(hub: Hub) -> None:
    error = attempt(hub, name="nobody/nothing")["error"]
    assert "model.checkpoint=nobody/nothing: there is no such folder or file, and no such" in error
    assert "HF_TOKEN" in error


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "GatedRepo", "it is gated"),
        (401, "", "no such repo on the hub"),
        (404, "", "no such repo on the hub"),
        (500, "", "answered with status 500"),
    ],
    ids=["gated", "unauthorised", "not-found", "broken"],
)
def test_a_refusal_is_explained(hub: Hub, status: int, code: str, said: str) -> None:
    hub.refusal = (status, code)
    assert said in attempt(hub)["error"]


def test_a_gated_repo_that_may_be_described_is_explained(hub: Hub) -> None:
    hub.gated = True
    assert "accept its terms on the hub and set HF_TOKEN" in attempt(hub)["error"]


def test_a_repo_without_weights_says_so(hub: Hub) -> None:
    assert "has no safetensors, .bin or .pt files" in attempt(hub)["error"]


def test_a_repo_that_describes_nothing_says_so(hub: Hub) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (hub.folder / name).unlink()
    assert "has neither a config.json nor a tokenizer" in attempt(hub, "resolve")["error"]


def test_an_index_that_names_a_file_the_repo_lacks(hub: Hub) -> None:
    index = hub.folder / "model.safetensors.index.json"
    write_index(index, {"model.decoder.a": "model-00001-of-00001.safetensors"})
    error = attempt(hub)["error"]
    assert f"{index.name} of model.checkpoint={REPO} names model-00001-of-00001" in error


def test_a_tokenizer_is_fetched_alone(hub: Hub) -> None:
    (hub.folder / "config.json").unlink()
    folder = Path(attempt(hub, "fetch_tokenizer")["folder"])
    assert (folder / "tokenizer.json").is_file()
    assert weights_fetched(hub) == []


def test_a_repo_without_a_tokenizer_is_refused_by_its_own_setting(hub: Hub) -> None:
    (hub.folder / "tokenizer.json").unlink()
    error = attempt(hub, "fetch_tokenizer")["error"]
    assert error.startswith(f"model.tokenizer={REPO} has no tokenizer")
