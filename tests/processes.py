"""Real processes, for tests that go all the way."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(**changes: str) -> dict[str, str]:
    """Return our environment without what an outer ``make`` says to inner ones."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return inherited | changes


@contextmanager
def serving(
    command: Sequence[str], folder: Path = ROOT, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a command that serves; yield its address once it is ready, and end it at last."""
    with subprocess.Popen(
        command, cwd=folder, env=env or environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _await_address(process)
        finally:
            process.terminate()
            process.communicate()


def _await_address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("{") and (
            match := re.match(r"serving \S+ on (http://\S+)", json.loads(line)["event"])
        ):
            return match[1]
    raise AssertionError(f"it ended before it served:\n{''.join(said)}")
