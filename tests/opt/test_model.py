"""The plugin: what its settings mean together, what it says of itself, and what it loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OPTConfig as HuggingFaceConfig
from transformers import OPTForCausalLM

from opt.folders import NUM_TOKEN_IDS, write_folder, write_tokenizer
from opt.reading import Reading, whole
from opt.variants import hugging_face
from pluribus import ConfigError, ModelSpec, composition
from pluribus import config as conf
from pluribus.config_files import config_dir
from pluribus.errors import CheckpointError
from pluribus.parallel.group import TensorParallel
from pluribus_opt import model as module
from pluribus_opt import register_models
from pluribus_opt.config import SIZES
from pluribus_opt.decoder import OPTDecoder
from pluribus_opt.model import OPTModel, OPTModelConfig
from pluribus_opt.parts import Part

VOCAB_SIZE = 264
TEXT = [2, 72, 105, 99, 33, 4]


@pytest.fixture(scope="module")
def theirs() -> OPTForCausalLM:
    return hugging_face("pre-norm", vocab_size=VOCAB_SIZE)


@pytest.fixture
def folder(tmp_path: Path, theirs: OPTForCausalLM) -> Path:
    return write_folder(tmp_path / "tiny-opt", theirs)


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    return str(write_tokenizer(tmp_path / "tokenizer"))


def make(checkpoint: Path | str | None, **settings: str | None) -> OPTModel:
    return OPTModel(
        OPTModelConfig(checkpoint=None if checkpoint is None else str(checkpoint), **settings)
    )


def load(
    model: OPTModel, tp: TensorParallel | None = None, dtype: torch.dtype = torch.float32
) -> OPTDecoder:
    place = whole(model.spec.num_layers, tp)
    network = model.load(place, torch.device("cpu"), dtype, lambda done, total: None)
    assert isinstance(network, OPTDecoder)
    return network


def parts(model: OPTModel, tp: TensorParallel | None = None) -> list[Part]:
    """Return what is loaded in a dtype in which nothing is packed, so that it can be read."""
    return list(load(model, tp, torch.float64).parts())


def write_config(path: Path, **changes: Any) -> str:
    path.write_text(json.dumps({**hugging_face("pre-norm").config.to_dict(), **changes}))
    return str(path)


def test_a_folder_says_itself_what_it_holds(folder: Path) -> None:
    spec = make(folder).spec
    assert spec.name == "tiny-opt"
    assert (spec.num_layers, spec.hidden_size, spec.num_heads, spec.head_dim) == (3, 32, 4, 8)
    assert (spec.vocab_size, spec.num_token_ids) == (VOCAB_SIZE, NUM_TOKEN_IDS)
    assert (spec.max_length, spec.dtype) == (40, "float32")
    assert (spec.eos_token_ids, spec.pad_token_id) == ((2,), 1)
    assert spec.notes == ()


def test_the_spec_counts_every_parameter(folder: Path, theirs: OPTForCausalLM) -> None:
    assert make(folder).spec.num_parameters == theirs.num_parameters()


def test_a_loaded_network_is_the_one_that_was_saved(folder: Path, theirs: OPTForCausalLM) -> None:
    logits = Reading(load(make(folder)), [TEXT]).step({0: len(TEXT)})
    with torch.inference_mode():
        expected = theirs(torch.tensor([TEXT])).logits[0, -1:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_a_missing_tensor_stops_the_load(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.3\."):
        load(make(folder))


def test_without_a_checkpoint_the_message_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"^model\.checkpoint is not set.*=random"):
        make(None, size="opt-175b")


def test_an_unknown_size_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"^model\.size .*opt-125m.*opt-175b; got 'opt-1b'"):
        OPTModelConfig(size="opt-1b")


def test_a_size_that_contradicts_the_checkpoint_is_refused_by_field(folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        make(folder, size="opt-125m")
    message = str(refused.value)
    assert f"model.size=opt-125m contradicts {folder / 'config.json'}" in message
    assert "hidden_size is 32 there and 768 in opt-125m" in message
    assert "do_layer_norm_before" not in message


def test_a_size_that_the_checkpoint_confirms_is_its_name(tmp_path: Path, tokenizer: str) -> None:
    config = HuggingFaceConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
    config.update({"ffn_dim": 4096, "word_embed_proj_dim": 512, "do_layer_norm_before": False})
    folder = tmp_path / "checkpoint"
    config.save_pretrained(folder)
    assert make(folder, size="opt-350m", tokenizer=tokenizer).spec.name == "opt-350m"


@pytest.mark.parametrize("checkpoint", ["random", "restored.pt"])
def test_a_source_that_does_not_say_needs_size_or_config(tmp_path: Path, checkpoint: str) -> None:
    if checkpoint != "random":
        torch.save({}, tmp_path / checkpoint)
        checkpoint = str(tmp_path / checkpoint)
    with pytest.raises(ConfigError, match=r"set model\.size to one of opt-125m.* or model\.config"):
        make(checkpoint)


def test_a_size_names_the_architecture(tokenizer: str) -> None:
    spec = make("random", size="opt-350m", tokenizer=tokenizer).spec
    assert spec.name == "opt-350m"
    assert spec.num_parameters == SIZES["opt-350m"].num_parameters


def test_a_config_file_names_the_architecture(tmp_path: Path, tokenizer: str) -> None:
    config = write_config(tmp_path / "some.json", vocab_size=300, num_hidden_layers=5)
    spec = make("random", config=config, tokenizer=tokenizer).spec
    assert (spec.vocab_size, spec.num_layers) == (300, 5)


def test_a_size_that_contradicts_the_config_file_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path / "some.json")
    with pytest.raises(ConfigError, match=rf"model\.size=opt-13b contradicts {config}"):
        make("random", config=config, size="opt-13b")


def test_a_config_file_beside_the_checkpoints_own_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.config=other\.json .* set model\.config=null"):
        make(folder, config="other.json")


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["missing", "not-json", "not-object"])
def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=rf"^model\.config={path}: "):
        make("random", config=str(path))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("x" * 300, "File name too long"),
        ("~nosuchuser/x", "Could not determine home directory"),
        ("/dev/zero", "there is no such file"),
    ],
    ids=["long name", "no such user", "device"],
)
def test_what_can_be_no_config_file_is_refused_by_its_setting(path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.config={path}: .*{why}"):
        make("random", config=path)


def test_what_goes_in_front_is_the_tokenizers_to_say(folder: Path) -> None:
    """The config.json of OPT's first release has 0 for the id of what its tokenizer calls 2."""
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "bos_token_id": 0}))
    assert make(folder).tokenizer().encode("Hi")[0] == 2
    (folder / "tokenizer_config.json").unlink()
    assert make(folder).tokenizer().encode("Hi")[0] == 0


