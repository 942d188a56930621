"""A tokenizer whose tokens are bytes: a character may take several."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

EOS = 2
FIRST_BYTE = 3
"""The id of byte 0."""


class ByteStream:
    """Text from bytes as they come, never cut inside a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def append(self, tokens: Sequence[int]) -> str:
        return self._decoder.decode(_bytes(tokens))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """Ids below ``FIRST_BYTE`` are special; ``</s>`` is in front of every text."""

    num_token_ids = FIRST_BYTE + 256

    def encode(self, text: str) -> list[int]:
        return [EOS, *(FIRST_BYTE + byte for byte in text.encode("utf-8", "replace"))]

    def min_num_tokens(self, text: str) -> int:
        return len(self.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return _bytes(ids).decode("utf-8", "replace")

    def stream(self, prompt: Sequence[int]) -> ByteStream:
        return ByteStream()

    def token_bytes(self, id_: int) -> bytes:
        return _bytes([id_]) or (b"<s>", b"<pad>", b"</s>")[id_]


def _bytes(ids: Sequence[int]) -> bytes:
    return bytes(id_ - FIRST_BYTE for id_ in ids if id_ >= FIRST_BYTE)
