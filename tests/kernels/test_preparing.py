"""What Triton does once in a process is done before it is waited for."""

from __future__ import annotations

import threading
from types import ModuleType

import pytest

from pluribus.errors import ConfigError
from pluribus.kernels.preparing import check, prepare

cache = pytest.importorskip("triton.runtime.cache")
driver = pytest.importorskip("triton.backends.nvidia.driver")


def prepare_and_wait() -> None:
    prepare()
    for thread in threading.enumerate():
        if thread.name.startswith("triton-"):
            thread.join(60)


def test_what_triton_is_known_by_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "CudaUtils", lambda: None)
    cache.triton_key.cache_clear()
    prepare_and_wait()
    assert cache.triton_key.cache_info().currsize == 1


def test_what_speaks_to_the_driver_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(cache, "triton_key", lambda: "")
    monkeypatch.setattr(driver, "CudaUtils", lambda: built.append(threading.current_thread().name))
    prepare_and_wait()
    assert built == ["triton-utils"]


@pytest.mark.parametrize(
    ("module", "name"), [(driver, "CudaUtils"), (cache, "triton_key")], ids=["utils", "key"]
)
def test_what_cannot_be_done_is_left_to_who_needs_it(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(driver, "CudaUtils", object)
    monkeypatch.setattr(cache, "triton_key", object)
    monkeypatch.setattr(module, name, fail)
    prepare_and_wait()  # an error that a thread ends with fails a test
    monkeypatch.delattr(module, name)
    prepare_and_wait()


def test_a_machine_without_a_compiler_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(driver, "CudaUtils", fail)
    with pytest.raises(ConfigError, match=r"device=cuda: .*\(gcc, .*says: Failed to find C comp"):
        check()
    monkeypatch.setattr(driver, "CudaUtils", object)
    check()
    monkeypatch.delattr(driver, "CudaUtils")
    check()
