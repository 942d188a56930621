"""`make` finds a Python that fits, or says what is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from processes import ROOT, environment

OTHERS = ("awk", "make", "sh", "test", "touch")


def run_make(
    folder: Path, *arguments: str, fitting: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    """Run ``make`` where only the named Pythons fit and ``python3`` is too old."""
    programs = folder / "bin"
    programs.mkdir()
    for name in OTHERS:
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    for name in {"python3", *fitting}:
        program = programs / name
        program.write_text(f"#!/bin/sh\nexit {0 if name in fitting else 1}\n")
        program.chmod(0o755)
    return subprocess.run(
        ["make", "--file", ROOT / "Makefile", *arguments],
        cwd=folder,
        env=environment(PATH=str(programs)),
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("fitting", "chosen"),
    [
        (("python3", "python3.12"), "python3"),
        (("python3.11", "python3.12"), "python3.12"),
        (("python3.13",), "python3.13"),
    ],
)
def test_the_first_python_that_fits_is_taken(
    tmp_path: Path, fitting: tuple[str, ...], chosen: str
) -> None:
    result = run_make(tmp_path, "--dry-run", ".venv/.python", fitting=fitting)
    assert f"\n{chosen} -m venv .venv\n" in result.stdout


def test_without_a_python_it_says_which_ones_fit(tmp_path: Path) -> None:
    result = run_make(tmp_path, "serve", fitting=())
    assert result.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in result.stderr
    assert "make PYTHON=/path/to/python3.12 serve" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_every_target_is_explained() -> None:
    targets = {"help", "venv", "serve", "test", "lint", "build", "clean"}
    explained = subprocess.run(
        ["make", "help"], cwd=ROOT, env=environment(), check=True, capture_output=True, text=True
    )
    assert {line.split()[1] for line in explained.stdout.splitlines()} == targets
