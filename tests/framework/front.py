"""A front on fakes: a tokenizer that spells numbers, an engine without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from framework.counting import CountingExecutor, core
from pluribus import ModelSpec, ResponseCache
from pluribus.assembly import EngineConfig, Parts, QueueConfig
from pluribus.engine.client import EngineHost, ThreadHost
from pluribus.plugins import Plugins
from pluribus.service import Service
from pluribus_batchers.bucket import BucketConfig
from pluribus_caches.response.none import NoResponseCache, NoResponseCacheConfig

SPEC = ModelSpec(
    name="counting",
    num_layers=1,
    hidden_size=1,
    num_heads=1,
    head_dim=1,
    vocab_size=3000,
    num_token_ids=3000,
    max_length=100,
    eos_token_ids=(2,),
    pad_token_id=1,
    dtype="float32",
    num_parameters=0,
    num_layer_parameters=1,
    num_head_parameters=1,
)


class NumberStream:
    def append(self, tokens: Sequence[int]) -> str:
        return "".join(f" {token}" for token in tokens)

    def finish(self) -> str:
        return ""


class NumberTokenizer:
    """Each character of a prompt is its code; each token of an answer its number."""

    num_token_ids = 3000

    def encode(self, text: str) -> list[int]:
        return [0, *map(ord, text)]

    def min_num_tokens(self, text: str) -> int:
        return text.count("!")  # what makes a prompt hopelessly long here

    def decode(self, ids: Sequence[int]) -> str:
        return NumberStream().append(ids)

    def stream(self, prompt: Sequence[int]) -> NumberStream:
        return NumberStream()

    def token_bytes(self, id_: int) -> bytes:
        return f" {id_}".encode()


class CountingModel:
    spec = SPEC
    fingerprint = "counting"

    def tokenizer(self) -> NumberTokenizer:
        return NumberTokenizer()


def parts(
    *,
    response_cache: ResponseCache | None = None,
    engine: EngineConfig | None = None,
    max_waiting: int = 100,
    num_slots: int = 4,
) -> Parts:
    """Return the parts a front needs; the engine's are in its host."""
    unused = cast(Any, None)
    return Parts(
        model=cast(Any, CountingModel()),
        response_cache=response_cache or NoResponseCache(NoResponseCacheConfig()),
        queue=QueueConfig(max_size=max_waiting),
        engine=engine or EngineConfig(),
        batcher_config=BucketConfig(max_batch_size=num_slots),
        batcher_class=unused,
        parallelism=unused,
        launcher=unused,
        kv_cache=unused,
        device="cpu",
        dtype="float32",
        config="",
    )


def on_executors(*executors: CountingExecutor) -> EngineHost:
    """Return a host whose engines, one after another, run on these executors."""
    left = list(executors)
    return ThreadHost(lambda progress: core(left.pop(0)))


def run(
    test: Callable[[Service], Coroutine[Any, Any, None]], host: EngineHost, with_parts: Parts
) -> None:
    """Run a test against a service of one replica that is ready, and end it."""

    async def life() -> None:
        service = Service(with_parts, Plugins(), host)
        service.start()
        try:
            await asyncio.wait_for(service.fleet.wait_ready(), 10)
            await asyncio.wait_for(test(service), 20)
        finally:
            await service.stop()

    asyncio.run(life())
