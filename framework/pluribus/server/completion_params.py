"""From a completions request to what the engine is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pluribus.errors import RequestError
from pluribus.generation import MAX_SEED, SamplingParams
from pluribus.interfaces import Query
from pluribus.server.completion_schema import CompletionRequest

if TYPE_CHECKING:
    from pluribus.front import Front
    from pluribus.tenants import Tenant

DEFAULT_MAX_TOKENS = 16

_SAME_NAME = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
)
"""Fields that the request and the engine call the same."""


def num_choices(body: CompletionRequest) -> int:
    """Return how many choices each prompt gets."""
    return body.n or 1


def num_candidates(body: CompletionRequest) -> int:
    """Return how many generations they are chosen from."""
    return body.best_of or num_choices(body)


def includes_usage(body: CompletionRequest) -> bool:
    """Whether a stream is to tell what it took."""
    return body.stream_options is not None and body.stream_options.include_usage


def read_queries(service: Front, body: CompletionRequest, tenant: Tenant) -> list[Query]:
    """Return what to ask: the candidates of the first prompt, those of the second, and so on.

    Raises:
        RequestError: fields contradict each other, a prompt cannot be continued so, or there are
            more of them than can ever begin together.
    """
    params = _sampling_params(body)
    _check_number(body, service.max_flights, "queue.max_size and batcher.max_batch_size allow")
    if limit := tenant.most_at_once:
        most, name = limit
        _check_number(body, most, f"your key's {name} allows")
    return [
        query
        for index in range(len(body.prompt))
        for query in _candidates(_query(service, body, index, params), num_candidates(body))
    ]


def _check_number(body: CompletionRequest, most: int, allows: str) -> None:
    num_queries = len(body.prompt) * num_candidates(body)
    if num_queries > most:
        raise RequestError(
            f"prompt: {len(body.prompt)} prompts of {num_candidates(body)} choices are "
            f"{num_queries} generations, more than the {most} that {allows}; send fewer at once",
            param="prompt",
        )


def _query(service: Front, body: CompletionRequest, index: int, params: SamplingParams) -> Query:
    try:
        return service.query(body.prompt[index], params, fit=body.max_tokens is None)
    except RequestError as error:
        if len(body.prompt) == 1:
            raise
        message = f"{error} (prompt {index} of {len(body.prompt)}, counted from 0)"
        raise RequestError(message, param=error.param) from None


def _candidates(query: Query, number: int) -> Iterator[Query]:
    """Yield one query for each candidate: with a seed of its own, where that matters."""
    params = query.params
    for index in range(number):
        if params.seed is None or params.is_greedy:
            yield query
        else:
            yield replace(query, params=replace(params, seed=_wrapped(params.seed + index)))


def _wrapped(seed: int) -> int:
    """Return the engine's seed for any integer: it knows no negative ones."""
    return seed % (MAX_SEED + 1)


def _sampling_params(body: CompletionRequest) -> SamplingParams:
    _check_streaming(body)
    _check_best_of(body)
    if body.max_tokens == 0 and not body.echo:
        raise RequestError(
            "max_tokens: 0 is below the minimum, 1; with echo: true it would score the prompt",
            param="max_tokens",
        )
    logprobs = scores = body.logprobs
    if num_candidates(body) > num_choices(body):
        logprobs = logprobs or 0  # the best are chosen by them
    if body.max_tokens == 0:
        scores = scores or 0  # there is nothing else to compute
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME_NAME}
    return SamplingParams(
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        seed=None if body.seed is None else _wrapped(body.seed),
        stop=tuple(sorted(set(body.stop or ()))),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logit_bias=tuple(sorted((int(id_), bias) for id_, bias in (body.logit_bias or {}).items())),
        logprobs=logprobs,
        prompt_logprobs=scores if body.echo else None,
        **{name: value for name, value in fields.items() if value is not None},
    )


def _check_streaming(body: CompletionRequest) -> None:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: needs stream: true", param="stream_options")
    if body.stream and body.timing and not includes_usage(body):
        raise RequestError(
            "timing: is part of usage, which a stream tells if stream_options has "
            "include_usage: true",
            param="timing",
        )


def _check_best_of(body: CompletionRequest) -> None:
    if num_candidates(body) < num_choices(body):
        raise RequestError(
            f"best_of: {body.best_of} is below n, which is {body.n}", param="best_of"
        )
    if body.stream and num_candidates(body) > num_choices(body):
        raise RequestError(
            f"best_of: {body.best_of} cannot be streamed, as the best are known only at the end; "
            "leave out best_of or stream",
            param="best_of",
        )
