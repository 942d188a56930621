"""A rank on a CUDA device that has all layers, or shares all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pluribus.cuda.decoding import Decoding
from pluribus.cuda.prefilling import Prefilling
from pluribus.cuda.replaying import Kind, ReplayingWorker, Result
from pluribus.interfaces import KVShape, ModelSpec, Network
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.step import Row, Step


class CudaWorker(ReplayingWorker):
    """Replays prompts and decode passes, several of those in a row.

    Args:
        network, store, spec, shape, device: see Worker.
        most_tokens: that a step computes.
    """

    def __init__(
        self,
        network: Network,
        store: DeviceKVStore,
        spec: ModelSpec,
        shape: KVShape,
        device: torch.device,
        most_tokens: int,
    ) -> None:
        super().__init__(network, store, spec, shape, device)
        with torch.inference_mode():
            self._decoding, self._prefilling = (
                Decoding(self.rank),
                Prefilling(self.rank, most_tokens),
            )
            self.rank.pool.rehearse([*self._decoding.runs(), *self._prefilling.runs()])
            self._decoding.capture()
            self._prefilling.capture()
        self.rank.pool.trim()

    @property
    def max_passes(self) -> int:
        return self._decoding.max_passes

    def _pass_through(self, step: Step) -> Result:
        if step.passes > 1:  # all rows decode
            return self._decoding.run(step.rows, step.passes)
        return self._run_groups(step.rows, self._run_group)

    def _run_group(self, kind: Kind, rows: Sequence[Row]) -> Result:
        if kind is Kind.DECODED:
            return self._decoding.run(rows)
        num_tokens = sum(row.num_tokens for row in rows)
        if kind is Kind.PREFILLED and self._prefilling.fits(num_tokens):
            return self._prefilling.run(rows)
        return self.rank.arrivals.bring(self._run(rows))
