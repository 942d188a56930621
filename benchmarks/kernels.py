"""What attention and linears take on a CUDA device, beside what copying and cuBLAS take.

    python benchmarks/kernels.py [attention] [prompts] [linears] [--models opt-6.7b]
                                 [--rows 8 64 256] [--contexts 512 1024] [--tokens 2048 8192]

``attention`` decodes a token for each row over paged keys and values, and compares the bytes a
second that it reads with those that a copy on the device reads and writes. ``prompts`` attends with
prompts of so many tokens in all, and again with torch's own attention. ``linears`` computes a
layer's norms and four linears as the network does, and again with cuBLAS for all of them. What is
read is that of different layers, too many for the cache, but for prompts, which have just been
computed. Both sides are replayed from graphs, by turns.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus import ops
from pluribus.cuda.arrival import Arrivals
from pluribus.cuda.graphs import GraphPool
from pluribus.cuda.packing import PackedRows
from pluribus.interfaces.device_store import Tiles
from pluribus.step import Row
from pluribus_caches.kernels.decode_attention import Splits, decode
from pluribus_caches.kernels.prefill_attention import TILE, prefill
from pluribus_caches.kernels.texts import Texts
from pluribus_caches.kv.cuda_store import NUM_PROGRAMS
from pluribus_opt.config import SIZES, OPTConfig

PARTS = ("attention", "prompts", "linears")
BLOCK_SIZE = 16
CACHE_BYTES = 400 << 20
"""That layers have together, at least: eight times the cache of an H100."""
EPS = 1e-5
NUM_TURNS = 10
"""Times that prompts attend in each run."""
MICRO, GIGA, TERA = 1e6, 1e9, 1e12

Run = Callable[[], None]
Linear = Callable[..., Tensor]


class Device:
    """Makes tensors of a dtype on the device, and times what runs there.

    Args:
        dtype: of weights, keys and values.
        repeats: that a time is the median of.
    """

    def __init__(self, dtype: torch.dtype, repeats: int) -> None:
        self.device = torch.device("cuda")
        self.dtype = dtype
        self._repeats = repeats

    def random(self, *size: int, scale: float = 1.0) -> Tensor:
        """Return normal numbers."""
        return torch.randn(size, device=self.device, dtype=self.dtype) * scale

    def seconds(self, *runs: Run) -> list[float]:
        """Return what each run takes, replayed, by turns."""
        pool = GraphPool(self.device)
        pool.rehearse(runs)
        replays = [pool.capture(run) for run in runs]
        taken: list[list[float]] = [[] for _ in runs]
        for _ in range(self._repeats):
            for replay, times in zip(replays, taken, strict=True):
                times.append(self._seconds(replay))
        return list(map(statistics.median, taken))

    def _seconds(self, run: Run) -> float:
        arrivals = Arrivals(self.device)
        started = arrivals.mark()
        run()
        ended = arrivals.mark()
        ended.wait()
        return ended.seconds_since(started)


def num_layers(bytes_each: int) -> int:
    """Return how many different layers it takes to be too many for the cache."""
    return max(2, -(-CACHE_BYTES // bytes_each))


def print_attention(device: Device, arguments: argparse.Namespace) -> None:
    """Print the bandwidth of each model's attention, by rows and tokens before each of them.

    Several rows have texts that are all as long, and then texts of up to twice that.
    """
    print("\n| model | rows | tokens each | us a layer | GB/s | copy GB/s | of that |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    source = torch.zeros(CACHE_BYTES, dtype=torch.uint8, device=device.device)
    target = torch.empty_like(source)

    def copy_once() -> None:
        target.copy_(source)

    cases = itertools.product(arguments.models, arguments.rows, arguments.contexts)
    for model, num_rows, context in cases:
        for least in (context, 0) if num_rows > 1 else (context,):
            # The longest comes first, as it does in the engine.
            lengths = torch.linspace(2 * context - least, least, num_rows).long()
            bytes_each = 2 * int(lengths.sum()) * SIZES[model].hidden_size * device.dtype.itemsize
            count = num_layers(bytes_each)
            ours, copy = device.seconds(attention(device, SIZES[model], lengths, count), copy_once)
            rate, most = count * bytes_each / ours / GIGA, 2 * CACHE_BYTES / copy / GIGA
            tokens = f"{least} to {2 * context}" if least < context else context
            cells = (model, num_rows, tokens, f"{ours / count * MICRO:.1f}", f"{rate:.0f}")
            print(f"| {' | '.join(map(str, cells))} | {most:.0f} | {rate / most:.0%} |")


def attention(device: Device, config: OPTConfig, lengths: Tensor, count: int) -> Run:
    """Return what attends in so many layers to texts so long; their blocks lie anywhere."""
    num_rows, num_heads, head_dim = len(lengths), config.num_attention_heads, config.head_dim
    width = int(lengths.max()) // BLOCK_SIZE + 1
    num_blocks = num_rows * width
    size = (2, num_heads, num_blocks * BLOCK_SIZE, head_dim)
    pools = [device.random(*size) for _ in range(count)]
    table = torch.randperm(num_blocks, device=device.device).to(torch.int32).view(-1, width)
    positions = lengths.to(device.device)
    where = (Texts(table, BLOCK_SIZE), torch.arange(num_rows, device=device.device), positions)
    splits = Splits.make(num_rows, num_heads, head_dim, NUM_PROGRAMS, device.device)
    query, key, value = device.random(num_rows, 3, num_heads, head_dim).unbind(1)

    def attend() -> None:
        for pool in pools:
            decode((query, key, value), pool, *where, splits)

    return attend


def print_prompts(device: Device, arguments: argparse.Namespace) -> None:
    """Print what attention of prompts takes, by tokens of a step and of each prompt.

    Half of what multiplies queries and keys counts: no token attends to those after it.
    """
    print("\n| model | prompts | tokens each | ours us | torch us | ratio | TFLOP/s |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    cases = itertools.product(arguments.models, arguments.tokens, arguments.contexts)
    for model, num_tokens, length in cases:
        num_prompts = max(1, num_tokens // length)
        ours, theirs = device.seconds(*prompts(device, SIZES[model], num_prompts, length))
        flop = 2 * num_prompts * length**2 * SIZES[model].hidden_size
        times = (f"{t / NUM_TURNS * MICRO:.1f}" for t in (ours, theirs))
        cells = (model, num_prompts, length, *times, f"{theirs / ours:.2f} x")
        print(f"| {' | '.join(map(str, cells))} | {NUM_TURNS * flop / ours / TERA:.0f} |")


def prompts(device: Device, config: OPTConfig, num_prompts: int, length: int) -> tuple[Run, Run]:
    """Return what attends with prompts that begin their texts, and torch's own that does."""
    packed = PackedRows.make([Row(slot, 0, length, True) for slot in range(num_prompts)], TILE)
    tiles = packed.tile_rows, packed.tile_starts, packed.tile_ends, packed.alone
    columns = packed.slots, packed.positions, *tiles
    slots, positions, *rest = (torch.from_numpy(column).to(device.device) for column in columns)
    size = (config.num_attention_heads, config.head_dim)
    query, key, value = device.random(num_prompts * length, 3, *size).unbind(1)
    pool = device.random(2, size[0], BLOCK_SIZE, size[1])  # nothing of it is read
    table = torch.zeros(num_prompts, 1, dtype=torch.int32, device=device.device)
    where = (pool, Texts(table, BLOCK_SIZE), slots, positions, Tiles(*rest))
    out = torch.empty_like(query)
    until = length * torch.arange(num_prompts + 1, dtype=torch.int32, device=device.device)
    lengths = (until, until, length, length)

    def ours() -> None:
        for _ in range(NUM_TURNS):
            prefill((query, key, value), *where, out)

    def theirs() -> None:
        for _ in range(NUM_TURNS):
            torch.ops.aten._flash_attention_forward(query, key, value, *lengths, 0.0, True, False)

    return ours, theirs


