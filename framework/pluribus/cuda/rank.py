"""What captured work is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pluribus.cuda.arrival import Arrivals
from pluribus.cuda.graphs import GraphPool
from pluribus.cuda.sampler import CudaSampler
from pluribus.cuda.state import CudaSlotState
from pluribus.head import Head
from pluribus.interfaces import Network, TokenLayout
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.kernels.passes import Rows, end_pass
from pluribus.logits_plan import LogitsPlan, Outcome, Task
from pluribus.step import Row


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's parts, and what its graphs share."""

    network: Network
    store: DeviceKVStore
    state: CudaSlotState
    sampler: CudaSampler
    head: Head
    device: torch.device
    pool: GraphPool
    arrivals: Arrivals

    def is_special(self, rows: Sequence[Row]) -> bool:
        """Return whether choosing any row's token takes more than the sampling kernel."""
        special = self.state.special
        return bool(special) and not special.isdisjoint([row.slot for row in rows])

    def choose(self, rows: Sequence[Row], columns: Rows, hidden: Tensor) -> Outcome:
        """Launch what chooses the rows' tokens, whatever that takes, and end their pass.

        Args:
            rows: all of which sample.
            columns: as many of them as the pass has left.
            hidden: what the last layer returns, [num_rows, hidden_size].
        """
        last = torch.arange(len(rows), device=self.device)
        layout = TokenLayout(columns.slots, columns.positions, last)
        task = Task(LogitsPlan.of(rows, self.state), layout, columns.positions)
        outcome = self.head.finish(task, hidden)
        end_pass(self.state.texts, columns, outcome.tokens)
        return outcome
