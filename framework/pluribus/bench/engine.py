"""An engine that is given whole workloads, and what is measured of it.

It gets token ids over the channel that it has to the front. Where it is a thread of this
process, what the network takes is timed where the engine calls it, and so is choosing tokens
from its logits. What is left of a step is the engine's own: schedule, ledger, setting up what
the network and the sampler do, reading tokens, handing them over. Of a device that replays what
it was given, all that the host does is the engine's own, but for waiting for results.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType

from omegaconf import DictConfig

from pluribus import assembly, runtime
from pluribus.bench.measurement import Course, Measurement
from pluribus.bench.stopwatch import ForwardPass, TimedModel
from pluribus.bench.turns import TimedExecutor, Turn
from pluribus.bench.workloads import Request, Workload
from pluribus.engine.client import EngineHost, ProcessHost, ThreadHost
from pluribus.engine.core import EngineCore
from pluribus.engine.messages import Died, Output, Ready, Refused, Stepped, Stop, Submit
from pluribus.errors import ConfigError, EngineError, RequestError
from pluribus.generation import SamplingParams
from pluribus.interfaces import Progress
from pluribus.plugins import Plugins

logger = logging.getLogger(__name__)


class BenchEngine:
    """An engine that answers workloads. Enter it to load the model.

    Args:
        config: whole, with the sections that ``pluribus serve`` has.
        plugins: found and checked.

    Raises:
        PluribusError: a plugin, a setting or the checkpoint is at fault.
    """

    def __init__(self, config: DictConfig, plugins: Plugins) -> None:
        self.parts = assembly.assemble(config, plugins)
        if (num_replicas := self.parts.replicas.replicas) > 1:
            raise ConfigError(
                f"parallel.replicas={num_replicas}: bench measures one engine; "
                "choose parallel.replicas=1"
            )
        self._bos = self.parts.model.tokenizer().encode("")
        self._passes: list[ForwardPass] = []
        self._turns: list[Turn] = []
        self._host = _host(self.parts, plugins, self._passes, self._turns)
        self._runner = asyncio.Runner()
        self._ids = itertools.count()

    def __enter__(self) -> BenchEngine:
        try:
            self._runner.run(self._start())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.send(Stop())
        self._close()

    def requests(self, workload: Workload, round_: int) -> list[Request]:
        """Return a workload's requests, in this model's tokens.

        Raises:
            ConfigError: they are longer than the model's texts.
        """
        spec = self.parts.model.spec
        requests = workload.requests(round_, self._bos, spec.num_token_ids)
        longest = max(request.length for request in requests)
        if longest > spec.max_length:
            raise ConfigError(
                f"the workload's longest request has {longest} tokens of prompt and answer, and "
                f"{spec.name} takes {spec.max_length}; lower prompt_tokens or output_tokens, or "
                "choose another workload or model"
            )
        return requests

    def measure(self, requests: Sequence[Request], temperature: float = 0.0) -> Measurement:
        """Send all requests at once and wait for all their tokens.

        Raises:
            PluribusError: the engine refused one, or died.
        """
        return self._runner.run(self._measure(requests, temperature))

    def _close(self) -> None:
        self._runner.run(self._host.kill())
        self._client.close()
        self._runner.close()

    async def _start(self) -> None:
        self._client = await self._host.start()
        self._messages = self._client.messages()
        async for message in self._messages:
            if isinstance(message, Died):
                raise EngineError(message.message)
            if isinstance(message, Ready):
                return

    async def _measure(self, requests: Sequence[Request], temperature: float) -> Measurement:
        self._passes.clear()
        self._turns.clear()
        courses = {next(self._ids): Course() for _ in requests}
        times = [time.perf_counter()]
        for id_, request in zip(courses, requests, strict=True):
            params = SamplingParams(
                max_tokens=request.num_tokens, temperature=temperature, seed=id_, ignore_eos=True
            )
            self._client.send(Submit(id_, request.prompt, params, "", 1.0, ""))
        received = []
        num_left = len(requests)
        async for outputs in self._outputs():
            times.append(time.perf_counter())
            received.append(outputs)
            num_left -= sum(output.finish_reason is not None for output in outputs)
            if not num_left:
                break
        # Afterwards: where the engine is a thread, it waits while this one counts.
        for outputs, now in zip(received, times[1:], strict=True):
            _record(outputs, courses, now - times[0])
        steps = [after - before for before, after in itertools.pairwise(times)]
        turns = [*self._turns]
        passes = [] if turns else [*self._passes]  # few calls, if most work is replayed
        return Measurement(times[-1] - times[0], [*courses.values()], steps, passes, turns)

    async def _outputs(self) -> AsyncIterator[Sequence[Output]]:
        """Yield what each step brings."""
        async for message in self._messages:
            if isinstance(message, Stepped):
                yield message.outputs
            elif isinstance(message, Refused):
                raise RequestError(message.message, param=message.param)
            elif isinstance(message, Died):
                raise EngineError(message.message)
        raise EngineError("the engine has ended without a word")


def _record(outputs: Sequence[Output], courses: Mapping[int, Course], now: float) -> None:
    """Note who gained tokens."""
    for output in outputs:
        course = courses[output.id]
        course.first = course.first or now
        course.last = now
        course.num_tokens += len(output.tokens)


def _host(
    parts: assembly.Parts, plugins: Plugins, passes: list[ForwardPass], turns: list[Turn]
) -> EngineHost:
    """Return a thread for a single rank; losing one of several must not end this process."""
    if parts.parallelism.world_size > 1:
        return ProcessHost(parts.config)
    return ThreadHost(partial(timed_core, parts, plugins, passes, turns))


def timed_core(
    parts: assembly.Parts,
    plugins: Plugins,
    passes: list[ForwardPass],
    turns: list[Turn],
    progress: Progress,
) -> EngineCore:
    """Return an engine on this thread whose model, or whose turns, are timed."""
    from pluribus.bench.timed_sampler import TimedSampler
    from pluribus.head import Head
    from pluribus.worker import Worker

    timed = replace(parts, model=TimedModel(parts.model, passes))
    core = runtime.start(timed, plugins, progress, fail=logger.critical)
    worker = core.executor
    if type(worker) is Worker:
        sampler = TimedSampler(worker.state, passes)
        worker.head = Head(worker.network.logits, worker.state, sampler)
        return core
    core.executor = TimedExecutor(worker, turns)
    return core