def print_linears(device: Device, arguments: argparse.Namespace) -> None:
    """Print what the norms and linears of a layer of each model take, by rows."""
    print("\n| model | rows | ours us | cuBLAS us | ratio |")
    print("|---|--:|--:|--:|--:|")
    for model in arguments.models:
        layers = weights(device, SIZES[model].hidden_size, SIZES[model].ffn_dim)
        packed = [[ops.packed(weight) for weight in layer] for layer in layers]
        biases = [torch.zeros_like(weight[:, 0]) for weight in layers[0]]
        vectors = torch.ones_like(biases[1]), biases
        for num_rows in arguments.rows:
            x = device.random(num_rows, SIZES[model].hidden_size)
            ours, theirs = device.seconds(
                partial(run_layers, packed, vectors, x, ops.linear),
                partial(run_layers, layers, vectors, x, cublas),
            )
            cells = (num_rows, *(f"{t / len(layers) * MICRO:.1f}" for t in (ours, theirs)))
            print(f"| {model} | {' | '.join(map(str, cells))} | {theirs / ours:.2f} x |")


def weights(device: Device, hidden_size: int, ffn_dim: int) -> list[list[Tensor]]:
    """Return the four matrices of each of enough layers."""
    h, f = hidden_size, ffn_dim
    shapes = ((3 * h, h), (h, h), (f, h), (h, f))
    bytes_each = device.dtype.itemsize * sum(rows * columns for rows, columns in shapes)
    count = num_layers(bytes_each)
    return [[device.random(*shape, scale=0.02) for shape in shapes] for _ in range(count)]


