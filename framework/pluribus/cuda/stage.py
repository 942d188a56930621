"""A stage of a pipeline on a CUDA device: everything is launched, nothing replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pluribus.cuda.sampler import CudaSampler
from pluribus.cuda.state import CudaSlotState
from pluribus.interfaces import KVShape, ModelSpec, Network
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.step import Step, StepResult
from pluribus.worker import Join, Worker


class CudaStageWorker(Worker):
    """Launches each step: its passes begin or end on another rank, so none can be captured."""

    state: CudaSlotState

    def __init__(
        self,
        network: Network,
        store: DeviceKVStore,
        spec: ModelSpec,
        shape: KVShape,
        device: torch.device,
        join: Join,
    ) -> None:
        super().__init__(network, store, spec, shape, device, join)
        self._device_store = store

    @torch.inference_mode()
    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Start a step; see Executor.submit."""
        for slot in step.evicted:
            self.store.evict(slot)
        self.state.admit_all(step.admitted)
        for admission in step.admitted:
            self.store.admit(admission)
        self._device_store.flush()
        return self._pass_through(step)

    def _make_state(self) -> tuple[CudaSlotState, CudaSampler]:
        return make_state(self.shape, self.spec, self.device)


def make_state(
    shape: KVShape, spec: ModelSpec, device: torch.device
) -> tuple[CudaSlotState, CudaSampler]:
    """Return the state of a device's slots, and what chooses their tokens."""
    state = CudaSlotState(shape, spec.num_token_ids, device)
    return state, CudaSampler(state)
