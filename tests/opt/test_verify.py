"""Verifying: everything about a checkpoint, and everything that is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opt.checkpoint_files import NOT_SERVED, canonical_state, tiny_opt
from opt.metaseq_files import LAYOUTS
from pluribus.errors import ConfigError
from pluribus_opt.model import OPTModel, OPTModelConfig

MODEL = tiny_opt(num_attention_heads=8)


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The architecture, apart from the weights."""
    (file := tmp_path / "opt.json").write_text(json.dumps(MODEL.config.to_dict()))
    return str(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "checkpoint").mkdir()
    return folder


def report(path: Path, config: str | None = None) -> dict[str, Any]:
    settings = OPTModelConfig(checkpoint=str(path), config=config)
    return OPTModel.verify(settings, lambda done, total: None).as_json()


def test_a_checkpoint_is_described(folder: Path, config: str) -> None:
    LAYOUTS["parts-2"](MODEL, folder)
    found = report(folder, config)
    assert found["layout"] == "metaseq's model-parallel parts, 2 files"
    assert found["compared"]
    assert found["problems"] == ()
    assert len(found["fingerprint"]) == 64
    [fc1] = [t for t in found["tensors"] if t["name"] == "decoder.layers.0.fc1.weight"]
    assert (fc1["shape"], fc1["dtype"], fc1["num_not_finite"]) == ((64, 32), "float32", 0)
    assert fc1["files"] == ("reshard-model_part-0.pt", "reshard-model_part-1.pt")
    assert [file["file"] for file in found["files"]] == list(fc1["files"])


