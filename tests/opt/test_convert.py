"""Converting: the same model in Hugging Face's layout, whatever it was, whatever comes between."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import OPTForCausalLM

from opt.checkpoint_files import canonical_state, tiny_opt
from opt.folders import write_tokenizer
from opt.metaseq_files import LAYOUTS
from opt.variants import VARIANTS, hugging_face
from pluribus.errors import CheckpointError, ConfigError
from pluribus_opt.config import OPTConfig
from pluribus_opt.model import OPTModel, OPTModelConfig

MODEL = tiny_opt(num_attention_heads=8)
POST_NORM = tiny_opt(num_attention_heads=8, do_layer_norm_before=False, word_embed_proj_dim=16)
LARGEST_TENSOR = 96 * 32 * 4
SHARD_SIZE = 40_000


def save_config(model: OPTForCausalLM, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    (file := folder / "opt.json").write_text(json.dumps(model.config.to_dict()))
    return str(file)


def convert(
    source: Path, to: Path, *, progress: Callable[[int, int], None] | None = None, **settings: Any
) -> None:
    """Convert what lies in a folder, whose architecture is beside it unless it says itself."""
    beside = source.parent / "opt.json"
    config = str(beside) if not (source / "config.json").exists() else None
    OPTModel.convert(
        OPTModelConfig(checkpoint=str(source), config=config),
        to=to,
        dtype=settings.get("dtype"),
        max_shard_size=settings.get("max_shard_size", SHARD_SIZE),
        progress=progress or (lambda done, total: None),
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of safetensors with a configuration and a tokenizer."""
    MODEL.save_pretrained(folder := tmp_path / "source")
    return write_tokenizer(folder)


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "converted"


def assert_is(folder: Path, model: OPTForCausalLM, dtype: torch.dtype = torch.float32) -> None:
    loaded = OPTForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    expected = canonical_state(model)
    state = canonical_state(loaded)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name].to(dtype)) for name in expected)