def test_the_checkpoints_own_tokenizer_is_used(folder: Path) -> None:
    ids = make(folder).tokenizer().encode("Hi")
    assert ids[0] == 2
    assert make(folder).tokenizer().decode(ids) == "Hi"


def test_a_tokenizer_that_is_asked_for_comes_before_the_checkpoints_own(
    folder: Path, tmp_path: Path
) -> None:
    other = write_tokenizer(tmp_path / "other", "and")
    assert make(folder, tokenizer=str(other)).spec.num_token_ids == NUM_TOKEN_IDS + 1


def test_without_one_the_tokenizer_is_that_of_opt(
    tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.DEFAULT_TOKENIZER == "facebook/opt-125m"
    monkeypatch.setattr(module, "DEFAULT_TOKENIZER", tokenizer)
    assert make("random", size="opt-125m").spec.num_token_ids == NUM_TOKEN_IDS


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(VOCAB_SIZE - NUM_TOKEN_IDS + 1)]
    other = write_tokenizer(tmp_path / "other", *words)
    with pytest.raises(ConfigError, match=r"265 ids, but .* vocab_size=264.*model\.tokenizer"):
        make(folder, tokenizer=str(other))


def test_random_weights_are_noted() -> None:
    model = make("random", size="opt-125m", tokenizer="opt-stories-14m")
    assert model.spec.notes == ("random weights: model.checkpoint=random",)


def test_random_weights_start_as_transformers_starts_opt(tmp_path: Path, tokenizer: str) -> None:
    config = write_config(tmp_path / "some.json", vocab_size=VOCAB_SIZE)
    for part in parts(make("random", config=config, tokenizer=tokenizer)):
        if len(part.shape) == 2:
            assert part.target.std().item() == pytest.approx(0.02, rel=0.1)
        else:
            assert (part.target == float(part.name.endswith("norm.weight"))).all()


