"""Devices by name, and those that the driver finds."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from pluribus import ConfigError
from pluribus.plan import cuda_driver, devices
from pluribus.plan.cuda_driver import CudaDevice, DriverError, read_devices, wake_driver
from pluribus.plan.demand import CUDA_RUNTIME
from pluribus.plan.devices import GIB, GPUS, larger_devices, named_device, named_site, site_here


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_a_gpu_has_about_what_its_name_says_and_never_more(gpu: devices.Device) -> None:
    label = int(gpu.name.rsplit("-", 1)[1].removesuffix("g"))
    assert named_device(gpu.name) is gpu
    assert 0.9 * label <= gpu.memory / GIB <= label


def test_a_host_may_have_any_size() -> None:
    assert named_device("cpu-16g").memory == 15 * GIB
    assert named_device("cpu-24g").type == "cpu"


@pytest.mark.parametrize("name", ["h10-80g", "cpu", "cpu-0g", "cpu-1.5g", "H100-80G", ""])
def test_an_unknown_name_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"plan\.device=.*t4-16g, .*h200-141g, and cpu-16g"):
        named_device(name)


def test_a_near_name_is_brought_up() -> None:
    with pytest.raises(ConfigError, match="did you mean h100-80g"):
        named_device("h10-80g")


def test_ranks_share_one_host() -> None:
    with pytest.raises(ConfigError, match=r"^plan\.count=2: plan\.device=cpu-16g is a host"):
        named_site("cpu-16g", 2)


@pytest.mark.parametrize("device", [*GPUS, named_device("cpu-20g")], ids=lambda each: each.name)
def test_larger_devices_are_larger_and_come_in_order(device: devices.Device) -> None:
    larger = [device.memory, *(each.memory for each in larger_devices(device))]
    assert larger == sorted(larger)
    assert {each.type for each in larger_devices(device)} <= {device.type}


def test_what_is_here_is_a_host_where_no_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_devices", lambda: ())
    assert site_here("auto").device.type == "cpu"
    with pytest.raises(ConfigError, match=r"^device=cuda: there is no CUDA device here"):
        site_here("cuda")


def test_what_is_here_counts_as_its_smallest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    there = (CudaDevice("large", 80 * GIB), CudaDevice("small", 24 * GIB))
    monkeypatch.setattr(devices, "cuda_devices", lambda: there)
    site = site_here("auto")
    assert (site.device.name, site.device.memory, site.count) == ("small", 24 * GIB, 2)
    assert str(site) == "2 x this machine's small"
    assert site_here("cpu").device.type == "cpu"


@dataclass
class FakeDriver:
    """As much of libcuda as is called; ``free`` and ``total`` of each device, in bytes."""

    memory: list[tuple[int, int]]
    failing: str = ""
    retained: list[int] = field(default_factory=list)
    current: int = 0
    woken_by: str = ""

    def status(self, name: str) -> int:
        return 100 if name == self.failing else 0

    def cuInit(self, flags: int) -> int:
        self.woken_by = threading.current_thread().name
        return self.status("cuInit")

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.memory)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        name.value = f"GPU {device.value}".encode()
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: ctypes.c_int) -> int:
        self.retained.append(device.value)
        self.current = device.value
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        return self.status("cuCtxPushCurrent_v2")

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = self.memory[self.current]
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: ctypes.c_int) -> int:
        self.retained.remove(device.value)
        return 0


def test_the_driver_says_what_others_leave() -> None:
    busy, idle = (20 * GIB, 80 * GIB), (80 * GIB - CUDA_RUNTIME // 2, 80 * GIB)
    driver = FakeDriver([busy, idle])
    assert read_devices(driver) == [
        CudaDevice("GPU 0", 20 * GIB + CUDA_RUNTIME),
        CudaDevice("GPU 1", 80 * GIB),
    ]
    assert not driver.retained


@pytest.mark.parametrize("failing", ["cuInit", "cuCtxPushCurrent_v2"])
def test_a_driver_that_fails_leaves_no_context(failing: str) -> None:
    driver = FakeDriver([(1, 2)], failing)
    with pytest.raises(DriverError, match="CUDA error 100"):
        read_devices(driver)
    assert not driver.retained


def test_the_driver_is_woken_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver([])
    monkeypatch.setattr(cuda_driver, "_load_driver", lambda: driver)
    monkeypatch.setattr(cuda_driver, "DEVICE_FILES", (__file__, "/nowhere"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert wake_driver()
    for thread in threading.enumerate():
        if thread.name == "cuda-driver":
            thread.join(10)
    assert driver.woken_by == "cuda-driver"


@pytest.mark.parametrize(
    ("has_driver", "visible", "file"),
    [(False, "0", __file__), (True, "", __file__), (True, "0", "/nowhere")],
    ids=["no driver", "hidden", "no device"],
)
def test_no_driver_is_woken_that_would_find_no_device(
    has_driver: bool, visible: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver([]) if has_driver else None
    monkeypatch.setattr(cuda_driver, "_load_driver", lambda: driver)
    monkeypatch.setattr(cuda_driver, "DEVICE_FILES", (file,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not wake_driver()


def test_a_library_that_is_no_driver_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "torch_has_cuda", lambda: True)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not wake_driver()
    assert cuda_driver.cuda_devices() == ()
