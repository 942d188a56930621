"""One rank on a CUDA device: what can be is replayed from graphs, everything else is launched."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto

import torch

from pluribus.cuda.arrival import Arrival
from pluribus.cuda.decoding import Decoding
from pluribus.cuda.prefilling import Prefilling
from pluribus.cuda.sampler import CudaSampler
from pluribus.cuda.stage import CudaStageWorker
from pluribus.interfaces import KVShape, ModelSpec, Network
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.logits_plan import Outcome
from pluribus.step import Row, Step, StepResult

logger = logging.getLogger(__name__)

Result = Callable[[], StepResult]


class CudaWorker(CudaStageWorker):
    """Runs steps as they are submitted, none waiting for the result of another."""

    sampler: CudaSampler

    def __init__(
        self,
        network: Network,
        store: DeviceKVStore,
        spec: ModelSpec,
        shape: KVShape,
        device: torch.device,
    ) -> None:
        super().__init__(network, store, spec, shape, device)
        started = time.monotonic()
        self._device = device
        parts = (network, store, self.state, self.sampler, device)
        with torch.inference_mode():
            self._decoding = Decoding(*parts)
            self._decoding.capture()
            self._prefilling = Prefilling(*parts)
            self._prefilling.capture()
        logger.info("captured graphs in %.1f s", time.monotonic() - started)

    @property
    def lookahead(self) -> int:
        return 1

    @property
    def max_passes(self) -> int:
        return self._decoding.max_passes

    def _pass_through(self, step: Step) -> Result:
        return self._run_all(step.rows, step.passes)

    def _run_all(self, rows: Sequence[Row], passes: int) -> Result:
        """Run rows, each in the way that suits it."""
        kinds = [self._kind(row) for row in rows]
        groups: dict[Kind, list[Row]] = {}
        for row, kind in zip(rows, kinds, strict=True):
            groups.setdefault(kind, []).append(row)
        results = {kind: self._run_group(kind, group, passes) for kind, group in groups.items()}
        if len(results) == 1:
            return results[kinds[0]]
        return lambda: _merged(rows, kinds, {kind: read() for kind, read in results.items()})

    def _kind(self, row: Row) -> Kind:
        if self.state.is_special[row.slot]:
            return Kind.LAUNCHED
        return Kind.DECODED if row.num_tokens == 1 and row.samples else Kind.PREFILLED

    def _run_group(self, kind: Kind, rows: Sequence[Row], passes: int) -> Result:
        if kind is Kind.DECODED:
            return self._decoding.run(tuple([row.slot for row in rows]), passes)
        num_tokens = sum(row.num_tokens for row in rows)
        if kind is Kind.PREFILLED and self._prefilling.fits(num_tokens):
            return self._prefilling.run(rows)
        return self._launch(rows, passes)

    def _launch(self, rows: Sequence[Row], passes: int) -> Result:
        """Run rows as any worker does, once for each pass."""
        arrivals = [
            self._on_its_way(self._run([row._replace(start=row.start + at) for row in rows]))
            for at in range(passes)
        ]
        return lambda: _joined([read() for read in arrivals])

    def _on_its_way(self, outcome: Outcome) -> Result:
        copied = outcome.to(torch.device("cpu"), non_blocking=True)
        arrived = Arrival(self._device)

        def read() -> StepResult:
            arrived.wait()
            return copied.read()

        return read


class Kind(Enum):
    """How a row is run."""

    DECODED = auto()
    PREFILLED = auto()
    LAUNCHED = auto()


def _joined(results: Sequence[StepResult]) -> StepResult:
    """Return the results of passes, one after another, as that of one step."""
    if len(results) == 1:
        return results[0]
    rows = zip(*(result.tokens for result in results), strict=True)
    return StepResult([[token for [token] in row] for row in rows])


def _merged(
    rows: Sequence[Row], kinds: Sequence[Kind], results: Mapping[Kind, StepResult]
) -> StepResult:
    """Return the results of rows that ran in different ways, in row order."""
    tokens = {kind: iter(result.tokens) for kind, result in results.items()}
    logprobs = {kind: iter(result.logprobs) for kind, result in results.items()}
    sampled = [kind for row, kind in zip(rows, kinds, strict=True) if row.samples]
    tells = any(result.logprobs for result in results.values())
    return StepResult(
        tokens=[next(tokens[kind]) for kind in sampled],
        logprobs=tuple(next(logprobs[kind], None) for kind in sampled) if tells else (),
        scores=results[Kind.LAUNCHED].scores if Kind.LAUNCHED in results else (),
    )
