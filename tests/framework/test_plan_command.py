"""``pluribus plan`` as a stranger types it, and what ``pluribus serve`` refuses because of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pluribus import ConfigError, assembly, composition
from pluribus.plan import devices
from pluribus.plan.command import check
from pluribus.plan.cuda_driver import CudaDevice
from pluribus.plan.devices import GIB, GPUS
from pluribus.plan.planner import Planner
from pluribus.plugins import discover

CONF = Path(__file__).parents[2] / "conf"
PLURIBUS = """
import sys
from pluribus.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""
ON_FOUR = ("model=opt-175b", "plan.device=h200-141g", "plan.count=4")
GROUPS = ("model", "parallel", "batcher", "cache/kv")
CHOICES = sorted(
    f"{group}={path.stem}" for group in GROUPS for path in (CONF / group).glob("*.yaml")
)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``pluribus`` in a folder that must stay empty, without a network and without torch."""
    command = [sys.executable, "-c", PLURIBUS, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
    assert not list(folder.iterdir())
    return result


def answer(folder: Path, *arguments: str) -> dict[str, Any]:
    result = run(folder, "plan", *arguments, "format=json")
    assert result.stderr == ""
    read: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == (0 if read["fits"] else 1)
    return read


def test_175b_on_four_h200s_is_planned_anywhere(tmp_path: Path) -> None:
    started = time.monotonic()
    result = run(tmp_path, "plan", *ON_FOUR)
    assert (result.returncode, result.stderr) == (0, "")
    assert time.monotonic() - started < 20
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "opt-175b in float16, 4 ranks (parallel=tensor parallel.size=4), on 4 x h200-141g: fits"
    )
    assert lines[3].startswith("0-3   81.4GiB")
    assert max(map(len, lines)) <= 100


def test_the_documentation_shows_what_is_printed(tmp_path: Path) -> None:
    document = (CONF.parent / "docs" / "planning.md").read_text()
    [command] = re.findall(r"^pluribus (plan .*)", document, re.MULTILINE)
    assert run(tmp_path, *command.split()).stdout in document


def test_the_documentation_names_every_device() -> None:
    document = (CONF.parent / "docs" / "planning.md").read_text()
    [row] = re.findall(r"^\| `plan\.device` \| (.*) \|$", document, re.MULTILINE)
    assert re.findall(r"`([^`]*)`", row) == [*(gpu.name for gpu in GPUS), "cpu-16g", "null"]


def test_what_does_not_fit_says_what_would(tmp_path: Path) -> None:
    result = run(tmp_path, "plan", "model=opt-175b", "plan.device=h200-141g")
    assert (result.returncode, result.stderr) == (1, "")
    assert "opt-175b in float16, 1 rank, on h200-141g: does not fit" in result.stdout
    assert (
        "The smallest change that fits, more devices:\n"
        "  plan.count=3 parallel=tensor parallel.size=3\n"
    ) in result.stdout


HYBRID = ("parallel=hybrid", "parallel.tensor_size=1")


def test_what_another_split_takes_the_place_of_is_told(tmp_path: Path) -> None:
    stuck = ("model=opt-13b", "plan.device=h100-80g", "plan.count=1")
    result = run(tmp_path, "plan", *stuck, *HYBRID)
    assert (
        "The smallest change that fits, another split:\n"
        "  parallel=single\n"
        "  instead of parallel=hybrid parallel.tensor_size=1\n"
    ) in result.stdout
    assert result.stdout.endswith("\neach instead of parallel=hybrid parallel.tensor_size=1\n")
    [change, *_] = answer(tmp_path, *stuck, *HYBRID)["changes"]
    assert change == {"overrides": ["parallel=single"], "instead_of": list(HYBRID)}
    assert answer(tmp_path, *stuck, *change["overrides"])["fits"]


def test_the_bundled_model_fits_here(tmp_path: Path) -> None:
    here = answer(tmp_path, "device=cpu")
    assert here["fits"]
    assert here["model"] == {"name": "opt-stories-14m", "parameters": 14_187_264}
    assert here["dtype"] == "float32"
    table = 8192 * 384  # once more, in the order that products want
    assert here["ranks"][0]["weights"] == 4 * (14_187_264 + table)
    assert set(here["generations"]) == {"128", "256", "512", "1024"}


def test_programs_get_the_same_plan(tmp_path: Path) -> None:
    planned = answer(tmp_path, *ON_FOUR, "dtype=float32")
    assert planned["device"] == {"name": "h200-141g", "count": 4, "memory": 150_109_106_995}
    assert planned["overrides"] == ["parallel=tensor", "parallel.size=4"]
    assert [rank["rank"] for rank in planned["ranks"]] == [0, 1, 2, 3]
    assert planned["changes"][0] == {"overrides": ["dtype=bfloat16"], "instead_of": []}
    assert not any(each["instead_of"] for each in planned["other_splits"])
    assert [each["overrides"] for each in planned["other_splits"]] == [
        ["parallel=single"],
        ["parallel=tensor", "parallel.size=2"],
        ["parallel=tensor", "parallel.size=3"],
        ["parallel=tensor", "parallel.size=8"],
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("plan.device=h10-80g", "did you mean h100-80g? known are t4-16g, "),
        ("plan.count=2", "plan.count=2 is of devices that plan.device names"),
        ("plan.devcie=t4-16g", "plan.devcie: there is no such setting; did you mean device?"),
        ("format=xml", "format must be one of text, json; got 'xml'"),
        ("model=opt-1b", "Could not find 'model/opt-1b'"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    result = run(tmp_path, "plan", override)
    assert (result.returncode, result.stdout) == (1, "")
    assert said in result.stderr


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_can_be_planned(choice: str) -> None:
    needed = ["batcher=bucket"] if choice == "cache/kv=contiguous" else []
    overrides = [choice, *needed, "plan.device=h200-141g", "plan.count=8"]
    config, plugins = composition.load("plan", overrides), discover()
    assert Planner(config, plugins, assembly.describe(config, plugins)).plan().fits


def test_serve_refuses_what_does_not_fit_before_it_loads(tmp_path: Path) -> None:
    result = run(tmp_path, "serve", "server.port=0", "device=cpu", "cache.kv.memory=1KiB")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "pluribus: opt-stories-14m does not fit on this machine's cpu: cache.kv.memory=1KiB gives "
        "1KiB on this machine's cpu, room for 0 tokens; one generation of full length takes 1024"
    )
    assert "what fits: cache.kv.memory=auto" in result.stderr


def refusal(*overrides: str) -> str:
    """Return why ``serve`` would refuse."""
    config, plugins = composition.load("serve", overrides), discover()
    with pytest.raises(ConfigError) as refused:
        check(config, plugins, assembly.describe(config, plugins), overrides)
    return str(refused.value)


def test_serve_says_what_another_split_takes_the_place_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_devices", lambda: [CudaDevice("GPU", 80 * GIB)])
    said = refusal(*HYBRID, "server.port=0")
    assert "what fits: parallel=single instead of parallel=hybrid parallel.tensor_size=1 " in said


def test_serve_refuses_more_replicas_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "cuda_devices", lambda: [CudaDevice("GPU", 80 * GIB)] * 2)
    said = refusal("parallel.replicas=3")
    assert "3 ranks of 3 replicas need a device each, and there are 2" in said
    assert "what fits: parallel.replicas=2 " in said
    monkeypatch.setattr(devices, "free_host_memory", lambda: 2 * GIB)
    said = refusal("device=cpu", "parallel.replicas=9")
    assert "are more than a rank's part of this machine's cpu has" in said
    assert "what fits: " in said


LOAD = """
import logging
from pluribus import Engine
logging.basicConfig(level=logging.INFO, format="%(message)s")
with Engine("device=cpu", "cache.kv.memory=512MiB"):
    pass
"""
"""In a process of its own: what others have let go of would be used again, and not be measured."""


def test_ranks_log_what_was_planned_beside_what_they_measure() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=True, timeout=120
    )
    lines = done.stderr.splitlines()
    [line] = [each for each in lines if each.startswith("rank 0 on cpu: weights")]
    said = re.findall(r"(weights|KV) planned ([\d.]+)MiB, measured ([\d.]+)MiB", line)
    [weights, kv] = [(name, float(planned), float(measured)) for name, planned, measured in said]
    assert weights[1] == 66.1
    assert weights[2] >= 0.95 * weights[1]
    assert kv[2] == pytest.approx(kv[1], rel=0.05)
    assert "work space planned 50MiB; peak so far " in line
