"""What the documents say is true: commands run, code runs, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pluribus.composition import load
from processes import ROOT, environment, serving

README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8020"
EXAMPLE = ROOT / "examples" / "pluribus-convoy"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the commands in a text's shell blocks, as words, comments left out."""
    joined = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


COMMANDS = commands(README)
SERVES = [
    words for words in COMMANDS if words[:2] == ["pluribus", "serve"] and "--" not in str(words)
]
ENDING = [words for words in COMMANDS if words[0] == "pluribus" and words not in SERVES]
INLINE_OVERRIDES = re.findall(r"ARGS=\"(.*?)\"", README)


def test_the_readme_opens_with_the_two_commands() -> None:
    assert COMMANDS[:2] == [["make", "serve"], ["make", "test"]]
    assert COMMANDS[2][:2] == ["curl", f"{ADDRESS}/generation"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Run the README's first command, on another port if its own is taken."""
    up_to_date = subprocess.run(
        ["make", "--question", ".venv/.serve"], cwd=ROOT, env=environment(), check=False
    )
    if up_to_date.returncode != 0:
        pytest.skip("`make serve` would install something first; run `make venv`")
    with socket.socket() as probe:
        is_taken = probe.connect_ex(("127.0.0.1", 8020)) == 0
    with serving(["make", "serve", *(["ARGS=server.port=0"] if is_taken else [])]) as address:
        yield address


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_readme_s_curl_continues_its_prompt(address: str) -> None:
    curl = blocks(README, "sh")[1].replace(ADDRESS, address)
    answer = subprocess.run(["sh", "-c", curl], check=True, capture_output=True).stdout
    assert json.loads(answer)["text"].startswith("Once upon a time")


def test_the_readme_s_documentation_is_there(address: str) -> None:
    assert f"{ADDRESS}/docs" in README
    with urllib.request.urlopen(f"{address}/docs") as response:
        assert response.status == 200


@pytest.mark.parametrize("overrides", [words[2:] for words in SERVES], ids=" ".join)
def test_every_serve_command_composes(overrides: list[str]) -> None:
    assert load("serve", overrides)


@pytest.mark.parametrize("overrides", [text.split() for text in INLINE_OVERRIDES], ids=" ".join)
def test_every_argument_to_make_composes(overrides: list[str]) -> None:
    assert load("serve", overrides)


def test_the_commands_for_several_machines_compose() -> None:
    words = commands((ROOT / "docs" / "machines.md").read_text())
    serves = [line[line.index("serve") + 1 :] for line in words if "serve" in line]
    assert len(serves) == 3
    assert all(load("serve", overrides) for overrides in serves)


@pytest.mark.parametrize("setting", re.findall(r"^\| `.*?` \| `(.*?)`", README, re.MULTILINE))
def test_the_tutorial_s_settings_compose(setting: str) -> None:
    assert load("serve", setting.split())


@pytest.mark.parametrize("words", ENDING, ids=" ".join)
def test_every_command_that_ends_succeeds(words: list[str], tmp_path: Path) -> None:
    program = "from pluribus.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *words[1:]], check=True, cwd=tmp_path)


def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    [code] = blocks(README, "python")
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.startswith("Once upon a time")
    assert "\nThe old man" in result.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(document: Path) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", document.read_text())
    assert not [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize(
    "file",
    [
        "pluribus_convoy/batcher.py",
        "pluribus_convoy/__init__.py",
        "pluribus_convoy/conf/batcher/convoy.yaml",
        "pyproject.toml",
        "tests/test_convoy.py",
    ],
)
def test_contributing_shows_the_example_s_files(file: str) -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    shown = [
        block for language in ("python", "yaml", "toml") for block in blocks(contributing, language)
    ]
    assert f"`{file}`" in contributing
    assert (EXAMPLE / file).read_text() in shown


def test_contributing_s_serve_command_is_the_example_s() -> None:
    contributing = commands((ROOT / "CONTRIBUTING.md").read_text())
    assert ["pip", "install", "./examples/pluribus-convoy"] in contributing
    assert ["pluribus", "serve", "batcher=convoy", "batcher.max_batch_size=4"] in contributing
