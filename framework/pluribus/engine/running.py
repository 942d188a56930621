"""What the engine keeps of generations and steps, and what tokens make of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

from pluribus.generation import Batch, FinishReason, Generation, TokenLogprobs
from pluribus.step import Row, StepResult


@dataclass(eq=False, slots=True)
class Running:
    """What the engine keeps of a generation.

    Times are seconds on the monotonic clock.

    Attributes:
        ends: ids that end it.
        is_free: whether it may take part in any number of passes: its prompt is computed, and
            its params are not in the way.
        passes_before, rows_before: that the engine had submitted in all when it started.
    """

    generation: Generation
    arrived: float
    ends: frozenset[int]
    is_free: bool = False
    started: float = 0.0
    first_token: float = 0.0
    passes_before: int = 0
    rows_before: int = 0


@dataclass(frozen=True, slots=True)
class StepUnderWay:
    """A step that has been submitted and whose result has not been read.

    Attributes:
        members: whose rows there are, in row order.
        sampling: those of them whose rows sample.
    """

    batch: Batch
    members: Sequence[Running]
    sampling: Sequence[Running]
    rows: tuple[Row, ...]
    passes: int
    result: Callable[[], StepResult]
    submitted: float

    @property
    def scoring(self) -> Iterator[Running]:
        """Whose rows score, in row order."""
        return compress(self.members, [row.scores for row in self.rows])


def without_partial_prompts(
    members: Sequence[Running], bound: Collection[Generation]
) -> Sequence[Running]:
    """Return all but those of ``bound`` whose prompts go on, which are seldom any."""
    partial = {g for g in bound if g.num_scheduled < len(g.prompt)}
    return [m for m in members if m.generation not in partial] if partial else members


def cut(generation: Generation, tokens: tuple[int, ...], ends: Collection[int]) -> tuple[int, ...]:
    """Note why an answer ends with these tokens, if it does; return which are part of it."""
    num_left = generation.params.max_tokens - len(generation.tokens)
    tokens = tokens[:num_left]
    for at, token in enumerate(tokens):
        if token in ends:
            generation.finish_reason = FinishReason.STOP
            return tokens[:at]
    if len(tokens) == num_left:
        generation.finish_reason = FinishReason.LENGTH
    return tokens


def keep(generation: Generation, told: TokenLogprobs) -> tuple[TokenLogprobs, ...]:
    """Keep what is told of a token, the one that ends the answer included; return it."""
    kept = (told,) if generation.params.max_tokens else ()
    generation.logprobs += kept
    return kept


def begin(member: Running) -> tuple[TokenLogprobs, ...]:
    """Note when the first token came; return what was told of the prompt meanwhile."""
    member.first_token = time.monotonic()
    return tuple(member.generation.prompt_logprobs)
