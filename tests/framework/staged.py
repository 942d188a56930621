"""A pipeline in one process: a thread for each stage after the first, queues for links."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from pluribus.interfaces import Executor, KVShape, ModelSpec, Network, Place, Share
from pluribus.parallel.group import TensorParallel
from pluribus.parallel.ring import Ring
from pluribus.stages import stage_of
from pluribus.step import Step, StepResult
from pluribus.testing.reference import ReferenceKVStore
from pluribus.worker import Worker

PATIENCE = 20.0
"""Seconds after which a wait has failed."""


class QueueLink:
    """Both ends of a link; what was sent counts as arrived once it is taken."""

    def __init__(self) -> None:
        self._tensors: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self.under_way: list[int] = []

    @property
    def is_empty(self) -> bool:
        """Whether all that was sent has been taken."""
        return self._tensors.empty()

    def send(self, x: Tensor, step: int) -> None:
        """Send without waiting; what is sent is read as late as it is taken."""
        self.under_way.append(step)
        self._tensors.put(x)

    def settle(self, num_steps: int) -> None:
        """Let go of what was sent in the first steps."""
        self.under_way = [step for step in self.under_way if step >= num_steps]

    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Wait for the next tensor."""
        x = self._tensors.get(timeout=PATIENCE)
        assert (x.shape, x.dtype) == (torch.Size(shape), dtype)
        return x


def stage_shares(num_layers: int, num_stages: int) -> list[Share]:
    """Return the share of each stage's only rank, as even as can be."""
    cuts = [num_layers * stage // num_stages for stage in range(num_stages + 1)]
    return [
        Share(
            rank=stage, layers=range(*cuts[stage : stage + 2]), stage=stage, num_stages=num_stages
        )
        for stage in range(num_stages)
    ]


class StagedExecutor(Executor):
    """Runs the first stage where it is called and each other one on a thread.

    Args:
        network: returns what a rank holds.
        spec, shape: of the whole network.
        num_stages: at least 2.
    """

    def __init__(
        self, network: Callable[[Place], Network], spec: ModelSpec, shape: KVShape, num_stages: int
    ) -> None:
        self.links = [QueueLink() for _ in range(num_stages)]
        self.failures: list[BaseException] = []
        self._shape = shape
        self._queues: list[queue.SimpleQueue[Step | None]] = []
        self._threads: list[threading.Thread] = []
        workers = [
            self._worker(network, spec, share)
            for share in stage_shares(spec.num_layers, num_stages)
        ]
        self.first, *later = workers
        for worker in later:
            steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
            self._queues.append(steps)
            self._threads.append(threading.Thread(target=self._run, args=(worker, steps)))
            self._threads[-1].start()

    @property
    def kv_shape(self) -> KVShape:
        return self._shape

    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Run the step on every stage."""
        for steps in self._queues:
            steps.put(step)
        return self.first.submit(step)

    def shutdown(self) -> None:
        """End the threads, and raise what has ended one of them before."""
        for steps in self._queues:
            steps.put(None)
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not self.failures, self.failures

    def __enter__(self) -> StagedExecutor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _worker(self, network: Callable[[Place], Network], spec: ModelSpec, share: Share) -> Worker:
        ring = Ring(self.links[share.stage - 1], self.links[share.stage])
        place = Place(share=share, tensor=TensorParallel(), ring=ring)
        shape = replace(self._shape, num_layers=len(share.layers))
        join = partial(stage_of, place, hidden_size=spec.hidden_size, dtype=torch.float32)
        store, device = ReferenceKVStore(), torch.device("cpu")
        return Worker(network(place), store, spec, shape, device, join)

    def _run(self, worker: Worker, steps: queue.SimpleQueue[Step | None]) -> None:
        try:
            while (step := steps.get()) is not None:
                worker.submit(step)
        except BaseException as error:
            self.failures.append(error)
            raise
