"""Text to token ids and back, by the files that come with a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pluribus.errors import CheckpointError, RequestError
from pluribus.text_streams import ByteStream, ContextStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pluribus.interfaces import TextStream


SHORT = 2048
"""Characters up to which encoding in place is fastest, and holds nobody up."""


class FileTokenizer:
    """A tokenizer read from files. Encodes and decodes from several threads at once.

    Args:
        tokenizer: taken over. What its post-processor puts in front of a text stays there.
        bos_token_id: in front of every text if the post-processor puts nothing there;
            None: nothing ever is in front.
    """

    def __init__(self, tokenizer: Tokenizer, bos_token_id: int | None) -> None:
        # A prompt is never cut, padded, or able to spell a special token.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._prefix = [] if bos_token_id is None else _in_front(tokenizer) or [bos_token_id]
        self._num_token_ids = max(tokenizer.get_vocab().values()) + 1
        added = tokenizer.get_added_tokens_decoder()
        self._special = {id_: t.content.encode() for id_, t in added.items() if t.special}
        self._pieces = self._byte_level_pieces()
        self._bounds = None
        if self._pieces and tokenizer.normalizer is None and len(self._special) == len(added):
            self._bounds = _Bounds.of(self._pieces)

    @classmethod
    def from_folder(cls, path: Path, bos_token_id: int) -> FileTokenizer:
        """Read a folder's tokenizer.json, or its vocab.json and merges.txt.

        What goes in front of every text is the tokenizer's to say: nothing if its
        tokenizer_config.json says ``"add_bos_token": false``, else what its post-processor
        puts there, else the ``bos_token`` of its tokenizer_config.json. ``bos_token_id`` is
        for one that says nothing.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        whole = path / "tokenizer.json"
        try:
            tokenizer = _read_whole(whole) if whole.is_file() else _read_vocabulary(path)
            settings = _settings(path)
            named = _id_of(tokenizer, settings.get("bos_token"))
            adds_bos = settings.get("add_bos_token") is not False
        except Exception as error:  # the tokenizers library raises plain Exception
            raise CheckpointError(f"The tokenizer in {path} cannot be read: {error}") from error
        bos = bos_token_id if named is None else named
        return cls(tokenizer, bos if adds_bos else None)

    @property
    def num_token_ids(self) -> int:
        """One more than the highest id that has text."""
        return self._num_token_ids

    @property
    def digest(self) -> str:
        """Differs whenever the same text may give other ids."""
        described = f"{self._prefix}{self._tokenizer.to_str()}"
        return hashlib.sha256(described.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, the beginning-of-text id in front.

        Special tokens spelt out in ``text`` are ordinary text.

        Raises:
            RequestError: half of a surrogate pair, which no encoding of text can hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"prompt holds {text[error.start]!a} at character {error.start}, half of a "
                "surrogate pair: it must be valid Unicode",
                param="prompt",
            ) from error
        return self._prefix + self._encode(text)

    def _encode(self, text: str) -> list[int]:
        if len(text) <= SHORT:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        # Lets other threads run, while a plain encode would stop them for as long as it takes.
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return encoding.ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """Return a stream for the text of the tokens that follow ``prompt``."""
        return (
            ContextStream(self.decode, prompt) if self._pieces is None else ByteStream(self._pieces)
        )

    def token_bytes(self, id_: int) -> bytes:
        """Return what one token adds to the text, special tokens as they are spelt."""
        if id_ in self._special:
            return self._special[id_]
        if self._pieces is not None:
            return self._pieces[id_]
        stream = self.stream([id_])
        return (stream.append([id_]) + stream.finish()).encode()

    def min_num_tokens(self, text: str) -> int:
        """Return a number of tokens that ``text`` surely has, a hundred times faster than encode.

        It tells texts that are hopelessly long.
        """
        return len(self._prefix) + (self._bounds.min_num_tokens(text) if self._bounds else 0)

    def _byte_level_pieces(self) -> tuple[bytes, ...] | None:
        """Return the text of every id, special ones have none; None unless tokens are bytes."""
        from tokenizers.decoders import ByteLevel

        if not isinstance(self._tokenizer.decoder, ByteLevel):
            return None
        alphabet = _byte_level_alphabet()
        pieces = [b""] * self._num_token_ids
        for token, id_ in self._tokenizer.get_vocab().items():
            if id_ not in self._special:
                try:
                    pieces[id_] = bytes(map(alphabet.__getitem__, token))
                except KeyError:  # not spelt in the alphabet, so it is its own text
                    pieces[id_] = token.encode()
        return tuple(pieces)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """The most that one token takes of a text: bytes, and words of ASCII letters and digits."""

    num_bytes: int
    num_words: int

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> _Bounds:
        num_words = max(len(_words(piece)) for piece in pieces)
        return cls(max(map(len, pieces)), max(1, num_words))

    def min_num_tokens(self, text: str) -> int:
        data = text.encode(errors="surrogatepass")
        return max(-(-len(data) // self.num_bytes), -(-len(_words(data)) // self.num_words))


_NO_WORD = bytes(byte if chr(byte).isalnum() and byte < 128 else 32 for byte in range(256))


def _words(text: bytes) -> list[bytes]:
    return text.translate(_NO_WORD).split()


def _byte_level_alphabet() -> dict[str, int]:
    """Return which character spells each byte: itself, or one from U+0100 on."""
    itself = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in itself}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _read_whole(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def _read_vocabulary(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    ).backend_tokenizer
    return tokenizer


def _in_front(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that the tokenizer's own post-processor puts in front of a text."""
    encoding = tokenizer.encode("a")
    marked = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return [id_ for id_, _ in takewhile(lambda pair: pair[1], marked)]


def _id_of(tokenizer: Tokenizer, token: object) -> int | None:
    """Return the id of a token as tokenizer_config.json has it: its text, or an object."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _settings(folder: Path) -> dict[str, object]:
    file = folder / "tokenizer_config.json"
    settings: dict[str, object] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return settings
