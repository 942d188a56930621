"""From what the last layer returns to tokens, and how likely they were."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pluribus.errors import PluginError
from pluribus.kernels.upload import upload
from pluribus.logits_plan import LogitsPlan, Outcome, Task
from pluribus.sampler import NextTokens, Sampler
from pluribus.sampling import Logprobs, logprobs
from pluribus.slots import SlotState

MAX_LOGITS = 2**22
"""Logits that scoring a prompt computes at a time: 16 MiB of float32."""


class Head:
    """Chooses each row's next token, and scores prompts.

    Args:
        logits: of some rows of what the last layer returns, [num_rows, vocab_size].
        state: of the slots; what is chosen is written into their texts.
        sampler: chooses.
    """

    def __init__(
        self, logits: Callable[[Tensor], Tensor], state: SlotState, sampler: Sampler
    ) -> None:
        self._whole_logits = logits
        self._state = state
        self._sampler = sampler

    def finish(self, task: Task, hidden: Tensor) -> Outcome:
        """Return what comes of a step whose last layer returns ``hidden`` of what is wanted.

        Raises:
            PluginError: it returns something else.
        """
        plan, wanted = task.plan, task.wanted
        if len(hidden) != len(wanted):
            raise PluginError(
                f"the model's network returns {len(hidden)} rows where {len(wanted)} are wanted: "
                "called with wanted, it has to return those alone"
            )
        slots, following = task.layout.slots[wanted], task.positions[wanted] + 1
        num = len(plan.sampling)
        tokens, chosen = self._sample(plan, hidden[:num], slots[:num], following[:num])
        prompt = self._state.tokens[slots[num:], following[num:]]
        return Outcome(plan, tokens, chosen, self._score(plan, hidden[num:], prompt))

    def _sample(
        self, plan: LogitsPlan, hidden: Tensor, slots: Tensor, position: Tensor
    ) -> tuple[Tensor, Logprobs | None]:
        """Choose the next tokens, and tell how likely they were where that is wanted."""
        if not plan.sampling:
            return slots, None
        logits = self._logits(hidden)
        following = NextTokens(plan.owners, plan.longest, slots, position)
        tokens = self._sampler.choose(logits, following)
        told = plan.told
        if not told:
            return tokens, None
        [index] = upload(tokens.device, list(told))
        return tokens, logprobs(logits.index_select(0, index), tokens[index], max(told.values()))

    def _score(self, plan: LogitsPlan, hidden: Tensor, prompt: Tensor) -> Logprobs | None:
        """Tell how likely tokens of the prompt are, never holding many logits."""
        if not plan.num_scored:
            return None
        num_rows = max(1, MAX_LOGITS // self._state.num_token_ids)
        chunks = zip(torch.split(hidden, num_rows), torch.split(prompt, num_rows), strict=True)
        top = plan.top_scored
        return Logprobs.cat([logprobs(self._logits(x), tokens, top) for x, tokens in chunks])

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._whole_logits(hidden)[:, : self._state.num_token_ids]
