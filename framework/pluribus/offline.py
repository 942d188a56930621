"""An engine inside a script or a notebook."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from omegaconf import DictConfig

from pluribus import config as conf
from pluribus import runtime
from pluribus.errors import RequestError
from pluribus.generation import SamplingParams
from pluribus.plugins import Plugins, discover
from pluribus.service import Completion, Prompt, Service

__all__ = ["Completion", "Engine", "print_answer"]

UNBOUNDED = runtime.QueueConfig(max_size=sys.maxsize)
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
        conf.add_search_paths(plugins.search_paths())
        self.service = _start(conf.load("serve", overrides), plugins)

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue one prompt or several, and return as many answers, in order.

        Args:
            prompts: texts, or lists of token ids.
            params: for all, or one for each prompt; ``SamplingParams()`` where None.

        Raises:
            RequestError: a prompt is empty or too long; nothing has run then.
        """
        many: Sequence[Prompt] = [prompts] if isinstance(prompts, str) else prompts
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(many)
        if len(params) != len(many):
            raise RequestError(
                f"params: {len(params)} for {len(many)} prompts; give one, or one for each",
                param="params",
            )
        return self.service.complete_all(many, params)

    def close(self) -> None:
        """Give back the memory; the engine cannot be used again."""
        self.service.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def print_answer(config: DictConfig, plugins: Plugins, prompt: str) -> int:
    """Print the answer to ``prompt`` that ``conf/generate.yaml`` and its overrides ask for."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    params = conf.pick(config, SamplingParams)
    service = _start(config, plugins)
    try:
        [answer] = service.complete_all([prompt], [params])
    finally:
        service.close()
    print(answer.prompt + answer.text)
    for note in service.spec.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _start(config: DictConfig, plugins: Plugins) -> Service:
    parts = replace(runtime.assemble(config, plugins), queue=UNBOUNDED)
    service = Service(parts, plugins)
    service.start()
    service.wait_ready()
    return service
