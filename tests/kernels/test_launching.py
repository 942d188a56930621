"""Kernels are launched, or compiled once for all that ask alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from pluribus.kernels.launching import compiling, launch


class Compiled:
    """What Triton gives for a kernel: soon, unless it has been compiled before."""

    def __init__(self, signature: str, loaded: list[str]) -> None:
        self.src = SimpleNamespace(signature=signature)
        self._loaded = loaded

    @property
    def run(self) -> None:
        self._loaded.append(self.src.signature)
        if self.src.signature == "broken":
            raise RuntimeError("no such device")


class FakeKernel:
    """Notes what it is asked."""

    def __init__(self, signature: str = "", *, is_there: bool = True) -> None:
        self.launched: list[object] = []
        self.compiled: list[object] = []
        self.loaded: list[str] = []
        self._signature = signature
        self._is_there = is_there

    def __getitem__(self, grid: object) -> Any:
        return lambda *args, **options: self.launched.append((grid, args, options))

    def warmup(self, *args: object, grid: object, **options: object) -> Any:
        self.compiled.append((args, options))
        kernel = Compiled(self._signature, self.loaded)
        return kernel if self._is_there else SimpleNamespace(result=lambda: kernel)


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mode:
        def __init__(self, threads: object) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(triton, "AsyncCompileMode", Mode, raising=False)


def test_what_is_compiled_is_not_launched() -> None:
    kernel = FakeKernel()
    with compiling():
        launch(kernel, (1,), 3, SIZE=4)
    assert kernel.compiled == [((3,), {"SIZE": 4})]
    launch(kernel, (1,), 3, SIZE=4)
    assert kernel.launched == [((1,), (3,), {"SIZE": 4})]


@pytest.mark.parametrize("is_there", [True, False])
def test_what_is_compiled_is_loaded(*, is_there: bool) -> None:
    kernel = FakeKernel("pointer, int", is_there=is_there)
    with compiling():
        for size in (1, 2):
            launch(kernel, (1,), 3, SIZE=size)
        assert not kernel.loaded
    assert kernel.loaded == ["pointer, int"] * 2


def test_what_cannot_be_loaded_is_left_to_its_launch() -> None:
    broken, sound = FakeKernel("broken"), FakeKernel("sound")
    with compiling():
        launch(broken, (1,), 3)
        launch(sound, (1,), 3)
    assert broken.loaded == ["broken"]
    assert sound.loaded == ["sound"]


def test_what_differs_in_nothing_but_addresses_is_compiled_once() -> None:
    kernel = FakeKernel()
    with compiling():
        for number in range(3):
            launch(kernel, (number,), torch.zeros(64), 7, SIZE=4)
    assert len(kernel.compiled) == 1
    with compiling():
        launch(kernel, (1,), torch.zeros(64), 7, SIZE=4)
    assert len(kernel.compiled) == 2


@pytest.mark.parametrize(
    ("other", "size"),
    [
        (torch.zeros(64, dtype=torch.float16), 7),
        (torch.zeros(65)[1:], 7),
        (torch.zeros(64), 1),
        (torch.zeros(64), 7.0),
        (torch.zeros(64), True),
    ],
    ids=["dtype", "alignment", "number", "float", "bool"],
)
def test_what_kernels_may_be_specialised_for_is_compiled_apart(
    other: torch.Tensor, size: object
) -> None:
    kernel, another = FakeKernel(), FakeKernel()
    with compiling():
        launch(kernel, (1,), torch.zeros(64), 7, SIZE=4)
        launch(kernel, (1,), other, size, SIZE=4)
        launch(kernel, (1,), torch.zeros(64), 7, SIZE=8)
        launch(another, (1,), torch.zeros(64), 7, SIZE=4)
    assert len(kernel.compiled) == 3
    assert len(another.compiled) == 1
