"""One rank: its part of the network, its keys and values, the state of what runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pluribus.interfaces import Executor, KVShape, KVStore, ModelSpec, Network
from pluribus.logits_plan import LogitsPlan, Outcome, ScoredRow
from pluribus.sampler import NextTokens, Sampler
from pluribus.sampling import Logprobs, logprobs
from pluribus.slots import SlotState
from pluribus.step import Row, Step, StepResult

MAX_LOGITS = 2**22
"""Logits that scoring a prompt computes at a time: 16 MiB of float32."""


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
        self.state = SlotState(shape, spec.num_token_ids, device)
        self.sampler = Sampler(self.state)

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
        return self._run(step.rows).read

    def shutdown(self) -> None:
        """Nothing outlives this object."""

    def _run(self, rows: Sequence[Row]) -> Outcome:
        layout = self.store.begin(rows)
        positions = layout.positions.clamp_min(0)
        tokens = self.state.tokens[layout.slots, positions]
        tokens = tokens.masked_fill(layout.positions < 0, self.spec.pad_token_id)
        plan = self._plan(rows)
        wanted = plan.wanted(layout)
        hidden = self.network(self.network.embed(tokens, positions), self.store)[wanted]
        slots, following = layout.slots[wanted], positions[wanted] + 1
        num = len(plan.sampling)
        tokens, chosen = self._sample(plan, hidden[:num], slots[:num], following[:num])
        prompt = self.state.tokens[slots[num:], following[num:]]
        return Outcome(plan, tokens, chosen, self._score(plan, hidden[num:], prompt))

    def _plan(self, rows: Sequence[Row]) -> LogitsPlan:
        state = self.state
        sampling = tuple(index for index, row in enumerate(rows) if row.samples)
        owners = tuple(rows[index].slot for index in sampling)
        scored = tuple(
            ScoredRow(
                index=index,
                num_tokens=row.num_tokens,
                num_scored=state.num_prompt_successors(row),
                top=state.params[row.slot].prompt_logprobs or 0,
            )
            for index, row in enumerate(rows)
            if row.scores
        )
        return LogitsPlan(
            num_rows=len(rows),
            sampling=sampling,
            owners=owners,
            longest=max(row.start + row.num_tokens for row in rows),
            tops=tuple(state.params[slot].logprobs for slot in owners),
            scored=scored,
        )

    def _sample(
        self, plan: LogitsPlan, hidden: Tensor, slots: Tensor, position: Tensor
    ) -> tuple[Tensor, Logprobs | None]:
        """Choose the next tokens, and tell how likely they were where that is wanted."""
        if not plan.sampling:
            return slots, None
        logits = self._logits(hidden)
        following = NextTokens(plan.owners, plan.longest, slots, position)
        tokens = self.sampler.choose(logits, following)
        told = {row: top for row, top in enumerate(plan.tops) if top is not None}
        if not told:
            return tokens, None
        index = torch.tensor(list(told), device=tokens.device)
        return tokens, logprobs(logits.index_select(0, index), tokens[index], max(told.values()))

    def _score(self, plan: LogitsPlan, hidden: Tensor, prompt: Tensor) -> Logprobs | None:
        """Tell how likely tokens of the prompt are, never holding many logits."""
        if not len(hidden):
            return None
        num_rows = max(1, MAX_LOGITS // self.spec.vocab_size)
        top = max(row.top for row in plan.scored)
        chunks = zip(torch.split(hidden, num_rows), torch.split(prompt, num_rows), strict=True)
        return Logprobs.cat([logprobs(self._logits(x), tokens, top) for x, tokens in chunks])

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.network.logits(hidden)[:, : self.spec.num_token_ids]
