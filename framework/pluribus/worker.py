"""One rank: its part of the network, its keys and values, the state of what runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pluribus.interfaces import Executor, KVShape, KVStore, ModelSpec, Network
from pluribus.sampling import SamplingRows, sample
from pluribus.step import Admission, Row, Step, StepResult

TOP_K_LIMIT = 2**31 - 1
"""More than any vocabulary has: beyond it top-k filters nothing, and int64 holds it."""


class SlotState:
    """What a device knows of every running generation, by slot."""

    def __init__(self, shape: KVShape, device: torch.device) -> None:
        slots = shape.num_slots
        self.device = device
        self.tokens = torch.zeros(slots, shape.max_length, dtype=torch.int64, device=device)
        self.temperature = torch.zeros(slots, dtype=torch.float32, device=device)
        self.top_k = torch.zeros(slots, dtype=torch.int64, device=device)
        self.top_p = torch.ones(slots, dtype=torch.float32, device=device)
        self.seed = torch.zeros(slots, dtype=torch.int64, device=device)

    def admit(self, admission: Admission) -> None:
        """Take a generation into its slot."""
        slot = admission.slot
        prompt = torch.tensor(admission.prompt, dtype=torch.int64)
        self.tokens[slot, : len(prompt)] = prompt.to(self.device)
        self.temperature[slot] = admission.temperature
        self.top_k[slot] = min(admission.top_k, TOP_K_LIMIT)
        self.top_p[slot] = admission.top_p
        self.seed[slot] = admission.seed

    def sampling_rows(self, slots: Tensor, positions: Tensor) -> SamplingRows:
        """Return how the next token of each slot, at each position, is chosen."""
        return SamplingRows(
            self.temperature[slots],
            self.top_k[slots],
            self.top_p[slots],
            self.seed[slots],
            positions,
        )


class Worker(Executor):
    """Runs steps on this rank, one after another, as soon as they are submitted."""

    def __init__(
        self,
        network: Network,
        store: KVStore,
        spec: ModelSpec,
        shape: KVShape,
        device: torch.device,
    ) -> None:
        self.network = network
        self.store = store
        self.spec = spec
        self.shape = shape
        self.state = SlotState(shape, device)

    @property
    def kv_shape(self) -> KVShape:
        return self.shape

    @torch.inference_mode()
    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Run the step at once; see Executor.submit."""
        for slot in step.evicted:
            self.store.evict(slot)
        for admission in step.admitted:
            self.state.admit(admission)
            self.store.admit(admission)
        tokens = tuple(self._run(step.rows).tolist())
        return lambda: StepResult(tokens)

    def shutdown(self) -> None:
        """Nothing outlives this object."""

    def _run(self, rows: Sequence[Row]) -> Tensor:
        layout = self.store.begin(rows)
        padding = layout.positions < 0
        positions = layout.positions.clamp_min(0)
        tokens = self.state.tokens[layout.slots, positions]
        tokens = tokens.masked_fill(padding, self.spec.pad_token_id)
        sampling = [index for index, row in enumerate(rows) if row.samples]
        if len(sampling) == len(rows):
            last = layout.last
        else:
            last = layout.last[torch.tensor(sampling, dtype=torch.int64, device=tokens.device)]
        logits = self.network(tokens, positions, self.store, last)
        return self._sample(logits, layout.slots[last], positions[last] + 1)

    def _sample(self, logits: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        rows = self.state.sampling_rows(slots, positions)
        tokens = sample(logits[:, : self.spec.num_token_ids], rows)
        # The last token of a full text has no position of its own and is never computed.
        room = positions < self.state.tokens.shape[1]
        self.state.tokens[slots[room], positions[room]] = tokens[room]
        return tokens
