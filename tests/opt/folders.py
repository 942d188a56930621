"""Hugging Face folders as a user has them: a tiny OPT and a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import OPTForCausalLM

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
NUM_TOKEN_IDS = len(SPECIAL) + 256


def write_tokenizer(folder: Path, *extra: str) -> Path:
    """Write a tokenizer.json that knows every byte, and ``extra`` words; return the folder."""
    words = [*SPECIAL, *sorted(ByteLevel.alphabet()), *extra]
    tokenizer = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL[:3]])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "</s>"}))
    return folder


def write_folder(folder: Path, model: OPTForCausalLM) -> Path:
    """Write ``model`` and a tokenizer for it; return the folder."""
    model.save_pretrained(folder)
    return write_tokenizer(folder)
