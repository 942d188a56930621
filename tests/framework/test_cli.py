"""The command line answers at once, says what is wrong, and leaves nothing behind.

Every command here runs in a fresh process, in an empty folder; only one that answers loads torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from omegaconf import OmegaConf

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
    header, *rows = shell.output("plugins").splitlines()
    assert header.split() == ["kind", "name", "selected", "by", "class", "distribution", "version"]
    [bucket] = [row for row in rows if row.startswith("batcher ") and "bucket" in row]
    assert "batcher.name=bucket" in bucket
    assert "pluribus_batchers.bucket.BucketBatcher" in bucket


def test_plugins_are_listed_for_programs(shell: Shell) -> None:
    listing = json.loads(shell.output("plugins", "--json"))
    assert listing["problems"] == []
    offered = {(row["kind"], row["name"]) for row in listing["plugins"]}
    assert offered >= {("model", "opt"), ("KV cache", "contiguous"), ("launcher", "local")}


def test_plugins_takes_nothing_else(shell: Shell) -> None:
    assert "takes --json and nothing else, got --yaml" in shell.complaint("plugins", "--yaml")


def test_the_configuration_is_printed_as_yaml(shell: Shell) -> None:
    config = OmegaConf.create(shell.output("serve", "--cfg", "job", "batcher.max_batch_size=3"))
    assert config.batcher == {"name": "bucket", "max_batch_size": 3}
    assert config.server.port == 8020


@pytest.mark.parametrize("verb", ["serve", "generate"])
def test_a_verb_s_help_lists_choices_and_settings(shell: Shell, verb: str) -> None:
    text = shell.output(verb, "--help")
    assert text.startswith(f"pluribus {verb}: ")
    assert "cache/response: lru, none" in text
    assert "max_batch_size: 16" in text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("batcher=buckte", ["'batcher/buckte'", "Available options in 'batcher':\n\tbucket"]),
        ("batcher.name=buckte", ["batcher.name", "'buckte'", "installed: bucket"]),
        ("batcher.max_btach_size=3", ["max_btach_size", "batcher.max_btach_size"]),
        ("batcher.max_batch_size=many", ["batcher.max_batch_size", "'many'", "Integer"]),
        ("batcher.max_batch_size=0", ["batcher.max_batch_size", "at least 1", "got 0"]),
        ("queue.max_size=0", ["queue.max_size", "at least 1", "got 0"]),
        ("server.port=70000", ["server.port", "0..65535", "70000"]),
        ("server.prot=1", ["server.prot"]),
        ("cache.kv.memory=lots", ["cache.kv.memory", "auto or a size such as", "'lots'"]),
        ("device=tpu", ["device", "auto, cpu, cuda", "'tpu'"]),
        ("dtype=float8", ["dtype", "float32, float16, bfloat16", "'float8'"]),
        ("model.checkpoint=/no/such/folder", ["/no/such/folder"]),
        ("~batcher", ["batcher must be a section", "batcher=NAME"]),
        ("model=null", ["group override must be a string", "group=NAME"]),
        ("not an override", ["not an override"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_override_is_named(shell: Shell, override: str, said: list[str]) -> None:
    complaint = shell.complaint("serve", override)
    assert [words for words in said if words not in complaint] == []


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
