"""A package by somebody else is installed, listed, chosen, configured and served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from processes import ROOT, environment, serving

EXAMPLE = ROOT / "examples" / "pluribus-convoy"
PLURIBUS = [sys.executable, "-c", "from pluribus.cli import main; main()"]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which the example is installed."""
    target = tmp_path_factory.mktemp("site-packages")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--no-build-isolation", "--target", target, EXAMPLE),
        ],
        check=True,
    )
    return environment(PYTHONPATH=str(target))


def test_its_plugin_is_listed_with_where_it_came_from(env: dict[str, str]) -> None:
    listing = subprocess.run(
        [*PLURIBUS, "plugins", "--json"], env=env, check=True, capture_output=True
    )
    assert {
        "kind": "batcher",
        "name": "convoy",
        "selected_by": "batcher.name=convoy",
        "class": "pluribus_convoy.batcher.ConvoyBatcher",
        "plugin": "convoy",
        "distribution": "pluribus-convoy",
        "version": "0.1.0",
    } in json.loads(listing.stdout)["plugins"]


def test_its_choice_is_among_those_offered(env: dict[str, str]) -> None:
    refusal = subprocess.run(
        [*PLURIBUS, "serve", "batcher=nonsense"],
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert refusal.returncode != 0
    assert "\n\tbucket\n\tcontinuous\n\tconvoy\n\tfair\n" in refusal.stderr


def test_its_settings_are_checked(env: dict[str, str]) -> None:
    refusal = subprocess.run(
        [*PLURIBUS, "serve", "batcher=convoy", "batcher.max_batch_size=0"],
        env=env,
        check=False,
        capture_output=True,
        text=True,
    )
    assert refusal.stderr == "pluribus: batcher.max_batch_size must be at least 1, got 0\n"


def test_it_serves(env: dict[str, str], tmp_path: Path) -> None:
    overrides = ["batcher=convoy", "batcher.max_batch_size=2", "server.port=0"]
    with serving([*PLURIBUS, "serve", *overrides], tmp_path, env) as address:
        answer = httpx2.post(
            f"{address}/generation",
            json={"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0},
            timeout=60,
        )
        plugins = httpx2.get(f"{address}/plugins").json()["plugins"]
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"].startswith("Once upon a time")
    assert len(answer.json()["text"]) > len("Once upon a time")
    assert "convoy" in {plugin["name"] for plugin in plugins}
