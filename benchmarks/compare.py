"""Pluribus beside vLLM: the same requests, random weights, float16, prefix caches off.

    python benchmarks/compare.py [WORKLOAD ...] [--models opt-125m] [--gpus 1] [--vllm DIR]

Each side runs offline in a process of its own, by turns for each model, every workload several
times; figures are medians, the first round left out. Both split a model over ``--gpus``,
tensor-parallel. ``--vllm`` is where vLLM is installed, beside which this script's own packages are
found; without it only our side runs. Prints a line of JSON for each result, then a table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pluribus_opt.config import SIZES

MODELS = ("opt-125m", "opt-1.3b", "opt-6.7b")
SAMPLED = 0.8
TOP_P = 0.9
SLOTS = 512
RESULT = '{"side"'
END = "that was all\n"
SECONDS_TO_FREE = 3.0
"""That a device may take to have its memory back from processes that have ended."""

Work = list[tuple[list[int], int]]
"""Prompts in token ids, and how many tokens to generate after each."""


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of one side at one workload; ``best`` and ``worst`` are seconds of a round."""

    side: str
    model: str
    workload: str
    temperature: float
    tokens_per_second: float
    ms_per_token: float
    best: float
    worst: float


def fixed(num_requests: int, num_prompt: int, num_output: int, seed: int) -> Work:
    """Return requests that are all as long."""
    rng = random.Random(seed)
    prompts = [
        [2, *(rng.randrange(4, 50000) for _ in range(num_prompt - 1))] for _ in range(num_requests)
    ]
    return [(prompt, num_output) for prompt in prompts]


def mixed(num_requests: int, seed: int) -> Work:
    """Return requests as uneven as people's conversations (ShareGPT)."""
    rng = random.Random(seed)
    work = []
    for _ in range(num_requests):
        num_prompt = min(1024, max(4, int(rng.lognormvariate(4.6, 1.1))))
        num_output = min(768, max(4, int(rng.lognormvariate(4.9, 0.9))))
        work.append(([2, *(rng.randrange(4, 50000) for _ in range(num_prompt - 1))], num_output))
    return work


WORKLOADS: dict[str, tuple[Callable[[int], Work], tuple[float, ...]]] = {
    "lat1": (lambda seed: fixed(1, 32, 256, seed), (0.0,)),
    "lat8": (lambda seed: fixed(8, 32, 256, seed), (0.0,)),
    "b16": (lambda seed: fixed(16, 128, 128, seed), (0.0, SAMPLED)),
    "b64": (lambda seed: fixed(64, 128, 128, seed), (0.0,)),
    "b128": (lambda seed: fixed(128, 256, 128, seed), (0.0, SAMPLED)),
    "b256": (lambda seed: fixed(256, 128, 128, seed), (0.0, SAMPLED)),
    "mix512": (lambda seed: mixed(512, seed), (0.0,)),
    "ttft512": (lambda seed: fixed(1, 512, 1, seed), (0.0,)),
    "prefill": (lambda seed: fixed(64, 1024, 1, seed), (0.0,)),
    "long16": (lambda seed: fixed(16, 1792, 256, seed), (0.0,)),
    "long64": (lambda seed: fixed(64, 1792, 256, seed), (0.0,)),
}

Run = Callable[[Work, float], int]
"""Answers requests at a temperature; returns how many tokens came."""


def ours(model: str, arguments: argparse.Namespace) -> Run:
    """Return our side, loaded: the engine itself, stepped in this thread."""
    from pluribus import composition
    from pluribus.bench.engine import BenchEngine
    from pluribus.bench.workloads import Request
    from pluribus.plugins import discover

    overrides = [
        f"model={model}",
        "model.checkpoint=random",
        f"model.tokenizer={arguments.tokenizer}",
        "dtype=float16",
        "device=cuda",
        "cache.kv.prefix_caching=false",
        f"batcher.max_batch_size={SLOTS}",
        "batcher.max_batch_tokens=8192",
    ]
    if arguments.gpus > 1:
        overrides += ["parallel=tensor", f"parallel.size={arguments.gpus}"]
    engine = BenchEngine(composition.load("serve", overrides), discover())
    engine.__enter__()  # for as long as this process lives

    def run(work: Work, temperature: float) -> int:
        requests = [Request(tuple(prompt), num_tokens) for prompt, num_tokens in work]
        return engine.measure(requests, temperature, TOP_P if temperature else 1.0).num_tokens

    return run