def test_files_have_the_checksums_that_sha256sum_prints(folder: Path) -> None:
    LAYOUTS["safetensors-sharded"](MODEL, folder)
    files = report(folder)["files"]
    names = [file["file"] for file in files]
    printed = subprocess.run(
        ["sha256sum", *names], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    assert printed == "".join(f"{file['sha256']}  {file['file']}\n" for file in files)
    assert [file["size"] for file in files] == [(folder / name).stat().st_size for name in names]


def test_a_tensor_has_the_same_checksum_in_every_layout(tmp_path: Path, config: str) -> None:
    found = {}
    for layout, write in LAYOUTS.items():
        (folder := tmp_path / layout).mkdir()
        write(MODEL, folder)
        beside = None if (folder / "config.json").exists() else config
        tensors = report(folder, beside)["tensors"]
        names = {t["name"]: t["sha256"] for t in tensors if t["name"] != "lm_head.weight"}
        found[layout] = tuple(sorted(names.items()))
    assert len(set(found.values())) == 1


def test_numbers_that_are_not_finite_are_counted_by_tensor(folder: Path, config: str) -> None:
    state = {name: tensor.clone() for name, tensor in canonical_state(MODEL).items()}
    state["decoder.layers.1.fc1.weight"][3:5, 7] = torch.nan
    state["decoder.final_layer_norm.bias"][0] = torch.inf
    save_file(state, folder / "model.safetensors")
    problems = "\n".join(report(folder, config)["problems"])
    assert "decoder.layers.1.fc1.weight holds 2 of 2048 numbers that are not finite" in problems
    assert "decoder.final_layer_norm.bias holds 1 of 32" in problems


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("is_compared", [True, False], ids=["compared", "alone"])
@pytest.mark.parametrize("dtype", NOT_SERVED, ids=str)
def test_a_dtype_that_cannot_be_served_is_a_problem(
    folder: Path, config: str, dtype: torch.dtype, is_compared: bool, name: str
) -> None:
    numbers = torch.zeros(64 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    state = {**canonical_state(MODEL), "decoder.layers.1.fc1.bias": numbers}
    if name.endswith("safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    found = report(folder, config if is_compared else None)
    kind = str(dtype).removeprefix("torch.")
    assert found["problems"][-1] == (
        f"decoder.layers.1.fc1.bias: of {kind}, but weights can be of float64, float32, float16, "
        "bfloat16 only"
    )
    assert len(found["problems"]) == 1 + is_compared
    [fc1] = [t for t in found["tensors"] if t["name"] == "decoder.layers.1.fc1.bias"]
    assert (fc1["dtype"], fc1["num_not_finite"]) == (kind, None)


def test_what_does_not_fit_the_architecture_is_a_problem(folder: Path, config: str) -> None:
    state = canonical_state(MODEL)
    del state["decoder.layers.0.fc2.bias"]
    save_file({**state, "decoder.layers.7.fc2.bias": torch.ones(3)}, folder / "model.safetensors")
    [problem] = report(folder, config)["problems"]
    assert "1 missing:\n  decoder.layers.0.fc2.bias [32]" in problem
    assert "1 unexpected:\n  decoder.layers.7.fc2.bias [3]" in problem


def test_without_an_architecture_nothing_is_compared(folder: Path) -> None:
    LAYOUTS["singleton"](MODEL, folder)
    found = OPTModel.verify(OPTModelConfig(checkpoint=str(folder)), lambda done, total: None)
    assert not found.as_json()["compared"]
    assert "set model.size or model.config" in found.as_text()
    assert not found.problems


def test_files_that_cannot_be_read_are_a_problem(folder: Path, config: str) -> None:
    LAYOUTS["parts-4"](MODEL, folder)
    (folder / "reshard-model_part-2.pt").unlink()
    [problem] = report(folder, config)["problems"]
    assert "missing: reshard-model_part-2.pt" in problem


@pytest.fixture
def converted(folder: Path, tmp_path: Path) -> Path:
    MODEL.save_pretrained(folder)
    OPTModel.convert(
        OPTModelConfig(checkpoint=str(folder)),
        to=(to := tmp_path / "converted"),
        dtype=None,
        max_shard_size=40_000,
        progress=lambda done, total: None,
    )
    return to


def test_a_conversion_is_compared_with_its_own_checksums(converted: Path) -> None:
    assert not report(converted)["problems"]
    file = converted / "model-00002-of-00003.safetensors"
    state = load_file(file)
    next(iter(state.values())).view(-1)[0] += 1
    save_file(state, file, metadata={"format": "pt"})
    problems = report(converted)["problems"]
    assert any(str(file) in problem for problem in problems)
    (converted / "generation_config.json").unlink()
    assert f"{converted / 'generation_config.json'} is missing" in report(converted)["problems"]


def test_an_unfinished_conversion_is_a_problem(converted: Path) -> None:
    manifest = converted / "pluribus-convert.json"
    manifest.write_text(manifest.read_text().replace('"finished": true', '"finished": false'))
    [problem] = report(converted)["problems"]
    assert "the conversion is not finished; run it again" in problem


def test_a_manifest_that_makes_no_sense_is_a_problem(converted: Path) -> None:
    (converted / "pluribus-convert.json").write_text('{"files": 3}')
    [problem] = report(converted)["problems"]
    assert "pluribus-convert.json makes no sense" in problem


def test_random_weights_are_not_verified() -> None:
    with pytest.raises(ConfigError, match="is no files"):
        OPTModel.verify(OPTModelConfig(checkpoint="random"), lambda done, total: None)


def pluribus(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pluribus.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)


def test_the_verbs_convert_and_verify(tmp_path: Path, folder: Path, config: str) -> None:
    LAYOUTS["parts-2"](MODEL, folder)
    settings = [f"model.checkpoint={folder}", f"model.config={config}"]
    result = pluribus("convert", *settings, "to=out", "max_shard_size=40KB", cwd=tmp_path)
    assert (result.returncode, result.stdout.split()[0]) == (0, "Converted."), result.stderr
    again = pluribus("convert", *settings, "to=out", "max_shard_size=40KB", cwd=tmp_path)
    assert again.returncode == 1
    assert "to=out holds a finished conversion" in again.stderr

    verified = pluribus("verify", "model.checkpoint=out", "format=json", cwd=tmp_path)
    assert verified.returncode == 0
    found = json.loads(verified.stdout)
    assert (found["problems"], len(found["files"])) == ([], 3)
    (tmp_path / "out" / "model-00003-of-00003.safetensors").write_bytes(b"gone")
    verified = pluribus("verify", "model.checkpoint=out", cwd=tmp_path)
    assert verified.returncode == 1
    assert "problem: " in verified.stderr
    assert "model-00003-of-00003.safetensors" in verified.stderr
    assert verified.stdout.endswith("1 problem(s)\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert",), "to is not set: pluribus convert model.checkpoint=SOURCE to=FOLDER"),
        (("convert", "to=a", "dtype=int8"), "dtype must be one of auto, float32"),
        (("convert", "to=a", "max_shard_size=big"), "max_shard_size must be a size such as"),
        (("convert", "to=a", "model.checkpoint=/no/such"), "/no/such"),
        (("verify", "format=xml"), "format must be one of text, json; got 'xml'"),
        (("verify", "model.checkpoint=/no/such"), "/no/such"),
    ],
    ids=" ".join,
)
def test_a_wrong_setting_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = pluribus(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
