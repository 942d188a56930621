"""A tiny random OPT in the workers of CPUs and of CUDA devices, and engines around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch

from kernels.device import DEVICE
from opt.reading import whole
from pluribus import Generation, KVShape, SamplingParams, TokenLogprobs
from pluribus.cuda import decoding, prefilling
from pluribus.cuda.worker import CudaWorker
from pluribus.engine.core import EngineCore, Observer
from pluribus.engine.rotation import Rotation
from pluribus.interfaces import Capability, Executor, ModelSpec
from pluribus.worker import Worker
from pluribus_batchers.continuous import ContinuousBatcher, ContinuousConfig
from pluribus_caches.kv import cuda_store
from pluribus_caches.kv.cuda_store import CudaPagedStore
from pluribus_caches.kv.paged import PagedConfig, PagedKVCache
from pluribus_caches.kv.paged_store import PagedStore
from pluribus_opt.config import OPTConfig
from pluribus_opt.decoder import OPTDecoder

CPU = torch.device("cpu")
PROMPT = (2, 50, 7, 41, 33, 33, 4, 8, 12, 29, 5)
GREEDY = SamplingParams(temperature=0.0, max_tokens=7, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.3, max_tokens=6, ignore_eos=True)
NUM_IDS = 60
"""Ids with text: fewer than the head has."""
CONFIG = OPTConfig(
    vocab_size=64,
    hidden_size=8,
    num_hidden_layers=2,
    ffn_dim=24,
    num_attention_heads=1,
    max_position_embeddings=48,
    word_embed_proj_dim=8,
)
SPEC = ModelSpec(
    name="tiny",
    num_layers=2,
    hidden_size=8,
    num_heads=1,
    head_dim=8,
    vocab_size=64,
    num_token_ids=NUM_IDS,
    max_length=48,
    eos_token_ids=(2,),
    pad_token_id=1,
    dtype="float32",
    num_parameters=0,
    num_layer_parameters=0,
    num_head_parameters=0,
)
NUM_SLOTS = 5
BLOCK_SIZE = 4
SHAPE = KVShape(
    num_layers=2, num_heads=1, head_dim=8, num_slots=NUM_SLOTS, max_length=48, num_tokens=128
)
NUM_BLOCKS = SHAPE.num_tokens // BLOCK_SIZE
MOST_TOKENS = 32
"""More than are captured."""


@contextmanager
def small_sizes() -> Iterator[None]:
    """Let what is captured, and what programs share, fit a tiny network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "SIZES", (1, 2, 4))
        patch.setattr(prefilling, "TOKENS", (4, 8, 16))
        patch.setattr(prefilling, "AT_START", 8)
        patch.setattr(prefilling, "ROWS", (1,))
        patch.setattr(cuda_store, "NUM_PROGRAMS", 2)
        yield


def config_of(num_layers: int) -> OPTConfig:
    """Return the architecture with so many layers."""
    return replace(CONFIG, num_hidden_layers=num_layers)


def shape_of(num_layers: int) -> KVShape:
    """Return the shape of a store for so many layers."""
    return replace(SHAPE, num_layers=num_layers)


@cache
def network(device: torch.device = CPU, num_layers: int = 2) -> OPTDecoder:
    """Return the network; its weights are large enough for answers that vary."""
    decoder = OPTDecoder.empty(config_of(num_layers), whole(num_layers), CPU, torch.float32)
    generator = torch.Generator().manual_seed(6)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.8, generator)
    return decoder.to(device)


class TinyWorker(CudaWorker):
    """Runs as many passes as it is told, whatever time they take."""

    def __init__(self, passes: int = 1, num_layers: int = 2) -> None:
        self.passes = passes
        with small_sizes():
            store = cuda_store_of(num_layers)
            shape = shape_of(num_layers)
            super().__init__(network(DEVICE, num_layers), store, SPEC, shape, DEVICE, MOST_TOKENS)

    @property
    def max_passes(self) -> int:
        return self.passes


def cuda_store_of(num_layers: int) -> CudaPagedStore:
    """Return an empty store for so many layers, where kernels run."""
    return CudaPagedStore(shape_of(num_layers), NUM_BLOCKS, BLOCK_SIZE, DEVICE, torch.float32)


def cpu_worker(num_layers: int = 2) -> Worker:
    """Return what a CPU runs: the oracle."""
    shape = shape_of(num_layers)
    store = PagedStore(shape, NUM_BLOCKS, BLOCK_SIZE, CPU, torch.float32)
    return Worker(network(CPU, num_layers), store, SPEC, shape, CPU)


def engine(
    executor: Executor,
    *,
    lookahead: int = 0,
    max_batch_tokens: int = 8,
    num_parts: int = 1,
    num_tokens: int = SHAPE.num_tokens,
) -> EngineCore:
    """Return an engine around an executor whose slots are all free.

    Its ledger hands out room for ``num_tokens``, or all that the executor's store has.
    """
    shape = replace(SHAPE, num_tokens=num_tokens)
    ledger = PagedKVCache(PagedConfig(block_size=BLOCK_SIZE)).ledger(shape)
    config = ContinuousConfig(max_batch_size=NUM_SLOTS, max_batch_tokens=max_batch_tokens)
    batcher = ContinuousBatcher(config, ledger)
    rotation = Rotation(num_parts, frozenset(Capability))
    return EngineCore(
        batcher, ledger, executor, SPEC.eos_token_ids, Observer(), lookahead, rotation
    )


def ask(number: int, prompt: Sequence[int], params: SamplingParams) -> Generation:
    """Return a generation; without a seed of its own, its number is that."""
    if params.seed is None:
        params = replace(params, seed=number)
    return Generation(id=number, prompt=tuple(prompt), params=params)


def run(core: EngineCore, generations: Sequence[Generation]) -> None:
    """Run generations that come at once until all of them have ended."""
    with small_sizes():
        for generation in generations:
            core.add(generation)
        run_while(core, lambda: core.has_work)


def run_while(core: EngineCore, condition: Callable[[], bool]) -> None:
    """Step for as long as a condition holds, and check the ledger after every step."""
    for _ in range(1000):
        if not condition():
            return
        core.step()
        core.ledger.check_integrity()
    raise AssertionError("the engine never came to rest")


def alone(worker: Worker, generation: Generation) -> Generation:
    """Return what becomes of a generation that nobody shares the worker with."""
    copy = Generation(id=generation.id, prompt=generation.prompt, params=generation.params)
    run(engine(worker, max_batch_tokens=64), [copy])
    return copy


def assert_same(ours: Generation, theirs: Generation) -> None:
    """Check that two generations got the same tokens, for the same reasons, as likely."""
    assert (ours.tokens, ours.finish_reason) == (theirs.tokens, theirs.finish_reason)
    assert_close(ours.logprobs, theirs.logprobs)
    assert_close(ours.prompt_logprobs, theirs.prompt_logprobs)


def assert_close(ours: list[TokenLogprobs], theirs: list[TokenLogprobs]) -> None:
    assert [one.token for one in ours] == [one.token for one in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our.logprob == pytest.approx(their.logprob, abs=1e-4)
        assert [id_ for id_, _ in our.top] == [id_ for id_, _ in their.top]
