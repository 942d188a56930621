"""A rank on a CUDA device: what can be is replayed from graphs, everything else is launched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum, auto

import torch

from pluribus.cuda.arrival import Arrivals
from pluribus.cuda.graphs import GraphPool
from pluribus.cuda.rank import Rank
from pluribus.cuda.sampler import CudaSampler
from pluribus.cuda.state import CudaSlotState
from pluribus.interfaces import KVShape, ModelSpec, Network
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.step import Admission, Row, StepResult
from pluribus.worker import Join, Worker, stay_alone

Result = Callable[[], StepResult]


class Kind(StrEnum):
    """How a row is run."""

    DECODED = auto()
    PREFILLED = auto()
    LAUNCHED = auto()


# Names of their own: through the class, each look takes as long as all else that a row is asked.
_DECODED, _PREFILLED, _LAUNCHED = Kind


class ReplayingWorker(Worker):
    """Runs steps as they are submitted, none waiting for the result of another.

    How a row is run depends on nothing that ranks do not agree on.
    """

    state: CudaSlotState
    sampler: CudaSampler

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
        shared = (GraphPool(device), Arrivals(device))
        self.rank = Rank(network, store, self.state, self.sampler, self.head, device, *shared)

    @property
    def kernel_seconds(self) -> float:
        return self.rank.pool.kernel_seconds

    @property
    def seconds_waited(self) -> float:
        return self.rank.arrivals.seconds_waited

    @property
    def lookahead(self) -> int:
        return 1

    def _admit(self, admissions: Sequence[Admission]) -> None:
        self.state.admit_all(admissions)
        for admission in admissions:
            self.store.admit(admission)
        self.rank.store.flush()

    def _make_state(self) -> tuple[CudaSlotState, CudaSampler]:
        state = CudaSlotState(self.shape, self.spec.num_token_ids, self.device)
        return state, CudaSampler(state)

    def _run_groups(
        self, rows: Sequence[Row], run: Callable[[Kind, Sequence[Row]], Result]
    ) -> Result:
        """Run each group of rows; return what waits for all their results."""
        kinds = self._kinds(rows)
        groups = dict.fromkeys(kinds)  # in an order that ranks agree on
        if len(groups) == 1:
            return run(kinds[0], rows)
        results = {
            kind: run(kind, [row for row, its in zip(rows, kinds, strict=True) if its is kind])
            for kind in groups
        }
        return lambda: _merged(rows, kinds, {kind: read() for kind, read in results.items()})

    def _kinds(self, rows: Sequence[Row]) -> list[Kind]:
        """Return how each row is run: what decodes beside prompts is one of them.

        Apart from each other they would read all weights twice.
        """
        kinds = [self._kind(row) for row in rows]
        if _PREFILLED in kinds:
            return [_PREFILLED if kind is _DECODED else kind for kind in kinds]
        return kinds

    def _kind(self, row: Row) -> Kind:
        if row.scores:
            return _LAUNCHED
        return _DECODED if row.num_tokens == 1 and row.samples else _PREFILLED


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
