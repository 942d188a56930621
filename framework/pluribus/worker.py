"""One rank: its part of the network, its keys and values, the state of what runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pluribus.head import Head
from pluribus.interfaces import Executor, KVShape, KVStore, ModelSpec, Network
from pluribus.logits_plan import LogitsPlan, Outcome, Task
from pluribus.sampler import Sampler
from pluribus.slots import SlotState
from pluribus.stages import OnlyStage, Stage
from pluribus.step import Admission, Row, Step, StepResult

Join = Callable[[SlotState], Stage]
"""Returns a rank's place among a pipeline's stages, given the state of its slots."""


def stay_alone(state: SlotState) -> Stage:
    """Be the only stage."""
    return OnlyStage()


class Worker(Executor):
    """Runs steps on this rank, one after another, as soon as they are submitted.

    Args:
        network: this rank's part.
        store: its keys and values.
        spec: the whole model.
        shape: the store's.
        device: where everything is.
        join: tells it its place among a pipeline's stages.
    """

    def __init__(
        self,
        network: Network,
        store: KVStore,
        spec: ModelSpec,
        shape: KVShape,
        device: torch.device,
        join: Join = stay_alone,
    ) -> None:
        self.network = network
        self.store = store
        self.spec = spec
        self.shape = shape
        self.device = device
        self.state, self.sampler = self._make_state()
        self.head = Head(network.logits, self.state, self.sampler)
        self.stage = join(self.state)

    @property
    def kv_shape(self) -> KVShape:
        return self.shape

    @property
    def kernel_seconds(self) -> float:
        """Seconds that making kernels ready has taken."""
        return 0.0

    @torch.inference_mode()
    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Start a step; see Executor.submit."""
        for slot in step.evicted:
            self.store.evict(slot)
        self._admit(step.admitted)
        return self._pass_through(step)

    def shutdown(self) -> None:
        """Nothing outlives this object."""

    def _make_state(self) -> tuple[SlotState, Sampler]:
        state = SlotState(self.shape, self.spec.num_token_ids, self.device)
        return state, Sampler(state)

    def _admit(self, admissions: Sequence[Admission]) -> None:
        for admission in admissions:
            self.state.admit(admission)
            self.store.admit(admission)

    def _pass_through(self, step: Step) -> Callable[[], StepResult]:
        """Run the rows of a step, from where it enters this rank to where it leaves."""
        task = self._task(step.rows)
        x = self.stage.enter(step, task, self._embed)
        hidden = self.network(x, self.store, task.wanted if self.stage.is_last else None)
        return self.stage.leave(step, task, hidden, self.head.finish)

    def _run(self, rows: Sequence[Row]) -> Outcome:
        """Run rows where this rank has all there is to run."""
        task = self._task(rows)
        return self.head.finish(task, self.network(self._embed(task), self.store, task.wanted))

    def _task(self, rows: Sequence[Row]) -> Task:
        layout = self.store.begin(rows)
        return Task(LogitsPlan.of(rows, self.state), layout, layout.positions.clamp_min(0))

    def _embed(self, task: Task) -> Tensor:
        tokens = self.state.tokens[task.layout.slots, task.positions]
        tokens = tokens.masked_fill(task.layout.positions < 0, self.spec.pad_token_id)
        return self.network.embed(tokens, task.positions)
