"""Text to ids and back: the ids that OPT's own tests publish, and the bundled tokenizer."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoTokenizer

import pluribus_opt
from pluribus import CheckpointError, RequestError
from pluribus.tokenizer import FileTokenizer

SHARED = Path(__file__).parents[2].parent / "shared"
BUNDLED = Path(pluribus_opt.__file__).parent / "bundled" / "opt-stories-14m"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
KNOWN_IDS = {
    "A photo of a cat": [2, 250, 1345, 9, 10, 4758],
    "Today is a beautiful day and I want to": [2, 5625, 16, 10, 2721, 183, 8, 38, 236, 7],
    "The man turned on the faucet so the toilet filled with water.": [
        *[2, 133, 313, 1224, 15, 5, 856, 17527, 594, 98, 5, 11471, 3820, 19, 514, 4]
    ],
    "Hello world": [2, 31414, 232],
    " Hello world": [2, 20920, 232],
    "": [2],
}
OPT_TOKENIZER_CONFIG = {
    "errors": "replace",
    "unk_token": {"__type": "AddedToken", "content": "</s>", "normalized": True},
    "bos_token": {"__type": "AddedToken", "content": "</s>", "normalized": True},
    "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": True},
    "pad_token": {"__type": "AddedToken", "content": "<pad>", "normalized": True},
    "add_prefix_space": False,
    "add_bos_token": True,
    "special_tokens_map_file": None,
    "tokenizer_class": "GPT2Tokenizer",
}


@cache
def bundled() -> FileTokenizer:
    return FileTokenizer.from_folder(BUNDLED, 2)


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json and merges.txt"])
def opt_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT's own tokenizer, as transformers 5 saves it and as the hub has it."""
    folder = SHARED / ("opt_tokenizer_hf" if request.param == "tokenizer.json" else "opt_tokenizer")
    if not folder.is_dir():
        pytest.skip("the OPT tokenizer's files are not here")
    if request.param == "tokenizer.json":
        return folder
    copy = tmp_path_factory.mktemp("opt-125m")
    shutil.copyfile(folder / "gpt2-vocab.json", copy / "vocab.json")
    shutil.copyfile(folder / "gpt2-merges.txt", copy / "merges.txt")
    (copy / "config.json").write_text(json.dumps({"model_type": "opt", "prefix": "</s>"}))
    (copy / "tokenizer_config.json").write_text(json.dumps(OPT_TOKENIZER_CONFIG))
    return copy


@pytest.fixture(scope="module")
def opt(opt_folder: Path) -> FileTokenizer:
    return FileTokenizer.from_folder(opt_folder, 0)  # as OPT's first config.json had it


