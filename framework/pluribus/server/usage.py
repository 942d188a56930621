"""What an answer took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from pluribus.engine.messages import Timing
from pluribus.reply import Reply
from pluribus.server.schema import ResponseBody


class PromptTokensDetails(ResponseBody, frozen=True, kw_only=True):
    """More about the prompts' tokens."""

    cached_tokens: Annotated[
        int, Meta(description="Those whose keys and values were in the KV cache.")
    ]


class UsageTiming(ResponseBody, frozen=True, kw_only=True):
    """Where the time went; of the choice that took longest."""

    queue_ms: Annotated[float, Meta(description="From its arrival to its first step.")]
    prefill_ms: Annotated[float, Meta(description="From there to its first token.")]
    decode_ms: Annotated[float, Meta(description="From there to its last.")]
    mean_batch_size: Annotated[float, Meta(description="Generations in its steps, on average.")]
    cached_tokens: Annotated[int, Meta(description="Prompt tokens found in the KV cache.")]


class Usage(ResponseBody, frozen=True, kw_only=True):
    """What it took. A prompt counts once, however many choices it has."""

    prompt_tokens: Annotated[int, Meta(description="Beginning-of-text included.")]
    completion_tokens: Annotated[int, Meta(description="End-of-text left out.")]
    total_tokens: Annotated[int, Meta(description="The sum.")]
    prompt_tokens_details: Annotated[
        PromptTokensDetails, Meta(description="More about the prompts' tokens.")
    ]
    timing: Annotated[
        UsageTiming | UnsetType,
        Meta(description="If it was asked for, and the response cache did not have it all."),
    ] = UNSET


def count_usage(replies: Sequence[Reply], num_candidates: int, *, timing: bool) -> Usage:
    """Return what finished replies took, ``num_candidates`` for each prompt, prompt by prompt."""
    flights = [reply.flight for reply in replies]
    firsts = flights[::num_candidates]
    num_prompt = sum(len(flight.query.prompt) for flight in firsts)
    num_completion = sum(len(flight.tokens) for flight in flights)
    num_cached = sum(flight.timing.num_cached for flight in firsts if flight.timing)
    timings = [flight.timing for flight in flights if flight.timing]
    return Usage(
        prompt_tokens=num_prompt,
        completion_tokens=num_completion,
        total_tokens=num_prompt + num_completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached),
        timing=_tell(max(timings, key=_seconds)) if timing and timings else UNSET,
    )


def _seconds(timing: Timing) -> float:
    return timing.queue + timing.prefill + timing.decode


def _tell(timing: Timing) -> UsageTiming:
    return UsageTiming(
        queue_ms=_milliseconds(timing.queue),
        prefill_ms=_milliseconds(timing.prefill),
        decode_ms=_milliseconds(timing.decode),
        mean_batch_size=round(timing.mean_batch_size, 2),
        cached_tokens=timing.num_cached,
    )


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
