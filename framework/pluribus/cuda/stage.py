"""A stage of a pipeline on a CUDA device: everything is launched, nothing replayed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pluribus.cuda.sampler import CudaSampler
from pluribus.cuda.state import CudaSlotState
from pluribus.interfaces import KVShape, ModelSpec, Network
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.step import Admission
from pluribus.worker import Join, Worker, stay_alone


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
        join: Join = stay_alone,
    ) -> None:
        super().__init__(network, store, spec, shape, device, join)
        self._device_store = store

    def _admit(self, admissions: Sequence[Admission]) -> None:
        self.state.admit_all(admissions)
        for admission in admissions:
            self.store.admit(admission)
        self._device_store.flush()

    def _make_state(self) -> tuple[CudaSlotState, CudaSampler]:
        state = CudaSlotState(self.shape, self.spec.num_token_ids, self.device)
        return state, CudaSampler(state)
