"""Kernels compile for every device that is supported, and take no more of it than there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("architectures.py")
KERNELS = {
    "_add_layer_norm",
    "_all_reduce",
    "_begin_pass",
    "_decode",
    "_decode_alone",
    "_dequantize",
    "_end_pass",
    "_few_rows_linear",
    "_prefill",
    "_sample",
    "_sparse_linear",
    "_write",
}


@pytest.mark.parametrize(
    ("capability", "kibibytes"),
    [(80, 164), (89, 100), (90, 228), (100, 228), (120, 100)],
    ids=["A100", "RTX 4090", "H100", "B200", "RTX 5090"],
)
def test_kernels_compile_and_fit(capability: int, kibibytes: int) -> None:
    shared_memory = kibibytes << 10
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), str(capability), str(shared_memory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    compiled = json.loads(done.stdout)
    assert {name for name, _, _ in compiled} == KERNELS
    # A program may have all but 1 KiB of a multiprocessor's.
    room = shared_memory - 1024
    assert not [(name, shared) for name, shared, _ in compiled if shared > room]
    assert not [name for name, _, waits in compiled if any(waits)], "registers are lost too soon"
    if capability == 90:
        assert {name for name, _, waits in compiled if waits} == {"_few_rows_linear", "_prefill"}
