"""Tests of engines' processes that are started before it is known what they are to run."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator

import pytest

from pluribus.engine import process
from pluribus.engine.client import ProcessHost
from pluribus.engine.process import SPINS, preload
from pluribus.engine.spare import SpareProcess
from pluribus.kernels import preparing
from pluribus.terminal import companions


@pytest.fixture(autouse=True)
def _all_is_looked_through_again() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_one_that_nobody_takes_ends() -> None:
    with SpareProcess() as spare:
        os.kill(spare.process.pid, 0)
    asyncio.run(asyncio.wait_for(spare.process.wait(), 10))
    assert spare.process.exit_code
    assert not companions


def test_one_that_nobody_will_take_can_be_ended_before() -> None:
    with SpareProcess() as spare:
        spare.end()
        asyncio.run(asyncio.wait_for(spare.process.wait(), 10))
    assert not companions


def test_one_that_is_taken_is_the_first_engine_and_no_other() -> None:
    async def life() -> None:
        with SpareProcess() as spare:
            host = ProcessHost("", spare)
            first = await host.start()
        assert host.pid == spare.process.pid
        await host.kill()
        second = await host.start()
        assert host.pid != spare.process.pid
        await host.kill()
        for client in first, second:
            client.close()

    asyncio.run(life())
    assert not companions


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
    ids=["nothing", "a number", "a policy"],
)
def test_threads_wait_for_each_other_briefly_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    preload()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


@pytest.mark.parametrize("has_driver", [True, False])
def test_triton_gets_ready_meanwhile_where_a_device_may_be(
    monkeypatch: pytest.MonkeyPatch, *, has_driver: bool
) -> None:
    asked: list[None] = []
    monkeypatch.setattr(process, "wake_driver", lambda: has_driver)
    monkeypatch.setattr(preparing, "prepare", lambda: asked.append(None))
    preload()
    assert len(asked) == has_driver


def test_what_is_imported_is_never_looked_through_for_garbage() -> None:
    preload()
    assert gc.get_freeze_count() > 0
    assert gc.isenabled()