def copy_bundled(folder: Path, **settings: object) -> Path:
    """Copy the bundled tokenizer, its tokenizer_config.json replaced."""
    shutil.copyfile(BUNDLED / "tokenizer.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("text", KNOWN_IDS, ids=repr)
def test_opt_gives_the_published_ids(opt: FileTokenizer, text: str) -> None:
    assert opt.encode(text) == KNOWN_IDS[text]
    assert opt.decode(KNOWN_IDS[text]) == text


def test_opt_reads_published_ids_back(opt: FileTokenizer) -> None:
    ids = [0, 31414, 232, 328, 740, 1140, 12695, 69, 46078, 1588, 2]
    assert opt.decode(ids).removeprefix("<s>") == "Hello world! cécé herlolip"
    assert opt.num_token_ids == 50265


@pytest.mark.parametrize("special", SPECIAL)
def test_opt_takes_special_tokens_in_a_text_for_text(opt: FileTokenizer, special: str) -> None:
    text = f"{special} and{special}"
    ids = opt.encode(text)
    assert ids[0] == 2
    assert not {0, 1, 2, 3, 50260, 50264} & {*ids[1:]}
    assert opt.decode(ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    ids = bundled().encode(text)
    assert ids[0] == 2
    assert all(4 <= token < bundled().num_token_ids for token in ids[1:])
    assert bundled().decode(ids) == text


@given(st.lists(st.sampled_from([*SPECIAL, "a", " ", "<", "/s>"])).map("".join))
def test_special_tokens_in_any_text_are_text(text: str) -> None:
    ids = bundled().encode(text)
    assert not {0, 1, 2, 3} & {*ids[1:]}
    assert bundled().decode(ids) == text


@given(st.text(), st.characters(categories=["Cs"]), st.text())
def test_half_a_surrogate_pair_is_refused(before: str, surrogate: str, after: str) -> None:
    with pytest.raises(RequestError, match=r"prompt holds '\\ud[89a-f]") as caught:
        bundled().encode(before + surrogate + after)
    assert caught.value.param == "prompt"


def test_special_tokens_are_not_shown() -> None:
    ids = bundled().encode("Once")
    assert bundled().decode([0, 1, *ids, 2, 3]) == "Once"
    assert bundled().num_token_ids == 8192


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}


def template(*single: str) -> dict[str, object]:
    """Return a post-processor that frames a text, ``$A``, with special tokens."""
    ids = {"<s>": 0, "</s>": 2}
    pieces = [
        {"Sequence" if piece == "$A" else "SpecialToken": {"id": piece.strip("$"), "type_id": 0}}
        for piece in single
    ]
    special = {token: {"id": token, "ids": [id_], "tokens": [token]} for token, id_ in ids.items()}
    return {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special,
    }


def with_post_processor(folder: Path, processor: object, **settings: object) -> Path:
    """Copy the bundled tokenizer, its post-processor and tokenizer_config.json replaced."""
    file = copy_bundled(folder, **settings) / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": processor}))
    return folder


@pytest.mark.parametrize(
    "processor",
    [template("</s>", "$A"), template("<s>", "</s>", "$A"), template("<s>", "$A", "</s>")],
    ids=["one", "two", "both-sides"],
)
def test_in_front_is_what_the_post_processor_puts_there(tmp_path: Path, processor: object) -> None:
    folder = with_post_processor(tmp_path, processor, bos_token="<unk>")
    theirs = AutoTokenizer.from_pretrained(folder)("Once upon").input_ids
    ours = FileTokenizer.from_folder(folder, 7).encode("Once upon")
    assert ours == theirs[: len(ours)]
    assert {*theirs[len(ours) :]} <= {2}
    assert ours[-1] != 2


@pytest.mark.parametrize("processor", [None, BYTE_LEVEL, template("$A", "</s>")])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 7),
        ({"add_bos_token": True}, 7),
        ({"bos_token": "</s>"}, 2),
        ({"bos_token": {"__type": "AddedToken", "content": "</s>"}}, 2),
        ({"bos_token": "<no such token>"}, 7),
        ({"bos_token": None}, 7),
    ],
    ids=str,
)
def test_the_configuration_says_what_is_in_front_where_the_post_processor_does_not(
    tmp_path: Path, processor: object, settings: dict[str, object], expected: int
) -> None:
    tokenizer = FileTokenizer.from_folder(with_post_processor(tmp_path, processor, **settings), 7)
    assert tokenizer.encode("Once") == [expected, *bundled().encode("Once")[1:]]


@pytest.mark.parametrize("processor", [None, template("</s>", "$A")])
def test_nothing_is_in_front_where_the_tokenizer_says_so(tmp_path: Path, processor: object) -> None:
    folder = with_post_processor(tmp_path, processor, add_bos_token=False, bos_token="</s>")
    assert FileTokenizer.from_folder(folder, 7).encode("Once") == bundled().encode("Once")[1:]