@pytest.mark.parametrize("model", [MODEL, POST_NORM], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_reads_what_any_layout_became(
    tmp_path: Path, to: Path, layout: str, model: OPTForCausalLM
) -> None:
    (folder := tmp_path / "source").mkdir()
    save_config(model, tmp_path)
    LAYOUTS[layout](model, folder)
    convert(folder, to)
    assert_is(to, model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_configuration_is_written_where_there_was_none(
    tmp_path: Path, to: Path, variant: str
) -> None:
    model = hugging_face(variant)
    (folder := tmp_path / "source").mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    save_config(model, tmp_path)
    convert(folder, to)
    theirs = OPTConfig.from_json(model.config.to_dict(), "transformers")
    ours = OPTConfig.from_json(json.loads((to / "config.json").read_text()), "converted")
    assert ours == theirs
    assert_is(to, model)


def test_small_files_go_along(source: Path, to: Path) -> None:
    convert(source, to)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (to / name).read_bytes() == (source / name).read_bytes()
    theirs, ours = (json.loads((f / "config.json").read_text()) for f in (source, to))
    assert ours == theirs


def test_another_tokenizer_takes_the_place_of_the_source_s_own(
    source: Path, to: Path, tmp_path: Path
) -> None:
    (source / "merges.txt").write_text("of another time")
    other = write_tokenizer(tmp_path / "other", "word")
    OPTModel.convert(
        OPTModelConfig(checkpoint=str(source), tokenizer=str(other)),
        to=to,
        dtype=None,
        max_shard_size=SHARD_SIZE,
        progress=lambda done, total: None,
    )
    assert (to / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert (to / "generation_config.json").exists()
    assert not (to / "merges.txt").exists()


def test_files_are_as_large_as_asked_and_an_index_names_them(source: Path, to: Path) -> None:
    convert(source, to)
    files = sorted(to.glob("*.safetensors"))
    index = json.loads((to / "model.safetensors.index.json").read_text())
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 2
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in files]
    assert max(sizes) <= SHARD_SIZE
    assert min(sizes[:-1]) > SHARD_SIZE - LARGEST_TENSOR
    assert index["metadata"]["total_size"] == sum(sizes)
    for name, file in index["weight_map"].items():
        with safe_open(to / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118 - it is no mapping
            assert opened.metadata() == {"format": "pt"}


def test_one_file_needs_no_index(source: Path, to: Path) -> None:
    convert(source, to, max_shard_size=10**9)
    assert [file.name for file in to.glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_dtype_is_converted(source: Path, to: Path, dtype: str) -> None:
    convert(source, to, dtype=dtype)
    assert json.loads((to / "config.json").read_text())["dtype"] == dtype
    assert_is(to, MODEL, getattr(torch, dtype))


def test_dtypes_that_differ_are_kept_and_aligned(tmp_path: Path, to: Path) -> None:
    (folder := tmp_path / "source").mkdir()
    state = canonical_state(MODEL)
    odd = {name: t.half() if "norm.bias" in name else t for name, t in state.items()}
    torch.save(odd, folder / "pytorch_model.bin")
    save_config(MODEL, tmp_path)
    convert(folder, to, max_shard_size=10**9)
    stored = load_file(to / "model.safetensors")
    assert {name: t.dtype for name, t in odd.items()} == {
        name.removeprefix("model."): t.dtype for name, t in stored.items()
    }
    assert all(torch.equal(stored[f"model.{name}"], tensor) for name, tensor in odd.items())


def test_numbers_beyond_a_dtype_s_range_are_refused(tmp_path: Path, to: Path) -> None:
    large = tiny_opt()
    with torch.no_grad():
        large.model.decoder.layers[1].fc2.bias[3] = 1e6
    large.save_pretrained(folder := tmp_path / "source")
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.1\.fc2\.bias .* float16's range"):
        convert(folder, to, dtype="float16")


@pytest.mark.parametrize("dtype", ["float16", None])
def test_a_dtype_that_cannot_be_served_is_not_converted(
    tmp_path: Path, to: Path, dtype: str | None
) -> None:
    (folder := tmp_path / "source").mkdir()
    name = "decoder.layers.1.fc1.weight"
    state = canonical_state(MODEL)
    torch.save({**state, name: state[name].to(torch.float8_e4m3fn)}, folder / "pytorch_model.bin")
    save_config(MODEL, tmp_path)
    with pytest.raises(CheckpointError, match=rf"{name}: .* of float8_e4m3fn in"):
        convert(folder, to, dtype=dtype)
    assert not to.exists()


class Stopped(Exception):
    """Somebody pressed Ctrl-C."""


def stop_after(num_bytes: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= num_bytes:
            raise Stopped

    return progress


def test_a_conversion_goes_on_where_it_was_stopped(source: Path, to: Path) -> None:
    with pytest.raises(Stopped):
        convert(source, to, progress=stop_after(2 * SHARD_SIZE))
    finished = {file: file.stat().st_mtime_ns for file in to.glob("*.safetensors")}
    assert finished
    assert not list(to.glob(".*.partial"))
    assert not (to / "config.json").exists()
    calls: list[int] = []
    convert(source, to, progress=lambda done, total: calls.append(done))
    assert calls[0] > 0
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    assert_is(to, MODEL)


CONVERT_AND = """
import os, resource, signal, sys
from pathlib import Path
from pluribus_opt.model import OPTModel, OPTModelConfig
from pluribus.errors import PluribusError

def progress(done, total):
    if done >= int(sys.argv[3]):
        {then}

try:
    OPTModel.convert(
        OPTModelConfig(checkpoint=sys.argv[1]),
        to=Path(sys.argv[2]),
        dtype=None,
        max_shard_size=40_000,
        progress=progress,
    )
except PluribusError as error:
    sys.exit(str(error))
"""


def convert_apart(
    source: Path, to: Path, num_bytes: int, then: str
) -> subprocess.CompletedProcess[str]:
    program = CONVERT_AND.format(then=then)
    command = [sys.executable, "-c", program, str(source), str(to), str(num_bytes)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_conversion_goes_on_after_it_was_killed(source: Path, to: Path) -> None:
    result = convert_apart(source, to, 2 * SHARD_SIZE, "os.kill(os.getpid(), signal.SIGKILL)")
    assert result.returncode == -signal.SIGKILL
    assert list(to.glob(".*.partial")), "it was killed in the midst of a file"
    convert(source, to)
    assert not list(to.glob(".*.partial"))
    assert_is(to, MODEL)


KILLED_AT_ONCE = """
import os, signal
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_conversion_goes_on_after_it_was_killed_at_once(source: Path, to: Path) -> None:
    program = KILLED_AT_ONCE + CONVERT_AND.format(then="pass")
    command = [sys.executable, "-c", program, str(source), str(to), "0"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [file.name for file in to.iterdir()] == [".pluribus-convert.json.partial"]
    convert(source, to)
    assert not list(to.glob(".*.partial"))
    assert_is(to, MODEL)


def test_what_lies_beside_a_conversion_killed_at_once_is_left_alone(source: Path, to: Path) -> None:
    to.mkdir()
    for name in (".pluribus-convert.json.partial", "thesis.txt"):
        (to / name).write_text("years of work")
    with pytest.raises(ConfigError, match=r"is not empty \(there is thesis\.txt\)"):
        convert(source, to)
    assert (to / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_is_said_and_can_be_put_right(source: Path, to: Path) -> None:
    full = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    result = convert_apart(source, to, 0, full)
    assert result.returncode == 1
    assert result.stderr.startswith(f"to={to} cannot be written: [Errno 27] File too large")
    assert "the same command goes on" in result.stderr
    assert not list(to.glob(".*.partial"))
    convert(source, to)
    assert_is(to, MODEL)


def test_a_disk_too_small_is_noticed_before(
    source: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**6, 10**6 - 5000, 5000))
    with pytest.raises(CheckpointError, match=r"has room for 4\.9KiB, but .*KiB are to be written"):
        convert(source, to)
    assert not list(to.glob("*.safetensors"))


@pytest.mark.parametrize(
    "damage", [lambda f: f.write_bytes(b"x" * f.stat().st_size), Path.unlink], ids=["other", "gone"]
)
def test_a_finished_file_that_changed_is_written_again(
    source: Path, to: Path, damage: Callable[[Path], object]
) -> None:
    with pytest.raises(Stopped):
        convert(source, to, progress=stop_after(2 * SHARD_SIZE))
    damage(min(to.glob("*.safetensors")))
    convert(source, to)
    assert_is(to, MODEL)


def test_a_folder_of_something_else_is_left_alone(source: Path, to: Path) -> None:
    to.mkdir()
    (to / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"is not empty \(there is thesis\.txt\)"):
        convert(source, to)
    assert [file.name for file in to.iterdir()] == ["thesis.txt"]


def test_the_source_s_own_folder_is_left_alone(source: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in source.iterdir()}
    with pytest.raises(ConfigError, match="is not empty"):
        convert(source, source)
    assert {file: file.stat().st_mtime_ns for file in source.iterdir()} == before


def test_a_finished_conversion_is_left_alone(source: Path, to: Path) -> None:
    convert(source, to)
    before = {file: file.stat().st_mtime_ns for file in to.iterdir()}
    with pytest.raises(ConfigError, match="holds a finished conversion"):
        convert(source, to)
    assert {file: file.stat().st_mtime_ns for file in to.iterdir()} == before


def test_an_empty_folder_will_do(source: Path, to: Path) -> None:
    to.mkdir()
    convert(source, to)
    assert_is(to, MODEL)


@pytest.mark.parametrize(
    ("changed", "settings"),
    [("dtype", {"dtype": "float16"}), ("max_shard_size", {"max_shard_size": 50_000})],
    ids=["dtype", "max_shard_size"],
)
def test_an_unfinished_conversion_to_something_else_is_left_alone(
    source: Path, to: Path, changed: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(Stopped):
        convert(source, to, progress=stop_after(SHARD_SIZE))
    with pytest.raises(ConfigError, match=f"unfinished conversion of another {changed}: remove"):
        convert(source, to, **settings)


def test_an_unfinished_conversion_of_other_weights_is_left_alone(source: Path, to: Path) -> None:
    with pytest.raises(Stopped):
        convert(source, to, progress=stop_after(SHARD_SIZE))
    os.utime(source / "model.safetensors")
    with pytest.raises(ConfigError, match="unfinished conversion of another fingerprint"):
        convert(source, to)


def test_two_conversions_do_not_write_to_one_folder(source: Path, to: Path) -> None:
    to.mkdir()
    folder = os.open(to, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another conversion is writing there"):
        convert(source, to)
    os.close(folder)
    convert(source, to)


def test_a_file_in_place_of_the_folder_is_refused(source: Path, to: Path) -> None:
    to.write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        convert(source, to)


def test_a_folder_that_cannot_be_made_is_refused(source: Path) -> None:
    with pytest.raises(CheckpointError, match=r"to=/proc/no/folder cannot be written"):
        convert(source, Path("/proc/no/folder"))


def test_a_damaged_source_leaves_no_folder(source: Path, to: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        convert(source, to)
    assert not to.exists()


def test_a_source_that_lacks_a_tensor_leaves_no_folder(tmp_path: Path, to: Path) -> None:
    state = canonical_state(MODEL)
    del state["decoder.layers.1.fc1.bias"]
    (folder := tmp_path / "source").mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    save_config(MODEL, tmp_path)
    with pytest.raises(CheckpointError, match=r"1 missing:\n  decoder\.layers\.1\.fc1\.bias"):
        convert(folder, to)
    assert not to.exists()


def test_random_weights_are_not_converted(to: Path) -> None:
    config = OPTModelConfig(checkpoint="random", size="opt-125m")
    with pytest.raises(ConfigError, match="is no files"):
        OPTModel.convert(
            config, to=to, dtype=None, max_shard_size=10**9, progress=lambda done, total: None
        )


def test_converting_takes_the_memory_of_a_tensor_or_two(tmp_path: Path, to: Path) -> None:
    wide = tiny_opt(hidden_size=1024, ffn_dim=8192, num_hidden_layers=6, word_embed_proj_dim=1024)
    wide.to(torch.float16).save_pretrained(folder := tmp_path / "source")  # type: ignore[arg-type]
    largest = 1024 * 8192 * 2
    grown = "print(Path('/proc/self/status').read_text()) if done in (0, total) else None"
    result = convert_apart(folder, to, 0, grown)
    before, after = (
        int(line.split()[1]) * 1024
        for line in result.stdout.splitlines()
        if line.startswith("VmHWM")
    )
    # And another that was given back: when the system has its memory is the allocator's to say.
    assert after - before < 3 * largest + 12_000_000
    assert sum(file.stat().st_size for file in to.glob("*.safetensors")) > 12 * largest
