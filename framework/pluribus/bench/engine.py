"""An engine that is given whole workloads, and what is measured of it.

It is stepped by the thread that measures, so nobody else wants the interpreter, as in an engine's
own process, and as there, what is loaded is not searched for garbage while steps wait. What the
network takes is timed where the engine calls it, and so is choosing tokens from its logits. What is
left of a step is the engine's own: schedule, ledger, setting up what the network and the sampler
do, reading tokens. Of a device that replays what it was given, all that the host does is the
engine's own, but for waiting for results.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import NoReturn

from omegaconf import DictConfig

from pluribus import assembly, runtime
from pluribus.bench.measurement import Course, Measurement
from pluribus.bench.stopwatch import ForwardPass, TimedModel
from pluribus.bench.turns import TimedExecutor, Turn
from pluribus.bench.workloads import Request, Workload
from pluribus.engine.core import EngineCore
from pluribus.engine.messages import Output
from pluribus.errors import ConfigError
from pluribus.generation import Generation, SamplingParams
from pluribus.plugins import Plugins


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
        self._plugins = plugins
        self._passes: list[ForwardPass] = []
        self._turns: list[Turn] = []
        self._ids = itertools.count()

    def __enter__(self) -> BenchEngine:
        self._core = timed_core(self.parts, self._plugins, self._passes, self._turns)
        gc.freeze()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gc.unfreeze()
        self._core.executor.shutdown()

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

    def measure(
        self, requests: Sequence[Request], temperature: float = 0.0, top_p: float = 1.0
    ) -> Measurement:
        """Give it all requests at once and step it until it has all their tokens.

        Raises:
            PluribusError: it refused one, or a plugin is at fault.
        """
        self._passes.clear()
        self._turns.clear()
        courses = {next(self._ids): Course() for _ in requests}
        times = [time.perf_counter()]
        for id_, request in zip(courses, requests, strict=True):
            params = SamplingParams(
                max_tokens=request.num_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=id_,
                ignore_eos=True,
            )
            self._core.add(Generation(id=id_, prompt=request.prompt, params=params))
        received = []
        while self._core.has_work:
            received.append(self._core.step())
            times.append(time.perf_counter())
        for outputs, now in zip(received, times[1:], strict=True):
            _record(outputs, courses, now - times[0])
        steps = [after - before for before, after in itertools.pairwise(times)]
        turns = [*self._turns]
        passes = [] if turns else [*self._passes]  # few calls, if most work is replayed
        return Measurement(times[-1] - times[0], [*courses.values()], steps, passes, turns)


def _record(outputs: Sequence[Output], courses: Mapping[int, Course], now: float) -> None:
    """Note who gained tokens."""
    for output in outputs:
        course = courses[output.id]
        course.first = course.first or now
        course.last = now
        course.num_tokens += len(output.tokens)


def timed_core(
    parts: assembly.Parts, plugins: Plugins, passes: list[ForwardPass], turns: list[Turn]
) -> EngineCore:
    """Return an engine whose turns are timed, or whose model where it is all of this process's.

    Raises:
        PluribusError: a plugin, a setting or the checkpoint is at fault.
    """
    is_alone = parts.parallelism.world_size == 1
    timed = replace(parts, model=TimedModel(parts.model, passes)) if is_alone else parts
    core = runtime.start(timed, plugins, lambda done, total: None, fail=_end)
    if core.executor.lookahead:
        core.executor = TimedExecutor(core.executor, turns)
    elif is_alone:
        _time_sampler(core, passes)
    return core


def _time_sampler(core: EngineCore, passes: list[ForwardPass]) -> None:
    from pluribus.bench.timed_sampler import TimedSampler
    from pluribus.head import Head
    from pluribus.worker import Worker

    worker = core.executor
    assert isinstance(worker, Worker)
    sampler = TimedSampler(worker.state, passes)
    worker.head = Head(worker.network.logits, worker.state, sampler)


def _end(reason: str) -> NoReturn:
    """End this process: a rank is lost, and the engine may wait for it for ever."""
    print(f"pluribus: {reason}", file=sys.stderr, flush=True)
    os._exit(1)
