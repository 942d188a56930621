"""Compile every kernel for devices that are not here, and print what each takes.

    python architectures.py CAPABILITY BYTES

``CAPABILITY`` is 86 for 8.6, ``BYTES`` the shared memory of one of that device's multiprocessors.
Triton's interpreter would take the kernels' place: run it in a process that has none.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from pluribus.interfaces.device_store import Tiles
from pluribus.kernels import (
    all_reduce,
    launching,
    linear,
    linear_config,
    norm,
    passes,
    quantized,
    sample,
    sparse_linear,
)
from pluribus.kernels.passes import Rows
from pluribus_caches.kernels import decode_attention, prefill_attention
from pluribus_caches.kernels.texts import Texts, write

HALF = torch.float16
CPU = torch.device("cpu")
NUM_SLOTS = 64
INTEGERS = torch.zeros(NUM_SLOTS + 1, dtype=torch.int64)
FLOATS = torch.zeros(NUM_SLOTS)
LOOP = re.compile(r"^(\$L\w+):(.*?)\bbra\s+\1;", re.DOTALL | re.MULTILINE)
EVENT = re.compile(r"wgmma\.mma_async[^{;]*\{[^}]*\}, *(.)|wgmma\.wait_group\D*(\d+)")
"""A product, and what its first factor begins with: ``{`` where it is in registers; or a wait."""


class Absent:
    """A device that there is none of, as far as Triton's compiler asks about it."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def pretend(capability: int, shared_memory: int) -> None:
    """Have kernels launched as they would be on such a device."""
    driver.set_active(Absent(capability))
    is_early = capability >= 90
    early = {"EARLY": True, "launch_pdl": True} if is_early else {"EARLY": False}
    replace(launching, "_early", lambda device: early)
    processor = linear_config.Multiprocessor(capability // 10, shared_memory)
    replace(linear, "_processor", lambda device: processor)
    replace(prefill_attention, "shared_memory", lambda device: shared_memory)
    replace(quantized, "_has_float8", lambda device: capability >= 89)


def replace(module: object, name: str, function: Callable[..., object]) -> None:
    assert hasattr(module, name)
    setattr(module, name, function)


def halves(*size: int) -> Tensor:
    return torch.empty(size, dtype=HALF)


def run_linears(hidden_size: int) -> None:
    """Ask for the linears of a layer, for few rows and more, plain and in eight bits."""
    dtypes = (HALF, torch.int8, torch.float8_e4m3fn)
    shapes = ((3, 1), (1, 1), (4, 1), (1, 4))
    for (out, in_), num_rows, dtype in itertools.product(shapes, (1, 20, 64), dtypes):
        rows, columns = out * hidden_size, in_ * hidden_size
        choose = linear_config.few_rows_config if dtype == HALF else linear_config.eight_bit_config
        if config := choose(num_rows, rows, columns):
            weight, scale = torch.empty(rows, columns, dtype=dtype), torch.empty(rows)
            linear.few_rows_linear(
                halves(num_rows, columns),
                weight,
                halves(rows),
                scale=None if dtype == HALF else scale,
                relu=out == 4,
                config=config,
            )
    for (out, in_), num_rows in itertools.product(shapes, (1, 20)):
        rows, columns = out * hidden_size, in_ * hidden_size
        x, weight, bias = halves(num_rows, columns), halves(columns, rows).t(), halves(rows)
        config = linear_config.few_rows_config(num_rows, rows, columns, by_columns=True)
        assert config
        linear.few_rows_linear(x, weight, bias, relu=out == 4, config=config)
        if in_ == 4:
            sparse_linear.sparse_linear(x[:1], weight, bias)
    for dtype in dtypes[1:]:
        weight = torch.empty(64, 64, dtype=dtype)
        quantized.dequantize(weight, torch.empty(64), halves(64, 64))


def run_norms(hidden_size: int) -> None:
    """Ask for a norm, and for sums over ranks with and without one."""
    x, delta = halves(8, hidden_size), halves(8, hidden_size)
    weight, bias = halves(hidden_size), halves(hidden_size)
    norm.add_layer_norm(x, delta, weight, bias, 1e-5)
    for size, num_rows in ((2, 8), (4, 2**21 // hidden_size)):
        peers = all_reduce.Peers.new(torch.zeros(size, dtype=torch.int64), 0, 2**22, 132)
        x, delta = halves(num_rows, hidden_size), halves(num_rows, hidden_size)
        all_reduce.all_reduce(delta, peers)
        all_reduce.add_layer_norm(x, delta, weight, bias, 1e-5, peers)


def run_attention(num_heads: int, head_dim: int) -> None:
    """Ask for all that a KV store launches."""
    pool = halves(2, num_heads, 1024, head_dim)
    texts = Texts(torch.zeros(NUM_SLOTS + 1, 64, dtype=torch.int32), 32)
    for num_rows, num_splits in ((1, 32), (2, 16), (5, 8), (NUM_SLOTS, 1)):
        query, key, value = halves(num_rows, 3, num_heads, head_dim).unbind(1)
        places = INTEGERS[:num_rows], INTEGERS[:num_rows]
        splits = decode_attention.Splits.make(num_rows, num_heads, head_dim, 400, CPU)
        assert splits.count == num_splits
        out = decode_attention.decode((query, key, value), pool, texts, *places, splits)
    tiles = Tiles(*[INTEGERS[:1]] * 4)
    write(key, value, pool, texts, *places)
    decode_attention.decode_alone((query, key, value), pool, texts, *places, tiles.alone, out)
    prefill_attention.prefill((query, key, value), pool, texts, *places, tiles, out)


def run_passes() -> None:
    """Ask for what begins and ends a pass, and for choosing tokens."""
    places = INTEGERS, torch.zeros(passes.NUM_ENDS, len(INTEGERS), dtype=torch.int64), INTEGERS
    tokens = torch.zeros(len(INTEGERS), 2049, dtype=torch.int64)
    texts, rows = passes.Texts(tokens, *places, INTEGERS), Rows.make(NUM_SLOTS, 8, CPU)
    passes.begin_pass(texts, rows)
    passes.end_pass(texts, rows, rows.tokens)
    choices = sample.Choices(FLOATS, INTEGERS, FLOATS, FLOATS, INTEGERS)
    for dtype in (HALF, torch.float32):
        logits = torch.empty(NUM_SLOTS, 50272, dtype=dtype)
        sample.sample(logits, 50265, rows.slots, rows.positions, choices)


def waits(ptx: str) -> list[int]:
    """Return, of each loop that multiplies from registers, what the next wait leaves under way.

    ptxas gives the registers of a product (``wgmma``) to somebody else from the first wait after
    it, whether or not that is for the product.
    """
    found = []
    for loop in LOOP.finditer(ptx):
        events = EVENT.findall(loop[2])
        from_registers = [at for at, (factor, _) in enumerate(events) if factor == "{"]
        if from_registers:
            last = from_registers[-1] + 1
            found.append(next(int(left) for _, left in events[last:] + events[:last] if left))
    return found


def main() -> None:
    """Print each kernel's name, bytes and waits, once for each way in which it is compiled."""
    pretend(*map(int, sys.argv[1:]))
    found: dict[Hashable, Any] = {}
    launching._asked_for.set(found)
    for hidden_size in (768, 4096):
        run_linears(hidden_size)
    for hidden_size in (768, 9216):
        run_norms(hidden_size)
    for head_dim in (64, 80, 128):
        run_attention(12, head_dim)
    run_passes()
    compiled = [
        (kernel.metadata.name, kernel.metadata.shared, waits(kernel.asm["ptx"]))
        for kernel in found.values()
    ]
    print(json.dumps(compiled))


if __name__ == "__main__":
    main()