def test_random_weights_are_the_same_however_they_are_split(tmp_path: Path, tokenizer: str) -> None:
    config = write_config(tmp_path / "some.json", vocab_size=VOCAB_SIZE)
    model = make("random", config=config, tokenizer=tokenizer)
    whole = {part.name: part.target for part in parts(model)}
    for rank in range(2):
        for part in parts(model, TensorParallel(rank, 2)):
            assert torch.equal(part.target, whole[part.name][part.index])


def test_no_two_random_tensors_are_equal(tmp_path: Path, tokenizer: str) -> None:
    config = write_config(tmp_path / "some.json", vocab_size=VOCAB_SIZE)
    loaded = parts(make("random", config=config, tokenizer=tokenizer))
    corners = [part.target[0, 0].item() for part in loaded if len(part.shape) == 2]
    assert len(set(corners)) == len(corners)


def test_progress_reaches_the_total(tmp_path: Path, tokenizer: str) -> None:
    config = write_config(tmp_path / "some.json", vocab_size=VOCAB_SIZE)
    model = make("random", config=config, tokenizer=tokenizer)
    calls: list[tuple[int, int]] = []
    place = whole(model.spec.num_layers)
    model.load(place, torch.device("cpu"), torch.float16, lambda *call: calls.append(call))
    total = 2 * model.spec.num_parameters
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


def test_the_fingerprint_stays_while_nothing_changes(folder: Path) -> None:
    assert make(folder).fingerprint == make(folder).fingerprint


def test_the_fingerprint_follows_the_weights(folder: Path) -> None:
    before = make(folder).fingerprint
    os.utime(folder / "model.safetensors", (1, 1))
    assert make(folder).fingerprint != before


def test_the_fingerprint_follows_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other", "and")
    assert make(folder, tokenizer=str(other)).fingerprint != make(folder).fingerprint


def test_the_fingerprint_follows_the_architecture(tmp_path: Path, tokenizer: str) -> None:
    small, large = (
        write_config(tmp_path / f"{count}.json", vocab_size=300, num_hidden_layers=count)
        for count in (2, 3)
    )
    fingerprints = {
        make("random", config=config, tokenizer=tokenizer).fingerprint for config in (small, large)
    }
    assert len(fingerprints) == 2


def test_a_description_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pluribus_opt.model import *; "
        f"OPTModel(OPTModelConfig(checkpoint={str(folder)!r})).spec; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def describe(**settings: str | None) -> ModelSpec:
    return OPTModel.describe(OPTModelConfig(**settings)).spec


@pytest.mark.parametrize("checkpoint", [None, "random", "facebook/opt-30b", "/no/such/folder"])
def test_a_size_is_described_whatever_is_there(checkpoint: str | None) -> None:
    spec = describe(checkpoint=checkpoint, size="opt-30b")
    assert (spec.name, spec.num_layers, spec.num_heads) == ("opt-30b", 48, 56)
    assert spec.num_token_ids == spec.vocab_size == 50272
    assert bool(spec.notes) == (checkpoint == "random")


def test_a_config_file_is_described_without_a_checkpoint(tmp_path: Path) -> None:
    config = write_config(tmp_path / "some.json", num_hidden_layers=5)
    assert describe(config=config).num_layers == 5
    assert describe(config=config).name == "some.json"


def test_a_folder_is_described_without_its_weights_and_tokenizer(folder: Path) -> None:
    before = make(folder)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).unlink()
    described = OPTModel.describe(OPTModelConfig(checkpoint=str(folder)))
    assert replace(described.spec, num_token_ids=NUM_TOKEN_IDS) == before.spec
    share = whole(3).share
    assert described.weight_bytes(share, "float32", "cpu") == before.blueprint.weight_bytes(
        share, "float32", "cpu"
    )


def test_a_description_that_contradicts_the_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.size=opt-125m contradicts"):
        describe(checkpoint=str(folder), size="opt-125m")


def test_nothing_to_describe_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model\.checkpoint is not set"):
        describe()


def test_the_plugin_offers_opt() -> None:
    assert register_models() == {"opt": OPTModel}


CHOICES = sorted(Path(config_dir(), "model").glob("*.yaml"))


def test_every_size_can_be_chosen() -> None:
    assert set(SIZES) < {path.stem for path in CHOICES}


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.stem)
def test_a_choice_of_model_is_a_sound_section(path: Path) -> None:
    section = conf.section(
        composition.load("serve", [f"model={path.stem}"]), "model", OPTModelConfig
    )
    assert section.size in (None, path.stem)
    assert path.read_text().startswith("# ")
