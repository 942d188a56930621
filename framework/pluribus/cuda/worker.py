"""A rank on a CUDA device that has all layers, or shares all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from pluribus.cuda.decoding import Decoding
from pluribus.cuda.prefilling import Prefilling
from pluribus.cuda.replaying import Kind, ReplayingWorker, Result
from pluribus.interfaces import KVShape, ModelSpec, Network
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.step import Row, Step, StepResult


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
        return self._run_groups(step.rows, partial(self._run_group, step.passes))

    def _run_group(self, passes: int, kind: Kind, rows: Sequence[Row]) -> Result:
        if kind is Kind.DECODED:
            return self._decoding.run(rows, passes)
        num_tokens = sum(row.num_tokens for row in rows)
        if kind is Kind.PREFILLED and self._prefilling.fits(num_tokens):
            return self._prefilling.run(rows)
        return self._launch_all(rows, passes)

    def _launch_all(self, rows: Sequence[Row], passes: int) -> Result:
        """Run rows as any worker does, once for each pass."""
        bring = self.rank.arrivals.bring
        reads = [bring(self._run([row.after(at) for row in rows])) for at in range(passes)]
        return lambda: _joined([read() for read in reads])


def _joined(results: Sequence[StepResult]) -> StepResult:
    """Return the results of passes, one after another, as that of one step."""
    if len(results) == 1:
        return results[0]
    rows = zip(*(result.tokens for result in results), strict=True)
    return StepResult([tuple([token for [token] in row]) for row in rows])
