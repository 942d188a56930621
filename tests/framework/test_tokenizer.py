"""Text to ids and back: the ids that OPT's own tests publish, and the bundled tokenizer."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    return FileTokenizer.from_folder(opt_folder, 2)


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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, [7]), ({"add_bos_token": True}, [7]), ({"add_bos_token": False}, [])],
    ids=["not-said", "yes", "no"],
)
def test_the_beginning_is_marked_once_unless_told_otherwise(
    tmp_path: Path, settings: dict[str, object], expected: list[int]
) -> None:
    tokenizer = FileTokenizer.from_folder(copy_bundled(tmp_path, **settings), 7)
    assert tokenizer.encode("Once") == expected + bundled().encode("Once")[1:]


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
    other_bos = FileTokenizer.from_folder(tmp_path, 0)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    content["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    other_merges = FileTokenizer.from_folder(tmp_path, 2)
    assert same.digest == bundled().digest
    assert len({same.digest, other_bos.digest, other_merges.digest}) == 3


@pytest.mark.parametrize("damaged", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_refused_by_its_folder(tmp_path: Path, damaged: str) -> None:
    (copy_bundled(tmp_path) / damaged).write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer in .* cannot be read") as caught:
        FileTokenizer.from_folder(tmp_path, 2)
    assert str(tmp_path) in str(caught.value)


def test_threads_do_not_disturb_each_other() -> None:
    texts = [f"</s> {i} " * (i % 7 + 1) for i in range(200)]
    expected = [bundled().encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(bundled().encode, texts)) == expected
        assert list(pool.map(bundled().decode, expected)) == texts
