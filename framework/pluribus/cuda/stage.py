"""A stage of a pipeline on a CUDA device: its part of a decode pass is replayed from a graph."""

from __future__ import annotations

from functools import partial

import torch

from pluribus.cuda.replaying import Kind, ReplayingWorker, Result
from pluribus.cuda.stage_decoding import StageDecoding
from pluribus.interfaces import KVShape, ModelSpec, Network, Place
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.logits_plan import Outcome
from pluribus.stages import stage_of
from pluribus.step import Row, Step


class CudaStageWorker(ReplayingWorker):
    """Replays what lies between receiving and sending where all rows decode; launches the rest.

    Args:
        network, store, spec, shape, device: see Worker.
        place: among the stages.
        dtype: of what stages hand on.
    """

    def __init__(
        self,
        network: Network,
        store: DeviceKVStore,
        spec: ModelSpec,
        shape: KVShape,
        device: torch.device,
        place: Place,
        dtype: torch.dtype,
    ) -> None:
        width = spec.hidden_size
        join = partial(stage_of, place, hidden_size=width, dtype=dtype, tell=self._tell)
        super().__init__(network, store, spec, shape, device, join)
        with torch.inference_mode():
            self._decoding = StageDecoding(self.rank, place.share, width, dtype)
            self.rank.pool.rehearse(self._decoding.runs())
            self._decoding.capture()
        self.rank.pool.trim()

    def _is_replayed(self, row: Row) -> bool:
        return self._kind(row) is Kind.DECODED and row.slot not in self.state.special

    def _tell(self, outcome: Outcome) -> Result:
        return self.rank.arrivals.bring(outcome)

    def _pass_through(self, step: Step) -> Result:
        # All together: apart, what is replayed and what is not would each read all weights.
        if not all(map(self._is_replayed, step.rows)):
            return super()._pass_through(step)
        decoding = self._decoding
        task = decoding.begin(step.rows)
        x = self.stage.enter(step, task, decoding.embed)
        return self.stage.leave(step, task, decoding.run(x), decoding.finish)
