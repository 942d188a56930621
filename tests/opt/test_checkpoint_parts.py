"""Parts and shards that are missing, mixed or doubled are refused in words that name them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opt.checkpoint_files import canonical_state, metaseq_state, parts_for, tiny_opt
from opt.metaseq_files import LAYOUTS, fully_sharded, model_parallel, save_parts, save_shards
from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint import resolve
from pluribus_opt.config import OPTConfig

MODEL = tiny_opt(num_attention_heads=8)
CONFIG = OPTConfig.from_json(MODEL.config.to_dict(), "transformers")


def refusal(path: Path, architecture: OPTConfig | None = CONFIG) -> str:
    """Return why the checkpoint at ``path`` is refused."""
    with pytest.raises(CheckpointError) as caught:
        resolve(str(path)).open(architecture)
    return str(caught.value)


def part(folder: Path, i: int) -> Path:
    return folder / f"reshard-model_part-{i}.pt"


def shard(folder: Path, i: int, j: int) -> Path:
    return folder / f"checkpoint_last-model_part-{i}-shard{j}.pt"


DESCRIBED = pytest.mark.parametrize("described", [True, False], ids=["described", "bare"])


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a file holds."""
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


@pytest.mark.parametrize("wrapped", [True, False], ids=["metaseq", "energonai"])
def test_a_lone_part_says_which_others_are_missing(tmp_path: Path, wrapped: bool) -> None:
    save_parts(MODEL, tmp_path, 4, wrapped=wrapped)
    message = refusal(part(tmp_path, 1))
    assert f"{part(tmp_path, 1)} is part 1 of a checkpoint in 4 model-parallel parts" in message
    for i in (0, 2, 3):
        assert part(tmp_path, i).name in message
    assert "Set model.checkpoint to a folder" in message


def test_a_lone_part_whose_name_says_nothing(tmp_path: Path) -> None:
    torch.save(model_parallel(MODEL, 2)[0], file := tmp_path / "weights.pt")
    assert f"{file} is one of 2 model-parallel parts, as its shapes tell" in refusal(file)


@pytest.mark.parametrize("absent", [0, 2, 3])
def test_a_missing_part_is_named(tmp_path: Path, absent: int) -> None:
    save_parts(MODEL, tmp_path, 4)
    part(tmp_path, absent).unlink()
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path} has 3 of the 4 model-parallel parts")
    assert message.endswith(f"missing: {part(tmp_path, absent).name}")


def test_parts_of_different_splits_are_not_joined(tmp_path: Path) -> None:
    (tmp_path / "four").mkdir()
    save_parts(MODEL, tmp_path / "four", 4)
    save_parts(MODEL, tmp_path, 2)
    shutil.copy(part(tmp_path / "four", 1), part(tmp_path, 1))
    assert f"{part(tmp_path, 1)} is one of 4 parts but" in refusal(tmp_path)


def test_a_part_too_many_is_not_passed_over(tmp_path: Path) -> None:
    save_parts(MODEL, tmp_path, 2)
    shutil.copy(part(tmp_path, 1), part(tmp_path, 2))
    assert "are 3 parts by their names, but each is one of 2 by its shapes" in refusal(tmp_path)


def test_whole_models_under_the_names_of_parts(tmp_path: Path) -> None:
    for i in range(2):
        torch.save(metaseq_state(MODEL), part(tmp_path, i))
    assert "are 2 parts by their names, but each is one of 1" in refusal(tmp_path)


def test_parts_of_different_dtypes_are_not_joined(tmp_path: Path) -> None:
    save_parts(MODEL, tmp_path, 2)
    name = "decoder.layers.0.fc1.weight"

    def halve(content: dict[str, Any]) -> None:
        content["model"][name] = content["model"][name].half()

    edit(part(tmp_path, 1), halve)
    message = refusal(tmp_path)
    assert f"{name} is [32, 32] of float16 in {part(tmp_path, 1)}" in message
    assert f"[32, 32] of float32 in {part(tmp_path, 0)}" in message


@pytest.mark.parametrize("i", [0, 1])
def test_a_part_that_lacks_a_tensor_is_named(tmp_path: Path, i: int) -> None:
    save_parts(MODEL, tmp_path, 2)
    name = "decoder.layers.1.fc2.bias"
    edit(part(tmp_path, i), lambda content: content["model"].pop(name))
    holder = part(tmp_path, 1 - i)
    assert f"{part(tmp_path, i)} lacks {name}, which {holder} holds" in refusal(tmp_path)


