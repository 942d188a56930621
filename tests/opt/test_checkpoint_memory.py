"""Loading takes the memory of the model and of one tensor, pages of files included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from opt.checkpoint_files import State
from opt.metaseq_files import fully_sharded

NUM_LAYERS, ROWS, COLUMNS = 8, 4096, 3072
TENSOR_BYTES = ROWS * COLUMNS * 2
MODEL_BYTES = NUM_LAYERS * TENSOR_BYTES
ALLOWANCE = 12_000_000
"""For what is not weights; far less than one tensor."""

MEASURE = """
import json, sys
import torch
from pluribus.parallel.group import TensorParallel
from pluribus_opt.checkpoint import resolve
from pluribus_opt.parts import Part
from pluribus_opt.quantizing import Quantizer, Scaled

def peak():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def load(path, dtype, share):
    checkpoint = resolve(path).open()
    parts = []
    for name, info in checkpoint.tensors.items():
        rows, columns = info.shape
        half_of = {"rows": (rows // 2, columns), "columns": (rows, columns // 2)}
        shape = half_of.get(share, info.shape)
        index = tuple(slice(size - some, size) for size, some in zip(info.shape, shape))
        scaled = None
        if dtype == torch.int8:
            quantizer = Quantizer("int8", torch.float16)
            scaled = Scaled(torch.empty(shape[0]), TensorParallel(), quantizer)
        parts.append(Part(name, info.shape, index, torch.empty(shape, dtype=dtype), scaled))
    checkpoint.read_into(parts, lambda done, total: None)
    return parts

def last_of(part):
    last = part.target[-1, -1]
    return last * part.scaled.scale[-1] if part.scaled else last

warm_up, path, dtype, share = sys.argv[1:]
load(warm_up, getattr(torch, dtype) if dtype == "int8" else torch.float16, share)
before = peak()
parts = load(path, getattr(torch, dtype), share)
print(json.dumps({
    "grown": peak() - before,
    "last": [round(float(last_of(part)), 5) for part in parts],
    "bytes": sum(part.target.nbytes for part in parts),
}))
"""


def layer(i: int, rows: int) -> dict[str, torch.Tensor]:
    weight = torch.full((rows, COLUMNS), i, dtype=torch.float16)
    return {f"decoder.layers.{i}.fc1.weight": weight}


def part_of(state: State, i: int) -> State:
    """Return half the rows, and what tells that it is half: square where it is whole."""
    part = {name: tensor.chunk(2)[i].clone() for name, tensor in state.items()}
    key = torch.full((COLUMNS // 2, COLUMNS), NUM_LAYERS - 1, dtype=torch.float16)
    return {**part, "decoder.layers.0.self_attn.k_proj.weight": key}


def write(layout: str, folder: Path, rows: int) -> Path:
    """Write layers of as many rows; return what to load."""
    folder.mkdir()
    shards = [layer(i, rows) for i in range(NUM_LAYERS)]
    state = {name: tensor for shard in shards for name, tensor in shard.items()}
    if layout == "safetensors":
        save_file(state, folder / "model.safetensors")
    elif layout == "safetensors-sharded":
        for i, shard in enumerate(shards):
            save_file(shard, folder / f"model-{i:05}.safetensors")
    elif layout == "bin-sharded":
        for i, shard in enumerate(shards):
            torch.save(shard, folder / f"pytorch_model-{i:05}.bin")
    elif layout == "parts":
        for i in range(2):
            torch.save({"model": part_of(state, i)}, folder / f"reshard-model_part-{i}.pt")
    elif layout == "shards":
        for i, piece in enumerate(fully_sharded(state, 3)):
            torch.save(piece, folder / f"checkpoint-model_part-0-shard{i}.pt")
    elif layout == "restored":
        torch.save({"model": state, "cfg": Path("x")}, folder / "restored.pt")
    else:
        is_zip = layout == "bin"
        file = folder / "pytorch_model.bin"
        torch.save(state, file, _use_new_zipfile_serialization=is_zip)
    return folder


def measure(folder: Path, layout: str, dtype: str, share: str) -> dict[str, Any]:
    """Load a share of each tensor in a new process; return its bytes and the peak's growth."""
    small = write(layout, folder / "small", 4)
    large = write(layout, folder / "large", ROWS)
    command = [sys.executable, "-c", MEASURE, str(small), str(large), dtype, share]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, Any] = json.loads(output)
    assert {*range(NUM_LAYERS)} == {*measured["last"]}
    return measured


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "layout",
    ["safetensors", "safetensors-sharded", "bin", "bin-sharded", "bin-legacy", "restored"],
)
def test_peak_memory_is_the_model_and_one_tensor(tmp_path: Path, layout: str, dtype: str) -> None:
    measured = measure(tmp_path, layout, dtype, "whole")
    assert measured["bytes"] == MODEL_BYTES * (2 if dtype == "float32" else 1)
    at_most = measured["bytes"] + TENSOR_BYTES + ALLOWANCE
    assert measured["bytes"] - ALLOWANCE < measured["grown"] < at_most


@pytest.mark.parametrize("share", ["whole", "columns"])
@pytest.mark.parametrize("layout", ["safetensors", "bin", "parts", "shards"])
def test_quantising_takes_the_eight_bits_and_one_tensor(
    tmp_path: Path, layout: str, share: str
) -> None:
    measured = measure(tmp_path, layout, "int8", share)
    at_most = measured["bytes"] + TENSOR_BYTES + ALLOWANCE
    assert measured["bytes"] - ALLOWANCE < measured["grown"] < at_most


@pytest.mark.parametrize("share", ["rows", "columns"])
@pytest.mark.parametrize("layout", ["safetensors", "parts", "shards"])
def test_peak_memory_of_a_rank_is_its_share_and_one_tensor(
    tmp_path: Path, layout: str, share: str
) -> None:
    measured = measure(tmp_path, layout, "float16", share)
    at_most = measured["bytes"] + TENSOR_BYTES + ALLOWANCE
    assert measured["bytes"] - ALLOWANCE < measured["grown"] < at_most
