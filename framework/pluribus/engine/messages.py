"""What the front and the engine say to each other: typed, versioned, never pickled.

Each message is one frame on a socket: its length in four bytes, then MessagePack. The same
messages cross whether the engine is a process or a thread.
"""

from __future__ import annotations

import msgspec

from pluribus.generation import FinishReason, SamplingParams, TokenLogprobs

PROTOCOL_VERSION = 2


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Anything that crosses."""


class Start(Message, frozen=True):
    """Front: the first message; load what this configuration, in YAML, describes."""

    protocol: int
    config: str


class Submit(Message, frozen=True):
    """Front: run this generation.

    ``salt`` keeps its cached prefixes from other tenants; ``request_id`` is for the log.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    tenant: str
    weight: float
    salt: str
    request_id: str = ""


class Cancel(Message, frozen=True):
    """Front: nobody waits for this generation any more."""

    id: int


class Stop(Message, frozen=True):
    """Front: end now."""


class Loading(Message, frozen=True):
    """Engine: so many bytes of the weights are read."""

    done: int
    total: int


class Ready(Message, frozen=True):
    """Engine: everything is loaded; so many tokens of keys and values fit.

    ``phases`` are seconds that the parts of its start have taken, by name, in their order.
    """

    num_kv_tokens: int
    phases: dict[str, float] = {}


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """Where a generation's time went, in seconds, and what it shared its steps with.

    Attributes:
        queue: from its arrival at the engine to its first step.
        prefill: from there to its first token.
        decode: from there to its last.
        num_cached: prompt tokens whose keys and values were found in the cache.
        mean_batch_size: generations in a step, over the steps from its first to its last.
    """

    queue: float
    prefill: float
    decode: float
    num_cached: int
    mean_batch_size: float


class Output(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one generation gained in a step.

    Attributes:
        id: of the generation.
        tokens: ids, the end-of-text id left out.
        logprobs: of ``tokens``, and of the id that ended them, where asked for.
        prompt_logprobs: of the prompt from its second token on, once, where asked for.
        finish_reason: why it ended, or None while it has not.
        timing: once it has ended.
    """

    id: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None
    timing: Timing | None


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """The engine after a step; counts since it started unless they are of the moment.

    Attributes:
        num_steps: steps run.
        num_running, num_waiting: generations, now.
        num_kv_tokens_used: tokens of keys and values held by generations, now.
        num_prompt_tokens: prompt tokens of admitted generations.
        num_cached_tokens: those of them found in the cache.
        batch_size, num_batch_tokens: of the last step.
        step_seconds: from its submission to its result.
    """

    num_steps: int
    num_running: int
    num_waiting: int
    num_kv_tokens_used: int
    num_prompt_tokens: int
    num_cached_tokens: int
    batch_size: int
    num_batch_tokens: int
    step_seconds: float

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.num_running or self.num_waiting)


class Stepped(Message, frozen=True):
    """Engine: a step is done."""

    outputs: tuple[Output, ...]
    stats: Stats


class Refused(Message, frozen=True):
    """Engine: this generation cannot run, and why; ``param`` is the field at fault."""

    id: int
    message: str
    param: str | None


class Beat(Message, frozen=True):
    """Engine: still alive, with work to do, ``num_steps`` done."""

    num_steps: int


class Died(Message, frozen=True):
    """Engine: the last message, if it can still be sent; ``is_final`` means do not restart."""

    message: str
    is_final: bool


FromFront = Start | Submit | Cancel | Stop
FromEngine = Loading | Ready | Stepped | Refused | Beat | Died
