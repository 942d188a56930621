"""A pipeline of CUDA workers in one thread: the kernels' interpreter knows no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from framework.staged import QueueLink, stage_shares
from gpu.tiny import CPU, SPEC, config_of, cuda_store_of, network, shape_of, small_sizes
from kernels.device import DEVICE
from opt.reading import decoder_at
from pluribus import KVShape, Step, StepResult
from pluribus.cuda.stage import CudaStageWorker
from pluribus.interfaces import Executor, Place, Share
from pluribus.parallel.group import TensorParallel
from pluribus.parallel.ring import Ring

NUM_LAYERS = 3


class CudaStages(Executor):
    """Runs each step on one stage after another, the later ones as late as can be.

    That is when a result is read, or when a step begins from tokens that they have not chosen yet.
    """

    def __init__(self, num_stages: int) -> None:
        self.links = [QueueLink() for _ in range(num_stages)]
        with small_sizes():
            self.workers = [self._worker(share) for share in stage_shares(NUM_LAYERS, num_stages)]
        self._late: list[Step] = []

    @property
    def kv_shape(self) -> KVShape:
        return shape_of(NUM_LAYERS)

    @property
    def lookahead(self) -> int:
        return self.workers[0].lookahead

    @property
    def max_passes(self) -> int:
        return self.workers[0].max_passes

    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Run the step on the first stage."""
        slots = {row.slot for row in step.rows}
        for late in [*self._late]:
            if not slots.isdisjoint([row.slot for row in late.rows]):
                self._catch_up(late)
        result = self.workers[0].submit(step)
        self._late.append(step)

        def read() -> StepResult:
            self._catch_up(step)
            return result()

        return read

    def shutdown(self) -> None:
        """Nothing to stop."""

    def _catch_up(self, step: Step) -> None:
        """Run the later stages up to this step, if they have not come to it yet."""
        due = [late for late in self._late if late.number <= step.number]
        del self._late[: len(due)]
        for worker in self.workers[1:]:
            for late in due:
                worker.submit(late)

    def _worker(self, share: Share) -> CudaStageWorker:
        ring = Ring(self.links[share.stage - 1], self.links[share.stage])
        place = Place(share=share, tensor=TensorParallel(), ring=ring)
        parts = network(CPU, NUM_LAYERS).parts()
        tensors = {part.name: part.target for part in parts}
        ours = decoder_at(place, config_of(NUM_LAYERS), tensors).to(DEVICE)
        shape = replace(shape_of(NUM_LAYERS), num_layers=len(share.layers))
        store = cuda_store_of(len(share.layers))
        return CudaStageWorker(ours, store, SPEC, shape, DEVICE, place, torch.float32)
