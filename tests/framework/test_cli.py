"""The command line answers at once, says what is wrong, and leaves nothing behind.

Every command here runs in a fresh process, in an empty folder; only one that answers loads torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pluribus.terminal import end_with_reader

PLURIBUS = """
import sys
from pluribus.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


class Shell:
    """Runs ``pluribus`` in a folder that must stay empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PLURIBUS, *arguments]
        result = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert "torch was imported" not in result.stderr
        assert "Traceback" not in result.stderr
        assert not list(self.folder.iterdir())
        return result

    def output(self, *arguments: str) -> str:
        """Return what a command prints that must succeed without complaint."""
        result = self.run(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def complaint(self, *arguments: str) -> str:
        """Return what a command that must fail says."""
        result = self.run(*arguments)
        assert result.returncode != 0
        assert result.stdout == ""
        return result.stderr


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]], ids=" ".join)
def test_help_lists_the_verbs(shell: Shell, arguments: list[str]) -> None:
    usage = shell.output(*arguments)
    for verb in ("serve", "generate", "plugins"):
        assert f"\n  {verb} " in usage


def test_no_verb_prints_the_usage_and_fails(shell: Shell) -> None:
    result = shell.run()
    assert result.returncode == 2
    assert result.stdout.startswith("usage: pluribus VERB")


def test_the_version_is_the_distribution_s(shell: Shell) -> None:
    assert shell.output("--version") == f"pluribus {version('pluribus')}\n"


def test_an_unknown_verb_brings_up_the_near_one(shell: Shell) -> None:
    complaint = shell.complaint("sevre")
    assert complaint.startswith("pluribus: no verb is called 'sevre'; did you mean 'serve'?")
    assert "usage: pluribus VERB" in complaint


def test_plugins_are_listed_with_what_selects_them(shell: Shell) -> None:
    choices, _ = shell.output("plugins").split("\n\n")
    header, *rows = choices.splitlines()
    assert header.split() == ["kind", "name", "selected", "by", "class", "distribution", "version"]
    [bucket] = [row for row in rows if row.startswith("batcher ") and "bucket" in row]
    assert "batcher.name=bucket" in bucket
    assert "pluribus_batchers.bucket.BucketBatcher" in bucket


def test_plugins_are_listed_with_their_hooks(shell: Shell) -> None:
    _, installed = shell.output("plugins").split("\n\n")
    header, *rows = installed.splitlines()
    assert header.split() == ["plugin", "distribution", "version", "hooks"]
    [caches] = [row.split() for row in rows if row.startswith("caches ")]
    assert caches[1] == "pluribus"
    assert caches[3:] == ["register_kv_caches", "register_response_caches"]


def test_plugins_are_listed_for_programs(shell: Shell) -> None:
    listing = json.loads(shell.output("plugins", "--json"))
    assert listing["problems"] == []
    offered = {(row["kind"], row["name"]) for row in listing["plugins"]}
    assert offered >= {("model", "opt"), ("KV cache", "contiguous"), ("launcher", "local")}
    hooks = {row["plugin"]: row["hooks"] for row in listing["installed"]}
    assert hooks["opt"] == ["register_models"]


def test_plugins_takes_nothing_else(shell: Shell) -> None:
    assert "takes --json and nothing else, got --yaml" in shell.complaint("plugins", "--yaml")


def test_the_configuration_is_printed_as_yaml(shell: Shell) -> None:
    config = OmegaConf.create(shell.output("serve", "--cfg", "job", "batcher.max_batch_size=3"))
    assert (config.batcher.name, config.batcher.max_batch_size) == ("continuous", 3)
    assert config.server.port == 8020


@pytest.mark.parametrize("verb", ["serve", "generate"])
def test_a_verb_s_help_lists_choices_and_settings(shell: Shell, verb: str) -> None:
    text = shell.output(verb, "--help")
    assert text.startswith(f"pluribus {verb}: ")
    assert "cache/response: lru, none" in text
    assert "max_batch_size: 64" in text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("batcher=buckte", ["'batcher/buckte'", "Available options in 'batcher':\n\tbucket"]),
        ("batcher.name=buckte", ["batcher.name", "'buckte'", "installed: bucket"]),
        (
            "batcher.max_btach_size=3",
            [
                "batcher.max_btach_size: there is no such setting; did you mean max_batch_size? ",
                "batcher has max_batch_size, max_batch_tokens, name",
            ],
        ),
        (
            "+batcher.x=3",
            ["batcher.x: there is no such setting; batcher has max_batch_size, max_batch_tokens"],
        ),
        ("+foo=bar", ["foo: there is no such setting; there are batcher, cache, ", ", server"]),
        ("+sever.port=1", ["sever: there is no such setting; did you mean server?"]),
        ("++qeue=1", ["qeue: there is no such setting; did you mean queue?"]),
        (
            "+cache.reponse.size=1",
            ["cache.reponse: there is no such setting; did you mean response?"],
        ),
        ("+batcher@other=bucket", ["other: there is no such setting"]),
        ("queue=5", ["queue must be a section, got 5; its settings are queue.max_size"]),
        ("batcher.max_batch_size=many", ["batcher.max_batch_size", "'many'", "Integer"]),
        ("batcher.max_batch_size=0", ["batcher.max_batch_size", "at least 1", "got 0"]),
        ("queue.max_size=0", ["queue.max_size", "at least 1", "got 0"]),
        ("server.port=70000", ["server.port", "0..65535", "70000"]),
        ("server.prot=1", ["server.prot: there is no such setting; did you mean port?"]),
        ("cache.kv.memory=lots", ["cache.kv.memory", "auto or a size such as", "'lots'"]),
        ("device=tpu", ["device", "auto, cpu, cuda", "'tpu'"]),
        ("dtype=float8", ["dtype", "float32, float16, bfloat16", "'float8'"]),
        ("model.checkpoint=/no/such/folder", ["/no/such/folder"]),
        ("~batcher", ["batcher must be a section", "batcher=NAME"]),
        ("model=null", ["group override must be a string", "group=NAME"]),
        ("batcher=[3]", ["group=NAME"]),
        ("device.index=1", ["device.index: there is no such setting; device is a value"]),
        ("not an override", ["not an override"]),
        ("hydra.run.dir=somewhere", ["hydra.run.dir: Pluribus leaves no files behind"]),
        ("+hydra.job.chdir=true", ["hydra.job.chdir: Pluribus leaves no files behind"]),
        ("hydra.output_subdir=.hydra", ["hydra.output_subdir: Pluribus leaves no files behind"]),
        ("hydra/job_logging=default", ["hydra/job_logging: Pluribus leaves no files behind"]),
        ("hydra.mode=MULTIRUN", ["hydra.mode: Pluribus leaves no files behind"]),
        ("--experimental-rerun=run.pickle", ["Pluribus keeps no runs to run again"]),
        ("--nonsense", ["unrecognized arguments: --nonsense"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_override_is_named(shell: Shell, override: str, said: list[str]) -> None:
    complaint = shell.complaint("serve", override)
    assert [words for words in said if words not in complaint] == []


@pytest.mark.parametrize("verb", ["serve", "generate", "convert", "verify"])
@pytest.mark.parametrize("flag", ["-m", "--multirun", "--multi"])
def test_only_bench_sweeps(shell: Shell, verb: str, flag: str) -> None:
    complaint = shell.complaint(verb, flag, "batcher.max_batch_size=1,2")
    assert complaint.startswith(f"pluribus: {verb} runs one configuration, so -m is not for it")


def test_other_folders_of_choices_can_be_given(shell: Shell, tmp_path: Path) -> None:
    mine = tmp_path.with_name(f"{tmp_path.name}-conf") / "batcher"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text("name: bucket\nmax_batch_size: 5\n")
    search = f"hydra.searchpath=[file://{mine.parent}]"
    printed = shell.output("serve", "--cfg", "job", search, "batcher=mine")
    assert OmegaConf.create(printed).batcher == {"name": "bucket", "max_batch_size": 5}


def test_a_verb_s_version_is_ours(shell: Shell) -> None:
    assert shell.output("serve", "--version") == f"pluribus {version('pluribus')}\n"


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    program = (
        "import os, sys; os.rmdir('../gone'); from pluribus.cli import main; "
        "sys.argv[1:] = ['serve', '--cfg', 'job']; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "gone",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("pluribus: the current folder cannot be used: No such file")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prompt=" + "once upon " * 1000], "prompt: at least 2001 tokens are too many; opt-"),
        (["prompt="], "prompt: must not be empty"),
        (["prompt=hello", "max_tokens=1023"], "max_tokens: 1023 is more than the 102"),
    ],
    ids=["too long", "empty", "too many tokens"],
)
def test_what_cannot_be_generated_is_refused_before_the_weights_are_read(
    shell: Shell, arguments: list[str], said: str
) -> None:
    assert shell.complaint("generate", *arguments).startswith(f"pluribus: {said}")


def test_generate_asks_for_a_prompt(shell: Shell) -> None:
    assert "pluribus generate prompt='Once upon a time'" in shell.complaint("generate")


def test_generate_checks_how_it_samples(shell: Shell) -> None:
    complaint = shell.complaint("generate", "prompt=hello", "temperature=3")
    assert complaint == "pluribus: temperature must be from 0 to 2, got 3.0\n"


@pytest.mark.parametrize(
    "typed",
    ["Once, a {time}: 1=1", "'Once, a {time}: 1=1'", '"Once, a {time}: 1=1"'],
    ids=["plain", "in quotes", "in double quotes"],
)
def test_a_prompt_is_taken_as_it_is_typed(tmp_path: Path, typed: str) -> None:
    program = "from pluribus.cli import main; main()"
    arguments = ["generate", f"prompt={typed}", "max_tokens=1"]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.startswith("Once, a {time}: 1=1")
    assert not list(tmp_path.iterdir())


MAIN = [sys.executable, "-c", "from pluribus.cli import main; main()"]


def test_an_answer_is_printed_whatever_the_encoding(tmp_path: Path) -> None:
    result = subprocess.run(
        [*MAIN, "generate", "prompt=日é", "max_tokens=1"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("\\u65e5\\xe9")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["bench", "--help"],
        ["serve", "--cfg", "job"],
        ["plugins", "--json"],
        ["generate", "prompt=A", "max_tokens=1"],
    ],
    ids=" ".join,
)
def test_a_command_that_nobody_reads_ends_without_a_word(
    tmp_path: Path, arguments: list[str], unbuffered: str
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*MAIN, *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_only_a_reader_that_has_left_is_no_error() -> None:
    with pytest.raises(BrokenPipeError, match="an engine's"), end_with_reader():
        raise BrokenPipeError("an engine's")


@pytest.mark.parametrize("closed", [(2,), (1,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize(
    "arguments",
    [["generate", "prompt=A", "max_tokens=1"], ["generate", "prompt=A", "parallel=tensor"]],
    ids=["one rank", "two ranks"],
)
def test_a_closed_stream_is_no_reason_to_fail(
    tmp_path: Path, arguments: list[str], closed: tuple[int, ...]
) -> None:
    program = (
        f"import os, sys; [os.close(number) for number in {closed}]; "
        "os.execv(sys.executable, [sys.executable, '-c', "
        "'from pluribus.cli import main; main()', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stdout.startswith("A") is (1 not in closed)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("arguments", [[], ["parallel=tensor"]], ids=["one rank", "two ranks"])
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0])
def test_an_interrupted_command_ends_without_a_word(
    tmp_path: Path, arguments: list[str], seconds: float
) -> None:
    command = [*MAIN, "generate", "prompt=A", "max_tokens=900", *arguments]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as in a terminal, all processes of the command get the signal
    ) as process:
        # The tokenizer is about to be needed: by then Python itself has long started.
        while "tokenizers" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        output, complaint = process.communicate(timeout=60)
    assert (process.returncode, output, complaint) == (130, "", "")
