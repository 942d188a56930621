"""The unit of work: one prompt being continued, and how its tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType

from pluribus.errors import RequestError
from pluribus.field_types import TYPES

MAX_SEED = 2**63 - 1
MAX_INT = 2**31 - 1
MAX_LOGPROBS = 100
"""How many of the likeliest ids can be told for each token."""
MAX_IDS = 300
"""How many ids ``logit_bias`` and ``stop_token_ids`` may each name: every slot makes room."""


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """The model ended its text."""
    LENGTH = "length"
    """``max_tokens`` were generated."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was, before temperature and filters.

    Attributes:
        token: its id.
        logprob: its natural log probability.
        top: the likeliest ids with theirs, most likely first, as many as were asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose each next token. Hashable: it is part of the response cache's key.

    The order is: penalties and ``logit_bias``, bans for ``min_tokens``, temperature, ``top_k``,
    ``top_p``, ``min_p``.

    Attributes:
        max_tokens: how many tokens to generate at most; 0 only scores the prompt.
        temperature: what the logits are divided by, 0 to 2; 0 is greedy.
        top_k: choose among the k most likely tokens; 0 is all of them, 1 is greedy.
        top_p: choose among the fewest tokens whose probabilities sum to at least this, in (0, 1].
        min_p: choose among tokens at least this times as likely as the likeliest, in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt
            or answer (Keskar et al., 2019), in (0, 2].
        presence_penalty: subtracted from the logits of tokens in the answer, -2 to 2.
        frequency_penalty: subtracted once for every time they are in the answer, -2 to 2.
        logit_bias: added to the logits of these ids, sorted by id, -100 to 100 each; MAX_IDS
            at most.
        seed: makes the answer repeat exactly, whatever shares its batch; None draws a fresh one.
        min_tokens: how many tokens to generate before anything may end the answer.
        stop: texts that end the answer and are not part of it.
        stop_token_ids: ids that end the answer and are not part of it; MAX_IDS at most.
        ignore_eos: whether the end-of-text id is an id like any other.
        logprobs: how many of the likeliest ids to tell for each token; None tells nothing,
            0 the chosen token's probability alone.
        prompt_logprobs: the same for the prompt's tokens.

    A list may be given for a tuple, and a mapping for ``logit_bias``.

    Raises:
        RequestError: a value is of a wrong type or out of its range; names the field.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        self._freeze()
        _check_range("max_tokens", self.max_tokens, 0, MAX_INT)
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise RequestError(
                "max_tokens must be at least 1, got 0: nothing is asked for", param="max_tokens"
            )
        _check_range("temperature", self.temperature, 0, 2)
        _check_range("top_k", self.top_k, 0, MAX_INT)
        allowed = 0 < self.top_p <= 1
        _check("top_p", self.top_p, allowed, "above 0 and at most 1")
        _check_range("min_p", self.min_p, 0, 1)
        allowed = 0 < self.repetition_penalty <= 2
        _check("repetition_penalty", self.repetition_penalty, allowed, "above 0 and at most 2")
        _check_range("presence_penalty", self.presence_penalty, -2, 2)
        _check_range("frequency_penalty", self.frequency_penalty, -2, 2)
        for name in ("logit_bias", "stop_token_ids"):
            if (num_ids := len(getattr(self, name))) > MAX_IDS:
                raise RequestError(f"{name} may name {MAX_IDS} ids, got {num_ids}", param=name)
        for id_, bias in self.logit_bias:
            _check_range(f"logit_bias.{id_}", bias, -100, 100)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, MAX_SEED)
        _check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        _check("stop", self.stop, all(self.stop), "texts of at least one character")
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _check_range(name, value, 0, MAX_LOGPROBS)

    def _check_types(self) -> None:
        for name, is_one, rule in _FIELD_TYPES:
            value = getattr(self, name)
            _check(name, value, is_one(value), rule)

    def _freeze(self) -> None:
        """Turn what may be given for a tuple into one."""
        biases = self.logit_bias
        pairs = biases.items() if isinstance(biases, Mapping) else map(tuple, biases)
        object.__setattr__(self, "logit_bias", tuple(sorted(pairs)))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def is_reproducible(self) -> bool:
        """Whether the same prompt must give the same answer again."""
        return self.is_greedy or self.seed is not None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is done to the logits before a token is chosen."""
        return not (self.has_penalties or self.logit_bias or self.min_tokens)

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on which tokens have come before."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


_FIELD_TYPES = tuple((each.name, *TYPES[str(each.type)]) for each in fields(SamplingParams))


def _check_range(name: str, value: float, low: float, high: float) -> None:
    _check(name, value, low <= value <= high, f"from {low} to {high}")


def _check(name: str, value: object, allowed: bool, rule: str) -> None:
    if not allowed:
        raise RequestError(f"{name} must be {rule}, got {value!r}", param=name.partition(".")[0])


@dataclass(eq=False, slots=True, kw_only=True)
class Generation:
    """One prompt being continued. Compared by identity; owned by the engine's thread.

    ``num_scheduled`` runs ahead of the tokens' values: a step may be planned before the
    token it starts from has been read back from the device.

    Attributes:
        id: unique among the generations alive.
        prompt: the prompt's token ids, beginning-of-text included; at least one.
        params: how to choose each next token; its seed is set.
        tenant: on whose behalf it runs.
        weight: the tenant's share, relative to the others'.
        salt: keeps its cached prefix from generations with another salt.
        request_id: of the HTTP request it came with, for the log.
        tokens: the ids generated so far.
        logprobs: of ``tokens``, and of the id that ended them, where asked for.
        prompt_logprobs: of the prompt from its second token on, where asked for.
        max_length: tokens of prompt and answer at most: what to reserve.
        last: position of its last token, at most; no step computes that of an answer.
        num_cached: prompt tokens whose keys and values were found in the cache.
        num_scheduled: leading tokens, of prompt and answer, whose keys and values have been
            computed, are cached, or are part of a step under way.
        slot: the row of the device's state that it holds while it runs.
        finish_reason: why it ended, or None while it has not.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    tenant: str = ""
    weight: float = 1.0
    salt: str = ""
    request_id: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    max_length: int = field(init=False)
    last: int = field(init=False)
    num_cached: int = 0
    num_scheduled: int = 0
    slot: int | None = None
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.max_length = len(self.prompt) + self.params.max_tokens
        self.last = self.max_length - 1

    @property
    def takes_one_pass(self) -> bool:
        """Whether its next step cannot have several passes: of those, tokens alone are told."""
        is_scored = self.params.prompt_logprobs is not None
        tells = self.params.logprobs is not None
        return (
            self.num_unscheduled > 1
            or tells
            or (is_scored and self.num_scheduled < len(self.prompt))
        )

    @property
    def num_unscheduled(self) -> int:
        """Tokens the next step could compute.

        What is left of the prompt, then one a step, until the step under way gives the last.
        """
        num_left = len(self.prompt) - self.num_scheduled
        if num_left > 0:
            return num_left
        return 1 if self.num_scheduled < self.last else 0


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
