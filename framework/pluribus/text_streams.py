"""The text of tokens that come one after another."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What stands for bytes that are no character, or not yet."""


class ByteStream:
    """For tokens that are bytes, whatever surrounds them."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """Start a text; ``pieces`` has the bytes of every token, by id."""
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def append(self, tokens: Sequence[int]) -> str:
        """Return the whole characters that ``tokens`` complete."""
        return self._decoder.decode(b"".join([self._pieces[token] for token in tokens]))

    def finish(self) -> str:
        """Return what is left: a character that was never completed, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


class ContextStream:
    """For tokens whose text depends on their neighbours: decodes the latest with those before."""

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        """Start a text after ``prompt``; ``decode`` gives the text of tokens at once."""
        self._decode = decode
        self._context = list(prompt)
        self._latest: list[int] = []

    def append(self, tokens: Sequence[int]) -> str:
        """Return the whole characters that ``tokens`` complete."""
        self._latest += tokens
        new = self.finish()
        if not new or new.endswith(REPLACEMENT):
            return ""
        self._context, self._latest = self._latest, []
        return new

    def finish(self) -> str:
        """Return what is left: a character that was never completed, as U+FFFD."""
        return self._decode(self._context + self._latest)[len(self._decode(self._context)) :]