def test_two_files_for_one_part_are_both_named(tmp_path: Path) -> None:
    save_parts(MODEL, tmp_path, 2)
    shutil.copy(part(tmp_path, 1), copy := tmp_path / "copy-model_part-1.pt")
    message = refusal(tmp_path)
    assert str(copy) in message
    assert str(part(tmp_path, 1)) in message
    assert "the same one by their names" in message


def test_a_part_under_the_name_of_another_is_found_out(tmp_path: Path) -> None:
    save_parts(MODEL, tmp_path, 4)
    shutil.copy(part(tmp_path, 1), part(tmp_path, 3))
    message = refusal(tmp_path)
    assert message.startswith(f"{part(tmp_path, 3)} holds the same numbers as {part(tmp_path, 1)}")


@pytest.mark.parametrize("name", ["restored.pt", "pytorch_model-00001.bin"])
def test_parts_beside_a_whole_checkpoint_are_refused(tmp_path: Path, name: str) -> None:
    save_parts(MODEL, tmp_path, 2)
    torch.save(metaseq_state(MODEL), tmp_path / name)
    message = refusal(tmp_path)
    assert "is there twice: in" in message
    assert str(tmp_path / name) in message


def test_parts_whose_names_say_nothing_are_refused(tmp_path: Path) -> None:
    for i, state in enumerate(model_parallel(MODEL, 2)):
        torch.save(state, tmp_path / f"{i}.pt")
    assert "is there twice" in refusal(tmp_path)


@DESCRIBED
def test_a_lone_shard_says_which_others_are_missing(tmp_path: Path, described: bool) -> None:
    save_shards(MODEL, tmp_path, 1, 3, described=described)
    message = refusal(shard(tmp_path, 0, 0))
    assert str(shard(tmp_path, 0, 0)) in message
    assert message.endswith(f"missing: {shard(tmp_path, 0, 1).name}, {shard(tmp_path, 0, 2).name}")


@DESCRIBED
@pytest.mark.parametrize("absent", [(1, 0), (0, 1), (1, 2)], ids=str)
def test_a_missing_shard_is_named(tmp_path: Path, described: bool, absent: tuple[int, int]) -> None:
    save_shards(MODEL, tmp_path, 2, 3, described=described)
    shard(tmp_path, *absent).unlink()
    message = refusal(tmp_path)
    assert "has 2 of the 3 shards" in message
    assert message.endswith(f"missing: {shard(tmp_path, *absent).name}")


@DESCRIBED
def test_a_last_shard_that_every_part_lacks_is_missed_by_count(
    tmp_path: Path, described: bool
) -> None:
    save_shards(MODEL, tmp_path, 2, 4, described=described)
    for i in range(2):
        shard(tmp_path, i, 3).unlink()
    assert refusal(tmp_path).endswith(f"missing: {shard(tmp_path, 0, 3).name}")


@DESCRIBED
def test_the_shards_of_a_missing_part_are_missed(tmp_path: Path, described: bool) -> None:
    save_shards(MODEL, tmp_path, 2, 3, described=described)
    for j in range(3):
        shard(tmp_path, 1, j).unlink()
    message = refusal(tmp_path)
    assert f"{shard(tmp_path, 0, 0)} is part 0 of a checkpoint in 2 model-parallel" in message
    assert shard(tmp_path, 1, 0).name in message


def test_two_files_for_one_shard_are_both_named(tmp_path: Path) -> None:
    save_shards(MODEL, tmp_path, 1, 2)
    shutil.copy(shard(tmp_path, 0, 1), copy := tmp_path / "best-model_part-0-shard1.pt")
    message = refusal(tmp_path)
    assert str(copy) in message
    assert str(shard(tmp_path, 0, 1)) in message


@DESCRIBED
def test_shards_of_different_cuts_are_not_joined(tmp_path: Path, described: bool) -> None:
    (tmp_path / "two").mkdir()
    save_shards(MODEL, tmp_path / "two", 1, 2, described=described)
    save_shards(MODEL, tmp_path, 1, 3, described=described)
    shutil.copy(shard(tmp_path / "two", 0, 1), shard(tmp_path, 0, 1))
    message = refusal(tmp_path)
    assert re.search(rf"flat_param_0 is \[\d+\] of float32 in {shard(tmp_path, 0, 1)}", message)
    assert re.search(rf"but \[\d+\] of float32 in {shard(tmp_path, 0, 0)}", message)


