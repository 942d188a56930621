"""How long a checkpoint takes to load on one rank and on two, each reading what it needs.

    python benchmarks/loading.py FOLDER [--model opt-13b] [--device cuda]

Writes a checkpoint of random weights into FOLDER unless one is there, 24 GiB of it for opt-13b,
and then loads it by turns, as one rank and as each of two at the same time. The first round brings
the files into memory, as far as there is room, and is left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import OPTConfig, OPTForCausalLM

import pluribus_opt
from pluribus.interfaces import Place, Share
from pluribus.parallel.group import TensorParallel
from pluribus_opt.config import SIZES
from pluribus_opt.model import OPTModel, OPTModelConfig

BUNDLED = Path(pluribus_opt.__file__).parent / "bundled" / "opt-stories-14m"
MAX_SHARD = 2 << 30


def write_checkpoint(folder: Path, size: str) -> None:
    """Write random weights in float16, in files of some gigabytes, with an index and a config."""
    architecture = SIZES[size]
    config = OPTConfig(
        vocab_size=architecture.vocab_size,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.num_hidden_layers,
        ffn_dim=architecture.ffn_dim,
        num_attention_heads=architecture.num_attention_heads,
        max_position_embeddings=architecture.max_position_embeddings,
        word_embed_proj_dim=architecture.word_embed_proj_dim,
        do_layer_norm_before=architecture.do_layer_norm_before,
        dtype="float16",
    )
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in OPTForCausalLM(config).state_dict().items()
            if name != "lm_head.weight"
        }
    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}

    def write() -> None:
        file = f"model-{len(set(files.values())):05d}.safetensors"
        save_file(shard, folder / file)
        files.update(dict.fromkeys(shard, file))
        shard.clear()

    # The same numbers over and over: making as many as there are weights would take minutes.
    numbers = torch.empty(max(shape.numel() for shape in shapes.values()), dtype=torch.float16)
    numbers.uniform_(-0.02, 0.02)
    for name, shape in shapes.items():
        shard[name] = numbers[: shape.numel()].view(shape).clone()
        if sum(tensor.nbytes for tensor in shard.values()) >= MAX_SHARD:
            write()
    write()
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)


def load(folder: Path, rank: int, size: int, where: torch.device) -> float:
    """Load one rank's share, and return how many seconds that takes."""
    model = OPTModel(OPTModelConfig(checkpoint=str(folder), tokenizer=str(BUNDLED)))
    layers = range(model.spec.num_layers)
    share = Share(rank=rank, layers=layers, tensor_rank=rank, tensor_size=size)
    place = Place(share=share, tensor=TensorParallel(rank, size))
    started = time.perf_counter()
    with torch.inference_mode():
        model.load(place, where, torch.float16, lambda done, total: None)
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter() - started


def load_by_turns(
    folder: Path, rank: int, device: str, sizes: Sequence[int], start: Barrier, times: object
) -> None:
    """Load this rank's share of each size that has one, once everybody is ready."""
    where = torch.device(device, rank) if device == "cuda" else torch.device(device)
    num_threads = torch.get_num_threads()
    torch.zeros(1, device=where)
    for at, size in enumerate(sizes):
        start.wait()
        if rank < size:
            torch.set_num_threads(max(1, num_threads // size))  # as ranks do
            times.put((at, load(folder, rank, size, where)))  # type: ignore[attr-defined]
        if device == "cuda":
            torch.cuda.empty_cache()


def seconds(folder: Path, sizes: Sequence[int], device: str) -> list[float]:
    """Return how long the slowest rank takes, each time."""
    context = multiprocessing.get_context("spawn")
    start, times = context.Barrier(max(sizes)), context.Queue()
    ranks = [
        context.Process(target=load_by_turns, args=(folder, rank, device, sizes, start, times))
        for rank in range(max(sizes))
    ]
    for each in ranks:
        each.start()
    slowest = [0.0] * len(sizes)
    for _ in range(sum(sizes)):
        at, taken = times.get(timeout=900)
        slowest[at] = max(slowest[at], taken)
    for each in ranks:
        each.join()
    return slowest


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description="Loading on one rank and on two.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="opt-13b", choices=list(SIZES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3, help="rounds, besides one to warm up")
    arguments = parser.parse_args()
    if not (arguments.folder / "config.json").exists():
        write_checkpoint(arguments.folder, arguments.model)
    taken = seconds(arguments.folder, [1, 2] * (arguments.repeats + 1), arguments.device)
    one, two = statistics.median(taken[2::2]), statistics.median(taken[3::2])
    print(json.dumps({"model": arguments.model, "one": round(one, 2), "two": round(two, 2)}))
    print("\n| model | one rank s | two ranks s | ratio |\n|---|--:|--:|--:|")
    print(f"| {arguments.model} | {one:.2f} | {two:.2f} | {two / one:.2f} |")


if __name__ == "__main__":
    main()
