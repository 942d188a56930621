"""One rank: its part of the network, its keys and values, the state of what runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pluribus.head import Head
from pluribus.interfaces import Executor, KVShape, KVStore, ModelSpec, Network
from pluribus.logits_plan import LogitsPlan, Task
from pluribus.slots import SlotState
from pluribus.stages import OnlyStage, Stage
from pluribus.step import Step, StepResult


class Worker(Executor):
    """Runs steps on this rank, one after another, as soon as they are submitted.

    Args:
        network: this rank's part.
        store: its keys and values.
        spec: the whole model.
        shape: the store's.
        device: where everything is.
        join: given the state of the slots, returns this rank's place among a pipeline's stages.
    """

    def __init__(
        self,
        network: Network,
        store: KVStore,
        spec: ModelSpec,
        shape: KVShape,
        device: torch.device,
        join: Callable[[SlotState], Stage] = lambda state: OnlyStage(),
    ) -> None:
        self.network = network
        self.store = store
        self.spec = spec
        self.shape = shape
        self.state = SlotState(shape, spec.num_token_ids, device)
        self.head = Head(network.logits, self.state)
        self.stage = join(self.state)

    @property
    def kv_shape(self) -> KVShape:
        return self.shape

    @torch.inference_mode()
    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Start a step; see Executor.submit."""
        for slot in step.evicted:
            self.store.evict(slot)
        for admission in step.admitted:
            self.state.admit(admission)
            self.store.admit(admission)
        layout = self.store.begin(step.rows)
        task = Task(
            step, LogitsPlan.of(step.rows, self.state), layout, layout.positions.clamp_min(0)
        )
        hidden = self.network(self.stage.enter(task, self._embed), self.store)
        return self.stage.leave(task, hidden, self.head.finish)

    def shutdown(self) -> None:
        """Nothing outlives this object."""

    def _embed(self, task: Task) -> Tensor:
        tokens = self.state.tokens[task.layout.slots, task.positions]
        tokens = tokens.masked_fill(task.layout.positions < 0, self.spec.pad_token_id)
        return self.network.embed(tokens, task.positions)