@DESCRIBED
@pytest.mark.parametrize("num_shards", [2, 3, 4])
def test_shards_of_different_dtypes_are_not_joined(
    tmp_path: Path, described: bool, num_shards: int
) -> None:
    save_shards(MODEL, tmp_path, 1, num_shards, described=described)
    name = "decoder.layers.1.flat_param_0"

    def halve(content: dict[str, Any]) -> None:
        content["model"][name] = content["model"][name].half()

    edit(shard(tmp_path, 0, 1), halve)
    message = refusal(tmp_path)
    assert re.search(rf"{name} is \[\d+\] of float16 in {shard(tmp_path, 0, 1)}", message)
    assert re.search(rf"but \[\d+\] of float32 in {shard(tmp_path, 0, 0)}", message)


@DESCRIBED
@pytest.mark.parametrize("num_shards", [2, 3, 4])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_shard_under_the_name_of_another_is_found_out(
    tmp_path: Path, described: bool, num_shards: int, num_parts: int
) -> None:
    save_shards(MODEL, tmp_path, num_parts, num_shards, described=described)
    last = shard(tmp_path, num_parts - 1, num_shards - 1)
    shutil.copy(first := shard(tmp_path, num_parts - 1, 0), last)
    assert refusal(tmp_path).startswith(f"{last} holds the same numbers as {first}")


@DESCRIBED
def test_a_copied_shard_is_found_out_where_its_first_numbers_are_all_the_same(
    tmp_path: Path, described: bool
) -> None:
    model = tiny_opt(num_attention_heads=8)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight.zero_()
        model.model.decoder.layers[0].self_attn.k_proj.weight.fill_(1)
    save_shards(model, tmp_path, 1, 4, described=described)
    resolve(str(tmp_path)).open(CONFIG)
    shutil.copy(shard(tmp_path, 0, 0), shard(tmp_path, 0, 1))
    message = refusal(tmp_path)
    assert message.startswith(f"{shard(tmp_path, 0, 1)} holds the same numbers as")


@pytest.mark.parametrize("num_shards", [2, 3, 4])
def test_shards_described_otherwise_are_not_joined(tmp_path: Path, num_shards: int) -> None:
    save_shards(MODEL, tmp_path, 1, num_shards)

    def swap(content: dict[str, Any]) -> None:
        for words in (flat(content)["names"], flat(content)["shapes"]):
            words.reverse()

    edit(last := shard(tmp_path, 0, num_shards - 1), swap)
    message = refusal(tmp_path)
    assert f"{shard(tmp_path, 0, 0)} and {last} are not shards of one checkpoint" in message
    assert "what decoder.layers.0.flat_param_0 holds differs" in message


@DESCRIBED
def test_a_shard_that_lacks_a_vector_is_named(tmp_path: Path, described: bool) -> None:
    save_shards(MODEL, tmp_path, 1, 2, described=described)
    name = "decoder.layers.1.flat_param_0"
    edit(shard(tmp_path, 0, 1), lambda content: content["model"].pop(name))
    message = refusal(tmp_path)
    assert message == f"{shard(tmp_path, 0, 1)} lacks {name}, which {shard(tmp_path, 0, 0)} holds"


def test_bare_shards_need_to_be_told_the_architecture(tmp_path: Path) -> None:
    save_shards(MODEL, tmp_path, 2, 2, described=False)
    message = refusal(tmp_path, None)
    assert "no shard_metadata" in message
    assert "set model.size, or model.config" in message


def test_described_shards_do_not(tmp_path: Path) -> None:
    save_shards(MODEL, tmp_path, 2, 2)
    expected = canonical_state(MODEL)
    resolve(str(tmp_path)).open().read_into(parts_for(expected), lambda done, total: None)


@DESCRIBED
def test_shards_of_another_architecture_are_refused(tmp_path: Path, described: bool) -> None:
    save_shards(MODEL, tmp_path, 1, 2, described=described)
    wider = tiny_opt(num_attention_heads=8, ffn_dim=96)
    config = OPTConfig.from_json(wider.config.to_dict(), "transformers")
    with pytest.raises(
        CheckpointError, match=r"the architecture is another|decoder\.layers\.0\.fc1\.weight"
    ):
        resolve(str(tmp_path)).open(config).read_into([], lambda done, total: None)


