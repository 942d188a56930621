"""An engine inside a script or a notebook."""

from __future__ import annotations

import asyncio
import logging
import reprlib
import sys
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from omegaconf import DictConfig

from pluribus import assembly, composition, runtime
from pluribus import config as conf
from pluribus.engine.client import EngineHost, ProcessHost, ThreadHost
from pluribus.engine.core import EngineCore
from pluribus.errors import ConfigError, EngineError, RequestError
from pluribus.front import Prompt
from pluribus.generation import SamplingParams
from pluribus.interfaces import Progress, Query
from pluribus.plugins import Plugins, discover
from pluribus.replicas import engine_configs
from pluribus.reply import Completion
from pluribus.service import Service

__all__ = ["Completion", "Engine", "print_answer"]

T = TypeVar("T")

UNBOUNDED = assembly.QueueConfig(max_size=sys.maxsize // 2)
"""A script waits for its own answers: nobody has to be sent away."""


class Engine:
    """A model in this process.

    >>> with Engine("model=opt-125m", "batcher.max_batch_size=8") as engine:
    ...     [answer] = engine.generate("Once upon a time", SamplingParams(max_tokens=32))
    ...     print(answer.text)

    Args:
        overrides: what ``pluribus serve`` takes, one string each; none serve the bundled model.

    Raises:
        PluribusError: a plugin, a setting or the checkpoint is at fault.
    """

    def __init__(self, *overrides: str) -> None:
        plugins = discover()
        plugins.check()
        composition.add_search_paths(plugins.search_paths)
        config = composition.load("serve", overrides)
        parts = replace(assembly.assemble(config, plugins), queue=UNBOUNDED)
        self.service = Service(parts, plugins, *_hosts(parts, plugins))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)
        self._thread.start()
        self._is_closed = False
        try:
            self._run(_start(self.service))
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue one prompt or several, and return as many answers, in order.

        Args:
            prompts: a text, or a list of prompts, each a text or a list of token ids: one
                prompt of ids is ``[[2, 5, 9]]``.
            params: for all, or one for each prompt; ``SamplingParams()`` where None.

        Raises:
            RequestError: a prompt is none, or empty, or too long; nothing has run then.
            EngineError: the engine is closed, or has died more often than it may.
        """
        many = _prompts(prompts)
        queries = [
            self.service.query(prompt, each)
            for prompt, each in zip(many, _params(params, len(many)), strict=True)
        ]
        return self._run(self._complete(many, queries))

    def close(self) -> None:
        """Give back the memory; the engine cannot be used again."""
        if not self._is_closed:
            self._run(self.service.stop())
            self._close_loop()

    async def _complete(
        self, prompts: Sequence[Prompt], queries: Sequence[Query]
    ) -> list[Completion]:
        replies = self.service.ask_all(queries)
        try:
            for reply in replies:
                await reply.wait()
        finally:
            for reply in replies:
                reply.close()
        return [
            reply.completion(prompt if isinstance(prompt, str) else self.service.decode(prompt))
            for prompt, reply in zip(prompts, replies, strict=True)
        ]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._is_closed:
            work.close()
            raise EngineError("the engine is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # of use where an interrupt has ended the wait

    def _close_loop(self) -> None:
        self._is_closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _prompts(given: str | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list | tuple):
        return given
    raise RequestError(
        f"prompts: must be a text or a list of prompts, got {reprlib.repr(given)}", param="prompts"
    )


def _params(
    given: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams]:
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * num_prompts
    if not (isinstance(given, list | tuple) and all(isinstance(p, SamplingParams) for p in given)):
        raise RequestError(
            f"params: must be SamplingParams or a list of them, got {reprlib.repr(given)}",
            param="params",
        )
    if len(given) != num_prompts:
        raise RequestError(
            f"params: {len(given)} for {num_prompts} prompts; give one, or one for each",
            param="params",
        )
    return given


async def _start(service: Service) -> None:
    service.start()
    await service.fleet.wait_ready()


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    """The sampling settings at the top level of ``conf/generate.yaml``."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None

    def params(self) -> SamplingParams:
        """Return them for the engine, checked."""
        try:
            return SamplingParams(**asdict(self))
        except RequestError as error:
            raise ConfigError(str(error)) from error


def _hosts(parts: assembly.Parts, plugins: Plugins) -> Sequence[EngineHost]:
    """Return a thread for a single rank; losing one of several must not end this process."""
    if parts.parallelism.world_size * parts.replicas.replicas > 1:
        configs = engine_configs(parts.config, parts.replicas.replicas)
        return [ProcessHost(config) for config in configs]

    def start_core(progress: Progress) -> EngineCore:
        return runtime.start(parts, plugins, progress, fail=logging.getLogger(__name__).critical)

    return [ThreadHost(start_core)]


def print_answer(config: DictConfig, plugins: Plugins, prompt: str) -> int:
    """Print the answer to ``prompt`` that ``conf/generate.yaml`` and its overrides ask for."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    params = conf.pick(config, GenerateConfig).params()
    parts = assembly.assemble(config, plugins)
    return parts.launcher.run(partial(_print_answer, parts, plugins, prompt, params))


def _print_answer(
    parts: assembly.Parts, plugins: Plugins, prompt: str, params: SamplingParams
) -> int:
    service = Service(parts, plugins, *_hosts(parts, plugins))
    query = service.query(prompt, params)  # refused, if it must be, before the weights are read
    answer = asyncio.run(_answer(service, query, prompt))
    print(answer.prompt + answer.text)
    for note in service.spec.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


async def _answer(service: Service, query: Query, prompt: str) -> Completion:
    try:
        await _start(service)
        with service.ask(query) as reply:
            await reply.wait()
            return reply.completion(prompt)
    finally:
        await service.stop()
