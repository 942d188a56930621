"""What eight-bit weights lose on a text, and how long a CPU takes with them.

    python benchmarks/weights.py [quality] [products] [--text FILE] [--checkpoint DIR]

``quality`` compares logits and perplexity with those of the plain weights, in float32, on windows
of a text: FILE, or what the model itself makes up. ``products`` multiplies with the matrices of
four layers of OPT-125M, on one processor.
"""

from __future__ import annotations

import argparse
import lzma
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pluribus import Engine, SamplingParams
from pluribus.interfaces import KVStore, Network, Place, Share
from pluribus.ops import linear, scaled_linear
from pluribus.packed import packed
from pluribus.parallel.group import TensorParallel
from pluribus.quantized import DTYPES, quantize, scale_for
from pluribus_opt.config import SIZES
from pluribus_opt.model import OPTModel, OPTModelConfig

WINDOW = 512
NUM_WINDOWS = 48
ROWS = (1, 2, 4, 8, 16, 64)


class WholeText:
    """Attention within one text that is computed at once: nothing is kept."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what every token attends to; see pluribus.interfaces.KVStore."""
        q, k, v = (each.transpose(0, 1) for each in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["quality", "products"])
    parser.add_argument("--checkpoint", default="opt-stories-14m")
    parser.add_argument("--text", type=Path, help="UTF-8, or that in an .xz")
    arguments = parser.parse_args()
    if "quality" in arguments.parts:
        print_quality(arguments.checkpoint, arguments.text)
    if "products" in arguments.parts:
        print_products()


def print_quality(checkpoint: str, text: Path | None) -> None:
    """Print a line for each format."""
    windows = made_up(checkpoint) if text is None else read(checkpoint, text)
    plain = load(checkpoint, None)
    exact = [logits(plain, window) for window in windows]
    before = perplexity(exact, windows)
    deviation = float(torch.cat(exact).std())
    print(f"\n{checkpoint}, {len(windows)} windows of {WINDOW} tokens of {text or 'its own'}:")
    print(f"perplexity {before:.4f}, logits' standard deviation {deviation:.3f}\n")
    print(
        "| weights | perplexity over plain | logits' mean error | largest | same likeliest token |"
    )
    print("|---|--:|--:|--:|--:|")
    for weights in DTYPES:
        network = load(checkpoint, weights)
        rounded = [logits(network, window) for window in windows]
        ratio = perplexity(rounded, windows) / before
        pairs = list(zip(rounded, exact, strict=True))
        mean = statistics.mean(float((ours - theirs).abs().mean()) for ours, theirs in pairs)
        largest = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
        same = statistics.mean(
            float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()) for ours, theirs in pairs
        )
        print(f"| {weights} | {ratio:.4f} | {mean:.3f} | {largest:.2f} | {100 * same:.1f} % |")


def made_up(checkpoint: str) -> Sequence[Sequence[int]]:
    """Return texts that the model samples at temperature 1."""
    params = [
        SamplingParams(max_tokens=WINDOW - 1, seed=seed, ignore_eos=True)
        for seed in range(NUM_WINDOWS)
    ]
    with Engine(f"model.checkpoint={checkpoint}", "device=cpu") as engine:
        told = engine.generate([[2]] * NUM_WINDOWS, params)
    return [[*each.prompt_tokens, *each.tokens] for each in told]


def read(checkpoint: str, text: Path) -> Sequence[Sequence[int]]:
    """Return the beginning of a text in windows, each after what begins a text."""
    with lzma.open(text) if text.suffix == ".xz" else text.open("rb") as file:
        content = file.read(8 * WINDOW * NUM_WINDOWS).decode(errors="ignore")
    first, *ids = OPTModel(OPTModelConfig(checkpoint=checkpoint)).tokenizer().encode(content)
    size = WINDOW - 1
    starts = range(0, len(ids) - size, size)[:NUM_WINDOWS]
    return [[first, *ids[start : start + size]] for start in starts]


def load(checkpoint: str, weights: str | None) -> Network:
    """Return the whole network in float32 on the CPU."""
    model = OPTModel(OPTModelConfig(checkpoint=checkpoint, weights=weights))
    share = Share(rank=0, layers=range(model.spec.num_layers))
    place = Place(share=share, tensor=TensorParallel())
    return model.load(place, torch.device("cpu"), torch.float32, lambda done, total: None)


@torch.inference_mode()
def logits(network: Network, text: Sequence[int]) -> Tensor:
    """Return the logits after every token of a text, [num_tokens, vocab_size]."""
    x = network.embed(torch.tensor(text), torch.arange(len(text)))
    return network.logits(network(x, cast(KVStore, WholeText())))


def perplexity(told: Sequence[Tensor], texts: Sequence[Sequence[int]]) -> float:
    """Return how surprising texts are on average."""
    losses = [
        F.cross_entropy(logits[:-1], torch.tensor(text[1:]))
        for logits, text in zip(told, texts, strict=True)
    ]
    return math.exp(torch.stack(losses).mean())


def print_products() -> None:
    """Print a line for each number of rows, in milliseconds of processor time."""
    torch.set_num_threads(1)
    config = SIZES["opt-125m"]
    hidden, ffn = config.hidden_size, config.ffn_dim
    shapes = [(3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn)] * 4
    kinds = {"float32": [plain_product(*shape) for shape in shapes]}
    for weights in DTYPES:
        kinds[weights] = [rounded_product(weights, *shape) for shape in shapes]
    print("\nms for four layers of OPT-125M, one processor\n")
    print(f"| rows | {' | '.join(kinds)} |")
    print(f"|--:|{'--:|' * len(kinds)}")
    for rows in ROWS:
        inputs = {width: torch.randn(rows, width) for width in (hidden, ffn)}
        times = [fastest(kind, inputs) for kind in kinds.values()]
        print(f"| {rows} | {' | '.join(f'{1000 * each:.1f}' for each in times)} |")


Product = tuple[int, Callable[[Tensor], Tensor]]
"""How wide its inputs are, and the product."""


def plain_product(num_outputs: int, num_inputs: int) -> Product:
    """Return a product with random weights, as a CPU keeps them."""
    weight = packed(torch.randn(num_outputs, num_inputs))
    return num_inputs, lambda x: linear(x, weight, None)


def rounded_product(weights: str, num_outputs: int, num_inputs: int) -> Product:
    """Return a product with random weights of eight bits."""
    values, dtype = torch.randn(num_outputs, num_inputs), DTYPES[weights]
    scale = scale_for(values.abs().amax(1), dtype)
    weight = quantize(values, scale, dtype)
    return num_inputs, lambda x: scaled_linear(x, weight, scale, None)


@torch.inference_mode()
def fastest(products: Sequence[Product], inputs: dict[int, Tensor], repeats: int = 12) -> float:
    """Return the least processor time that all products take, one after another."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        for width, product in products:
            product(inputs[width])
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    main()
