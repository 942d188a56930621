"""Loading takes the memory of the model and of one tensor, pages of files included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

NUM_LAYERS, ROWS, COLUMNS = 8, 4096, 3072
TENSOR_BYTES = ROWS * COLUMNS * 2
MODEL_BYTES = NUM_LAYERS * TENSOR_BYTES
ALLOWANCE = 12_000_000
"""For what is not weights; far less than one tensor."""

MEASURE = """
import json, sys
import torch
from pluribus_opt.checkpoint import resolve
from pluribus_opt.parts import Part

def peak():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

def load(path, dtype):
    checkpoint = resolve(path).open()
    parts = [
        Part(name, info.shape, (slice(None),) * 2, torch.empty(info.shape, dtype=dtype))
        for name, info in checkpoint.tensors.items()
    ]
    checkpoint.read_into(parts, lambda done, total: None)
    return [float(part.target[-1, -1]) for part in parts]

warm_up, path, dtype = sys.argv[1:]
load(warm_up, torch.float16)
before = peak()
last = load(path, getattr(torch, dtype))
print(json.dumps({"grown": peak() - before, "last": last}))
"""


def layer(i: int, rows: int) -> dict[str, torch.Tensor]:
    weight = torch.full((rows, COLUMNS), i, dtype=torch.float16)
    return {f"decoder.layers.{i}.fc1.weight": weight}


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
    elif layout == "restored":
        torch.save({"model": state, "cfg": Path("x")}, folder / "restored.pt")
    else:
        is_zip = layout == "bin"
        file = folder / "pytorch_model.bin"
        torch.save(state, file, _use_new_zipfile_serialization=is_zip)
    return folder


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "layout",
    ["safetensors", "safetensors-sharded", "bin", "bin-sharded", "bin-legacy", "restored"],
)
def test_peak_memory_is_the_model_and_one_tensor(tmp_path: Path, layout: str, dtype: str) -> None:
    small = write(layout, tmp_path / "small", 1)
    large = write(layout, tmp_path / "large", ROWS)
    command = [sys.executable, "-c", MEASURE, str(small), str(large), dtype]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured = json.loads(output)
    assert sorted(measured["last"]) == list(range(NUM_LAYERS))
    model = MODEL_BYTES * (2 if dtype == "float32" else 1)
    assert model - ALLOWANCE < measured["grown"] < model + TENSOR_BYTES + ALLOWANCE