def test_nothing_is_cut_or_padded_whatever_the_file_says(tmp_path: Path) -> None:
    folder = copy_bundled(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    text = "one two three four five six"
    assert FileTokenizer.from_folder(folder, 2).encode(text) == bundled().encode(text)


def test_the_digest_follows_what_changes_the_ids(tmp_path: Path) -> None:
    same = FileTokenizer.from_folder(copy_bundled(tmp_path), 2)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    no_bos = FileTokenizer.from_folder(tmp_path, 2)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    content["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    other_merges = FileTokenizer.from_folder(tmp_path, 2)
    assert same.digest == bundled().digest
    assert len({same.digest, no_bos.digest, other_merges.digest}) == 3


@pytest.mark.parametrize("damaged", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_refused_by_its_folder(tmp_path: Path, damaged: str) -> None:
    (copy_bundled(tmp_path) / damaged).write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer in .* cannot be read") as caught:
        FileTokenizer.from_folder(tmp_path, 2)
    assert str(tmp_path) in str(caught.value)


def added(*tokens: AddedToken) -> FileTokenizer:
    """Return the bundled tokenizer with tokens that are not special as well."""
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    tokenizer.add_tokens(list(tokens))
    return FileTokenizer(tokenizer, 2)


@cache
def with_added() -> FileTokenizer:
    """Return one whose added tokens are spelt in and out of the byte-level alphabet."""
    return added(*(AddedToken(text, special=False) for text in ("a b", "né", "日本", "日")))


token_ids = st.lists(st.integers(0, 8195) | st.integers(0, 5) | st.integers(100, 260), max_size=40)


def streamed(tokenizer: FileTokenizer, prompt: list[int], ids: list[int], size: int = 1) -> str:
    stream = tokenizer.stream(prompt)
    text = "".join(stream.append(ids[at : at + size]) for at in range(0, len(ids), size))
    return text + stream.finish()


@given(token_ids, token_ids, st.integers(1, 5))
def test_a_stream_gives_what_all_tokens_give_at_once(
    prompt: list[int], ids: list[int], size: int
) -> None:
    assert streamed(with_added(), prompt, ids, size) == with_added().decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_stream_shows_a_character_with_its_last_token(text: str) -> None:
    tokenizer, stream, data, shown = bundled(), bundled().stream([2]), b"", ""
    for token in tokenizer.encode(text)[1:]:
        data += tokenizer.token_bytes(token)
        shown += stream.append([token])
        assert shown == data.decode(errors="ignore")
    assert (shown, stream.finish()) == (text, "")


def test_the_bytes_of_tokens() -> None:
    ids = bundled().encode("Hé, 日")
    assert b"".join(map(bundled().token_bytes, ids)) == "</s>Hé, 日".encode()
    assert bundled().token_bytes(1) == b"<pad>"


def metaspace() -> FileTokenizer:
    """Return a tokenizer of another kind: words with their space, and bytes for what it lacks."""
    pieces = ["<unk>", "</s>", "▁", "▁the", "▁cat", "s", "a", *(f"<0x{b:02X}>" for b in range(256))]
    vocab = {piece: id_ for id_, piece in enumerate(pieces)}
    model = models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["</s>"])
    return FileTokenizer(tokenizer, 1)


words = st.integers(1, 6).map(lambda id_: [id_])
characters = st.sampled_from("日é").map(lambda text: [7 + byte for byte in text.encode()])


@given(st.lists(words | characters), st.integers(1, 4))
def test_a_stream_of_another_kind_of_tokenizer_continues_the_prompt(
    drawn: list[list[int]], size: int
) -> None:
    tokenizer, prompt, ids = metaspace(), [1, 3, 4], [*chain(*drawn)]
    whole = tokenizer.decode(prompt + ids)
    assert "the cat" + streamed(tokenizer, prompt, ids, size) == whole


def test_the_bytes_of_another_kind_of_tokenizer() -> None:
    assert [metaspace().token_bytes(id_) for id_ in (1, 4, 5)] == [b"</s>", b" cat", b"s"]


@pytest.mark.parametrize("tokenizer", [bundled(), with_added(), metaspace()])
@given(text=st.text("ab 1.é日\n\xa0", max_size=60) | st.text())
def test_a_text_has_at_least_the_tokens_it_surely_has(tokenizer: FileTokenizer, text: str) -> None:
    try:
        ids = tokenizer.encode(text)
    except RequestError:
        return
    assert 1 <= tokenizer.min_num_tokens(text) <= len(ids)


def test_a_hopelessly_long_text_is_told_without_encoding_it() -> None:
    assert bundled().min_num_tokens("once upon " * 1000) > 2000
    assert bundled().min_num_tokens("日" * 10_000) > 1800


LONG = [text * (30_000 // len(text)) for text in ("Once upon a time, ", "a", "日本", "</s> <pad>")]


@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:4])
@pytest.mark.parametrize("length", [2048, 2049, 30_000])
def test_a_long_text_is_encoded_as_a_short_one(text: str, length: int) -> None:
    raw = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    raw.encode_special_tokens = True
    assert bundled().encode(text[:length]) == raw.encode(text[:length]).ids


def test_encoding_a_long_text_lets_other_threads_run() -> None:
    text = "Once upon a time there was a vinegar bottle. " * 10_000
    with ThreadPoolExecutor(1) as pool:
        encoded = pool.submit(bundled().encode, text)
        start = last = time.monotonic()
        longest = 0.0
        while not encoded.done():
            time.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < (last - start) / 2


def test_threads_do_not_disturb_each_other() -> None:
    texts = [f"</s> {i} " * (i % 7 + 1) for i in range(200)]
    expected = [bundled().encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(bundled().encode, texts)) == expected
        assert list(pool.map(bundled().decode, expected)) == texts
