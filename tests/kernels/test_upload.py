"""Columns of numbers on their way to a device."""

from __future__ import annotations

import numpy as np

from kernels.device import DEVICE
from pluribus.kernels.upload import upload


def test_columns_arrive_as_they_were() -> None:
    bits = np.array([-0.0, 1.5], np.float32).view(np.int32)
    columns = upload(DEVICE, [3, -1, 2**62], (), np.array([7], np.int32), bits)
    assert [column.tolist() for column in columns] == [
        [3, -1, 2**62],
        [],
        [7],
        bits.tolist(),
    ]
    assert all(column.device.type == DEVICE.type for column in columns)
    assert all(column.data_ptr() % 16 == 0 for column in columns)
