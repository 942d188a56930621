"""CUDA devices as the driver sees them: torch would take seconds to say the same."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from collections.abc import Sequence
from ctypes import byref, c_char, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluribus.plan.demand import CUDA_RUNTIME

DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""One of them is there where the driver runs: of Linux, and of Linux on Windows."""


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One of them; ``memory`` is what other programs leave of it, in bytes."""

    name: str
    memory: int


class DriverError(Exception):
    """The driver did not do what it was asked to."""


def cuda_devices() -> Sequence[CudaDevice]:
    """Return the devices that torch would find, in its order; none where it finds none."""
    driver = _load_driver()
    if driver is None:
        return ()
    try:
        return read_devices(driver)
    except DriverError:
        return ()


def wake_driver() -> bool:
    """Have the driver get ready, on a thread; return whether it is likely to have a device."""
    driver = _load_driver()
    if driver is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    if not any(map(os.path.exists, DEVICE_FILES)):
        return False
    threading.Thread(target=driver.cuInit, args=(0,), name="cuda-driver", daemon=True).start()
    return True


def torch_has_cuda() -> bool:
    """Return whether the installed torch was built for CUDA, without importing it."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    return any(Path(folder, "lib", "libtorch_cuda.so").exists() for folder in folders or ())


def read_devices(driver: Any) -> Sequence[CudaDevice]:
    """Return what a driver library, loaded, says of its devices.

    Raises:
        DriverError: it fails.
    """
    count = c_int()
    _check(driver.cuInit(0))
    _check(driver.cuDeviceGetCount(byref(count)))
    return [_read_device(driver, index) for index in range(count.value)]


def _read_device(driver: Any, index: int) -> CudaDevice:
    device, name = c_int(), (c_char * 256)()
    _check(driver.cuDeviceGet(byref(device), index))
    _check(driver.cuDeviceGetName(name, len(name), device))
    free, total = _read_memory(driver, device)
    # This context is gone in a moment, and its memory with it.
    return CudaDevice(name.value.decode(), min(total, free + CUDA_RUNTIME))


def _read_memory(driver: Any, device: c_int) -> tuple[int, int]:
    context, free, total = c_void_p(), c_size_t(), c_size_t()
    _check(driver.cuDevicePrimaryCtxRetain(byref(context), device))
    try:
        _check(driver.cuCtxPushCurrent_v2(context))
        _check(driver.cuMemGetInfo_v2(byref(free), byref(total)))
        _check(driver.cuCtxPopCurrent_v2(byref(context)))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return free.value, total.value


def _load_driver() -> Any:
    """Return the driver's library; None where there is none, or torch has no use for it."""
    if not torch_has_cuda():
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if hasattr(driver, "cuInit") else None


def _check(status: int) -> None:
    if status:
        raise DriverError(f"CUDA error {status}")
