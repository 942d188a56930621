"""Tensors arrive on a device as they are in memory."""

from __future__ import annotations

import pytest
import torch

from pluribus_opt.checkpoint.staging import Staging, put, staging_for


def test_where_everything_is_on_the_host_nothing_is_staged() -> None:
    assert staging_for([torch.empty(3)]) is put


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 0), (33, 40), (9, 8, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_pieces_of_any_shape_arrive(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    staging = Staging(num_bytes=400)
    for _ in range(3):
        whole = torch.randn(*shape[:-1], *(2 * n for n in shape[-1:]))
        source = whole[..., : shape[-1]] if shape else whole
        target = torch.zeros(shape, dtype=dtype, device="cuda")
        staging.put(source, target)
        assert torch.equal(target.cpu(), source.to(dtype))


@pytest.mark.gpu
def test_what_has_been_put_may_change_at_once() -> None:
    staging = Staging(num_bytes=2**20)
    source, target = torch.zeros(2**18), torch.empty(50, 2**18, device="cuda")
    for row in range(len(target)):
        source.fill_(row)
        staging.put(source, target[row])
    assert torch.equal(target[:, ::1000].cpu().amax(1), torch.arange(50.0))
    assert torch.equal(target[:, ::1000].cpu().amin(1), torch.arange(50.0))
