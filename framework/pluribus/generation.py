"""The unit of work: one prompt being continued, and how its tokens are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from pluribus.errors import RequestError

MAX_SEED = 2**63 - 1


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """The model ended its text."""
    LENGTH = "length"
    """``max_tokens`` were generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose each next token. Hashable: it is part of the response cache's key.

    Attributes:
        max_tokens: how many tokens to generate at most, 1 or more.
        temperature: what the logits are divided by, 0 to 2; 0 is greedy.
        top_k: choose among the k most likely tokens; 0 is all of them, 1 is greedy.
        top_p: choose among the fewest tokens whose probabilities sum to at least this, in (0, 1].
        seed: makes the answer repeat exactly, whatever shares its batch; None draws a fresh one.

    Raises:
        RequestError: a value is out of its range.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")
        in_range = math.isfinite(self.temperature) and 0 <= self.temperature <= 2
        _check("temperature", self.temperature, in_range, "from 0 to 2")
        _check("top_k", self.top_k, self.top_k >= 0, "at least 0, where 0 means all tokens")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        in_range = self.seed is None or 0 <= self.seed <= MAX_SEED
        _check("seed", self.seed, in_range, f"from 0 to {MAX_SEED}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def is_reproducible(self) -> bool:
        """Whether the same prompt must give the same answer again."""
        return self.is_greedy or self.seed is not None


def _check(name: str, value: object, allowed: bool, rule: str) -> None:
    if not allowed:
        raise RequestError(f"{name} must be {rule}, got {value}", param=name)


@dataclass(eq=False, slots=True, kw_only=True)
class Generation:
    """One prompt being continued. Compared by identity; owned by the engine's thread.

    ``num_scheduled`` runs ahead of the tokens' values: a step may be planned before the
    token it starts from has been read back from the device.

    Attributes:
        id: unique among the generations alive.
        prompt: the prompt's token ids, beginning-of-text included; at least one.
        params: how to choose each next token; its seed is set by the time it runs.
        tokens: the ids generated so far.
        num_scheduled: leading tokens, of prompt and answer, whose keys and values have been
            computed, are cached, or are part of a step under way.
        slot: the row of the device's state that it holds while it runs.
        finish_reason: why it ended, or None while it has not.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    num_scheduled: int = 0
    slot: int | None = None
    finish_reason: FinishReason | None = None

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer at most: what to reserve."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def num_unscheduled(self) -> int:
        """Tokens the next step could compute.

        What is left of the prompt, then one a step, until the step under way gives the last.
        """
        if self.num_scheduled < len(self.prompt):
            return len(self.prompt) - self.num_scheduled
        return 1 if self.num_scheduled < self.max_length - 1 else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work: how many tokens of each generation to compute, in row order.

    Prefill, decode and a chunk of a prompt are the same thing here: a number of tokens.
    """

    num_tokens: Mapping[Generation, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", MappingProxyType(dict(self.num_tokens)))

    def __len__(self) -> int:
        return len(self.num_tokens)