def run_layers(
    layers: Sequence[Sequence[Tensor]],
    vectors: tuple[Tensor, Sequence[Tensor]],
    x: Tensor,
    linear: Linear,
) -> None:
    """Run layers without their attention: what goes into each linear comes from one before.

    Args:
        layers: the four matrices of each.
        vectors: the weight of all norms; the biases of a layer's linears, the second of which is
            that of norms, too.
        x: what goes into each layer, [num_rows, hidden_size].
        linear: computes a linear.
    """
    size = x.shape[1]
    ones, biases = vectors
    for qkv, out, fc1, fc2 in layers:
        normed = ops.add_layer_norm(x, None, ones, biases[1], EPS)[1]
        attended = linear(normed, qkv, biases[0])[:, :size].contiguous()
        delta = linear(attended, out, biases[1])
        normed = ops.add_layer_norm(x, delta, ones, biases[1], EPS)[1]
        linear(linear(normed, fc1, biases[2], relu=True), fc2, biases[3], has_zeros=True)


def cublas(
    x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False, has_zeros: bool = False
) -> Tensor:
    """Return what ``ops.linear`` does, by cuBLAS."""
    if relu:
        return torch._addmm_activation(bias, x, weight.t())
    return F.linear(x, weight, bias)


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description="What kernels take on a CUDA device.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--models", nargs="+", default=["opt-6.7b"], choices=SIZES)
    parser.add_argument("--rows", nargs="+", type=int, default=[8, 64, 256])
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(unknown)}; choose of {', '.join(PARTS)}")
    if min(arguments.rows + arguments.contexts + arguments.tokens) < 1:
        parser.error("--rows, --contexts and --tokens must be at least 1")
    parts = arguments.parts or PARTS
    if "prompts" in parts and min(arguments.contexts) < 2:
        parser.error("--contexts must be at least 2 for prompts: a token alone is decoded")
    if not torch.cuda.is_available():
        sys.exit("kernels.py times a CUDA device, and there is none")
    device = Device(getattr(torch, arguments.dtype), arguments.repeats)
    with torch.inference_mode():
        if "attention" in parts:
            print_attention(device, arguments)
        if "prompts" in parts:
            print_prompts(device, arguments)
        if "linears" in parts:
            print_linears(device, arguments)


if __name__ == "__main__":
    main()