def test_shards_of_fewer_layers_than_the_architecture_are_refused(tmp_path: Path) -> None:
    save_shards(
        tiny_opt(num_attention_heads=8, num_hidden_layers=1), tmp_path, 1, 2, described=False
    )
    message = refusal(tmp_path)
    assert "lacks decoder.layers.1.flat_param_0, against the architecture" in message


def test_described_and_bare_shards_are_not_joined(tmp_path: Path) -> None:
    save_shards(MODEL, tmp_path, 1, 2)
    edit_bare(shard(tmp_path, 0, 1))
    assert "only one of them has shard_metadata" in refusal(tmp_path)


def edit_bare(file: Path) -> None:
    content = torch.load(file, weights_only=False)
    del content["shard_metadata"]
    torch.save(content, file)


def test_shards_beside_parts_are_refused(tmp_path: Path) -> None:
    save_shards(MODEL, tmp_path, 2, 1)
    save_parts(MODEL, tmp_path, 2)
    message = refusal(tmp_path)
    assert "holds no flattened parameters, as other files in its folder do" in message or (
        "the same one by their names" in message
    )


def test_shards_whose_names_do_not_agree_are_refused(tmp_path: Path) -> None:
    save_shards(MODEL, tmp_path, 1, 2)
    shard(tmp_path, 0, 1).rename(other := tmp_path / "checkpoint-shard1.pt")
    assert f"{other}: its name does not say which model-parallel part" in refusal(tmp_path)


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "not-a-dict": lambda content: content.update(shard_metadata=[1]),
    "no-modules": lambda content: content["shard_metadata"].pop("param_metadata"),
    "no-shapes": lambda content: flat(content).pop("shapes"),
    "names-too-few": lambda content: flat(content)["names"].pop(),
    "shape-of-words": lambda content: flat(content).update(shapes=["ab"] * 12),
    "shape-of-three": lambda content: flat(content).update(shapes=[(1, 2, 3)] * 12),
    "negative-shape": lambda content: flat(content).update(shapes=[(-1, 2)] * 12),
    "negative-padding": lambda content: flat(content).update(padding=-1),
    "padding-of-words": lambda content: flat(content).update(padding="many"),
    "huge-padding": lambda content: flat(content).update(padding=10**9),
    "huge-shape": lambda content: flat(content).update(shapes=[(10**6, 10**6)] * 12),
    "no-layer": lambda content: content["shard_metadata"]["param_metadata"].pop(),
}


def flat(content: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = content["shard_metadata"]["param_metadata"][1]["params"]
    return described["flat_param_0"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_description_that_makes_no_sense_is_refused_by_file(tmp_path: Path, broken: str) -> None:
    [content] = fully_sharded(model_parallel(MODEL, 1)[0], 1)
    BROKEN[broken](content)
    torch.save(content, file := tmp_path / "restored.pt")
    assert str(file) in refusal(file)


def test_a_matrix_is_no_flattened_vector(tmp_path: Path) -> None:
    torch.save({"flat_param_0": torch.ones(3, 3)}, file := tmp_path / "a.pt")
    assert f"{file}: flat_param_0 is not a vector" in refusal(file)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("safetensors", "Hugging Face safetensors, 1 file"),
        ("bins", "Hugging Face .bin, 3 files"),
        ("singleton", "metaseq's singleton, 1 file"),
        ("parts-4", "metaseq's model-parallel parts, 4 files"),
        ("energonai-175b", "EnergonAI's unwrapped model-parallel parts, 8 files"),
        ("energonai-66b", "EnergonAI's fragments, 7 files"),
        ("shards-2x3", "metaseq's FSDP shards with shard_metadata, 2 part(s) in 6 files"),
        ("bare-shards-2x3", "metaseq's FSDP shards without shard_metadata, 2 part(s) in 6 files"),
    ],
)
def test_a_layout_is_told_by_its_content(tmp_path: Path, layout: str, said: str) -> None:
    LAYOUTS[layout](MODEL, tmp_path)
    assert resolve(str(tmp_path)).open(CONFIG).layout == said
