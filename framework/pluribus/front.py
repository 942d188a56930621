"""What is asked of the front: text becomes queries, queries become answers.

``Service`` answers by its own engines; a process that only speaks HTTP has it do so.
"""

from __future__ import annotations

import reprlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from pluribus.detokenizer import Detokenizer
from pluribus.errors import RequestError
from pluribus.generation import SamplingParams
from pluribus.interfaces import Query
from pluribus.reply import Reply
from pluribus.stop_strings import StopStrings
from pluribus.supervisor import Status
from pluribus.tenants import ANONYMOUS, Tenant

if TYPE_CHECKING:
    from pluribus.assembly import Parts
    from pluribus.plugins import Plugins

Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a service is.

    Attributes:
        status: where all replicas together are.
        is_advancing: whether those that are not given up get on with their work.
        replicas: where each of them is.
    """

    status: Status
    is_advancing: bool
    replicas: tuple[Status, ...]


class Front(ABC):
    """Reads prompts with a tokenizer of its own, and has them answered.

    Args:
        parts: what is served.
        plugins: for ``/plugins``.
        num_replicas: engines that answer.

    Attributes:
        spec: what is served.
        fingerprint: the model's; part of what answers depend on.
        started: when the server did, in seconds since 1970.
        max_flights: generations that may wait or run at once.
    """

    def __init__(self, parts: Parts, plugins: Plugins, num_replicas: int) -> None:
        self.parts = parts
        self.plugins = plugins
        self.spec = parts.model.spec
        self.fingerprint = parts.model.fingerprint
        self.started = int(time.time())
        max_running: int = parts.batcher_config.max_batch_size
        self.max_flights = (parts.queue.max_size + max_running) * num_replicas
        self._tokenizer = parts.model.tokenizer()
        self._num_empty = len(self._tokenizer.encode(""))
        self._stops: WeakValueDictionary[tuple[str, ...], StopStrings] = WeakValueDictionary()

    @abstractmethod
    def ask_all(self, queries: Sequence[Query], tenant: Tenant = ANONYMOUS) -> list[Reply]:
        """Begin answers, all or none; or join those under way that must come out the same.

        What may be raised here may also be raised by the replies, whose ``begun`` tells.

        Raises:
            EngineError: the service is loading, stopping or has failed.
            QueueFullError: too many are waiting.
        """

    def ask(self, query: Query, tenant: Tenant = ANONYMOUS) -> Reply:
        """Begin one answer; see ``ask_all``."""
        [reply] = self.ask_all([query], tenant)
        return reply

    @abstractmethod
    async def health(self) -> Health:
        """Return how the service is."""

    def query(self, prompt: Prompt, params: SamplingParams, *, fit: bool = False) -> Query:
        """Return what the answer will depend on. Encodes, so not for an event loop.

        Args:
            prompt: text, or token ids that are used as they are.
            params: how to choose tokens.
            fit: lower ``max_tokens`` to the room the prompt leaves, for callers who did not
                choose it.

        Raises:
            RequestError: the prompt is no prompt, empty or too long, or ids are not the model's.
        """
        ids = self._prompt_ids(prompt, params)
        room = self.spec.max_length - len(ids)
        if fit:
            params = replace(params, max_tokens=min(params.max_tokens, room))
        if params.max_tokens > room:
            raise RequestError(
                f"max_tokens: {params.max_tokens} is more than the {room} that fit after a prompt "
                f"of {len(ids)} tokens; {self.spec.name} takes {self.spec.max_length} tokens of "
                "prompt and answer together",
                param="max_tokens",
            )
        self._check_ids("logit_bias", (id_ for id_, _ in params.logit_bias))
        self._check_ids("stop_token_ids", params.stop_token_ids)
        return Query(self.fingerprint, ids, params)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a prompt, beginning-of-text included.

        Raises:
            RequestError: the text is not valid Unicode.
        """
        return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids.

        Raises:
            RequestError: an id is not the model's.
        """
        self._check_ids("tokens", ids)
        return self._tokenizer.decode(ids)

    def token_bytes(self, id_: int) -> bytes:
        """Return what one token adds to a text."""
        return self._tokenizer.token_bytes(id_)

    def _detokenizer(self, query: Query) -> Detokenizer:
        """Return what makes the text of an answer; those under way share their stop strings."""
        texts = query.params.stop
        if (stops := self._stops.get(texts)) is None:
            self._stops[texts] = stops = StopStrings(texts)
        return Detokenizer(self._tokenizer, query.prompt, stops)

    def _prompt_ids(self, prompt: Prompt, params: SamplingParams) -> tuple[int, ...]:
        longest = self.spec.max_length - (1 if params.max_tokens else 0)
        if isinstance(prompt, str):
            # What is hopelessly long is not worth the time that encoding it takes.
            self._check_length(self._tokenizer.min_num_tokens(prompt), longest, "at least ")
            ids, num_empty = tuple(self.encode(prompt)), self._num_empty
        elif isinstance(prompt, list | tuple):
            ids, num_empty = tuple(prompt), 0
        else:
            raise RequestError(
                "prompt: must be text, or a list of token ids such as [2, 5, 9], "
                f"got {reprlib.repr(prompt)}",
                param="prompt",
            )
        if len(ids) <= num_empty:
            raise RequestError("prompt: must not be empty", param="prompt")
        self._check_length(len(ids), longest)
        self._check_ids("prompt", ids)
        return ids

    def _check_length(self, num_tokens: int, longest: int, about: str = "") -> None:
        if num_tokens > longest:
            raise RequestError(
                f"prompt: {about}{num_tokens} tokens are too many; {self.spec.name} takes "
                f"{self.spec.max_length} tokens of prompt and answer together, so at most "
                f"{longest} of prompt",
                param="prompt",
            )

    def _check_ids(self, param: str, ids: Iterable[int]) -> None:
        limit = self.spec.num_token_ids
        for id_ in ids:
            if type(id_) is not int or not 0 <= id_ < limit:
                raise RequestError(
                    f"{param}: token ids must be from 0 to {limit - 1}, got {reprlib.repr(id_)}",
                    param=param,
                )
