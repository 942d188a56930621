"""Answers to repeated queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pluribus.generation import FinishReason, SamplingParams, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Query:
    """What an answer depends on: the response cache's key.

    Attributes:
        model: the model's fingerprint.
        prompt: token ids.
        params: every sampling parameter.
    """

    model: str
    prompt: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished generation: the ids generated, the end-of-text id left out, and why it ended."""

    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class ResponseCache(ABC):
    """Remembers answers. Called from several threads at once."""

    Config: ClassVar[type[Any]]
    """Dataclass of the settings in the ``cache.response`` section, less ``name``."""

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @property
    def pinned(self) -> Sequence[dict[str, Any]]:
        """Requests, as ``/generation`` takes them, whose answers are never evicted.

        The framework turns each into a Query and calls ``pin`` before the first ``get``.
        """
        return ()

    @abstractmethod
    def get(self, query: Query) -> Answer | None:
        """Return a remembered answer, or None when the query has to be computed."""

    @abstractmethod
    def put(self, query: Query, answer: Answer) -> None:
        """Remember an answer that was computed."""

    @abstractmethod
    def pin(self, query: Query) -> None:
        """Never evict this query's answers."""