def theirs(model: str, arguments: argparse.Namespace) -> Run:
    """Return vLLM's side, loaded."""
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    folder = tempfile.mkdtemp(prefix="opt-")
    AutoConfig.for_model("opt", **_architecture(model)).save_pretrained(folder)
    llm = LLM(
        model=folder,
        runner="generate",
        load_format="dummy",
        tokenizer=arguments.tokenizer,
        tensor_parallel_size=arguments.gpus,
        dtype="float16",
        max_model_len=2048,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def run(work: Work, temperature: float) -> int:
        params = [
            SamplingParams(
                temperature=temperature,
                top_p=TOP_P if temperature else 1.0,
                max_tokens=num_tokens,
                ignore_eos=True,
                detokenize=False,
            )
            for _, num_tokens in work
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in work]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return run


def _architecture(model: str) -> dict[str, int | str | list[str]]:
    size = SIZES[model]
    return {
        "architectures": ["OPTForCausalLM"],
        "vocab_size": size.vocab_size,
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_hidden_layers,
        "ffn_dim": size.ffn_dim,
        "num_attention_heads": size.num_attention_heads,
        "max_position_embeddings": size.max_position_embeddings,
        "word_embed_proj_dim": size.word_embed_proj_dim,
        "dtype": "float16",
    }


def measure(side: str, arguments: argparse.Namespace) -> None:
    """Run one side's workloads in this process and print what came of them."""
    [model] = arguments.models
    run = (ours if side == "ours" else theirs)(model, arguments)
    for name in arguments.workloads or WORKLOADS:
        make, temperatures = WORKLOADS[name]
        for temperature in temperatures:
            seconds, rates = [], []
            for round_ in range(1 + arguments.repeats):
                work = make(round_)
                started = time.perf_counter()
                num_tokens = run(work, temperature)
                seconds.append(time.perf_counter() - started)
                rates.append(num_tokens / seconds[-1])
            seconds, rates = seconds[1:], rates[1:]
            result = Result(
                side=side,
                model=model,
                workload=name,
                temperature=temperature,
                tokens_per_second=round(statistics.median(rates), 1),
                ms_per_token=round(
                    1000 * statistics.median(seconds) / max(num for _, num in work), 3
                ),
                best=round(min(seconds), 4),
                worst=round(max(seconds), 4),
            )
            print(json.dumps(asdict(result)), flush=True)
    print(END, end="", flush=True)


def measure_apart(
    side: str, model: str, arguments: argparse.Namespace
) -> tuple[list[Result], bool]:
    """Run one side in a process of its own; return what came, and whether all of it did."""
    command = [sys.executable, __file__, "--side", side, "--models", model]
    command += ["--tokenizer", arguments.tokenizer, "--repeats", str(arguments.repeats)]
    command += ["--gpus", str(arguments.gpus)]
    environment = dict(os.environ)
    if side == "vllm":
        paths = [arguments.vllm, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    results, is_whole = [], False
    with subprocess.Popen(
        [*command, *arguments.workloads],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(RESULT):
                    results.append(Result(**json.loads(line)))
                    print(line, end="", flush=True)
                elif line == END:
                    is_whole = True
                    break
        finally:
            # vLLM's own processes can keep it from ending.
            os.killpg(process.pid, signal.SIGKILL)
    if not is_whole:
        print(f"{side} {model}: failed", file=sys.stderr, flush=True)
    time.sleep(SECONDS_TO_FREE)
    return results, is_whole


def print_table(results: Sequence[Result]) -> None:
    """Print both sides beside each other, for people and for README.md."""
    sides: dict[tuple[object, ...], float] = {
        (each.side, each.model, each.workload, each.temperature): each.tokens_per_second
        for each in results
    }
    print("\n| model | workload | temperature | ours tok/s | vLLM tok/s | ratio |")
    print("|---|---|--:|--:|--:|--:|")
    for (side, *what), mine in sides.items():
        if side == "ours":
            other = sides.get(("vllm", *what))
            cells = "| |" if other is None else f"| {other:.0f} | {mine / other:.2f} x |"
            print(f"| {' | '.join(map(str, what))} | {mine:.0f} {cells}")


def main() -> None:
    """Run what the command line asks for."""
    bundled = Path(__file__).parents[1] / "plugins/opt/pluribus_opt/bundled/opt-stories-14m"
    parser = argparse.ArgumentParser(description="Pluribus beside vLLM.")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=" ".join(WORKLOADS))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--tokenizer", default=str(bundled), help="of 50,265 ids, to be fair")
    parser.add_argument("--vllm", help="the folder that vLLM is installed in")
    parser.add_argument("--gpus", type=int, default=1, help="that a model is split over")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, besides one to warm up")
    parser.add_argument("--side", choices=["ours", "vllm"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    choices = (("model", arguments.models, SIZES), ("workload", arguments.workloads, WORKLOADS))
    for kind, given, known in choices:
        if unknown := set(given) - set(known):
            parser.error(
                f"no {kind} is called {', '.join(unknown)}; choose of {', '.join(known)}; "
                "workloads come before --models"
            )
    if arguments.side:
        measure(arguments.side, arguments)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and what it has started, too
    sides = ["ours", "vllm"] if arguments.vllm else ["ours"]
    results: list[Result] = []
    is_whole = True
    for model, side in itertools.product(arguments.models, sides):
        came, is_all = measure_apart(side, model, arguments)
        results += came
        is_whole &= is_all
    print_table(results)
    if not is_whole:
        sys.exit("not all of it could be measured; what went wrong is above")


if __name__ == "__main__":
    main()
