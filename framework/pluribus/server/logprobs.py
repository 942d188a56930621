"""Log probabilities as OpenAI's completions API tells them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from pluribus.generation import TokenLogprobs
from pluribus.server.schema import ResponseBody

if TYPE_CHECKING:
    from pluribus.front import Front


class Logprobs(ResponseBody, frozen=True, kw_only=True):
    """How likely each token was, before temperature and filters."""

    tokens: Annotated[
        list[str],
        Meta(description="Each as text, or as `bytes:\\xe2...` where it is not whole UTF-8."),
    ]
    token_logprobs: Annotated[
        list[float | None],
        Meta(description="Natural logarithms. null for a prompt's first token: nothing gives it."),
    ]
    top_logprobs: Annotated[
        list[dict[str, float] | None],
        Meta(description="The likeliest tokens and the one that was taken, likeliest first."),
    ]
    text_offset: Annotated[
        list[int], Meta(description="Where each begins in `text`, in characters.")
    ]


class TokenTexts:
    """What tokens look like, remembered."""

    def __init__(self, service: Front) -> None:
        self._service = service
        self._names: dict[int, str] = {}
        self._visible: dict[int, bytes] = {}

    def name(self, id_: int) -> str:
        """Return what a token is called: its text if it has one, else its bytes."""
        if id_ not in self._names:
            self._names[id_] = _name(self._service.token_bytes(id_))
        return self._names[id_]

    def visible(self, id_: int) -> bytes:
        """Return what a token adds to a text; a special token adds nothing."""
        if id_ not in self._visible:
            is_shown = self._service.decode([id_]) != ""
            self._visible[id_] = self._service.token_bytes(id_) if is_shown else b""
        return self._visible[id_]


def _name(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


class LogprobsWriter:
    """Writes the log probabilities of one text, piece by piece."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._written = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])

    def write_prompt(
        self, ids: Sequence[int], told: Sequence[TokenLogprobs], num_chars: int
    ) -> None:
        """Write a prompt of ``num_chars`` characters; ``told`` is of its second token and on."""
        self._write(ids[0], None, None)
        self.write(told)
        self._offset = num_chars
        self._decoder.reset()

    def write(self, told: Sequence[TokenLogprobs]) -> None:
        """Write what follows."""
        name = self._texts.name
        for each in told:
            top = {name(id_): logprob for id_, logprob in each.top}
            top.setdefault(name(each.token), each.logprob)
            self._write(each.token, each.logprob, top)

    def take(self) -> Logprobs:
        """Return what has been written since the last time."""
        taken = self._written
        self._written = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        return taken

    def _write(self, id_: int, logprob: float | None, top: dict[str, float] | None) -> None:
        written = self._written
        written.tokens.append(self._texts.name(id_))
        written.token_logprobs.append(logprob)
        written.top_logprobs.append(top)
        written.text_offset.append(self._offset)
        self._offset += len(self._decoder.decode(self._texts.visible(id_)))
