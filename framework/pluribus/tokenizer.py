"""Text to token ids and back, by the files that come with a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pluribus.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class FileTokenizer:
    """A tokenizer read from files. Encodes and decodes from several threads at once."""

    def __init__(self, tokenizer: Tokenizer, prefix: Sequence[int]) -> None:
        """Take over ``tokenizer``, and put the ids ``prefix`` in front of every text."""
        # A prompt is never cut, padded, or able to spell a special token.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._prefix = list(prefix)
        self._num_token_ids = max(tokenizer.get_vocab().values()) + 1

    @classmethod
    def from_folder(cls, path: Path, bos_token_id: int) -> FileTokenizer:
        """Read a folder's tokenizer.json, or its vocab.json and merges.txt.

        ``bos_token_id`` goes in front of every text, unless the folder's tokenizer_config.json
        says ``"add_bos_token": false``.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        whole = path / "tokenizer.json"
        try:
            tokenizer = _read_whole(whole) if whole.is_file() else _read_vocabulary(path)
            adds_bos = _settings(path).get("add_bos_token") is not False
        except Exception as error:  # the tokenizers library raises plain Exception
            raise CheckpointError(f"The tokenizer in {path} cannot be read: {error}") from error
        return cls(tokenizer, [bos_token_id] if adds_bos else [])

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
        return self._prefix + self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _read_whole(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))


def _read_vocabulary(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True
    ).backend_tokenizer
    return tokenizer


def _settings(folder: Path) -> dict[str, object]:
    file = folder / "tokenizer_config.json"
    settings: dict[str, object] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return settings
