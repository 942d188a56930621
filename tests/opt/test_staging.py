"""Tensors arrive on a device as they are in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pluribus_opt.checkpoint.staging import Direct, Staging, way_to

CUDA = torch.device("cuda")


def mapped(file: Path, numbers: torch.Tensor) -> torch.Tensor:
    """Return the same numbers in a file that is mapped, as those of checkpoints are."""
    if not numbers.numel():
        return numbers
    file.write_bytes(numbers.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    size = numbers.numel()
    return torch.from_file(str(file), size=size, dtype=numbers.dtype).view(numbers.shape)


def test_where_everything_is_on_the_host_nothing_is_staged() -> None:
    assert isinstance(way_to([torch.empty(3)]), Direct)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(), (0,), (7,), (5, 0), (33, 40), (9, 8, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_pieces_of_any_shape_arrive(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    wholes = [torch.randn(*shape[:-1], *(2 * n for n in shape[-1:])).to(dtype) for _ in range(9)]
    wholes = [mapped(tmp_path / f"{number}", whole) for number, whole in enumerate(wholes)]
    sources = [whole[..., : shape[-1]] if shape else whole for whole in wholes]
    targets = [torch.zeros(shape, device="cuda") for _ in sources]
    with Staging(CUDA, num_bytes=400, num_threads=3) as staging:
        for source, target in zip(sources, targets, strict=True):
            staging.put(source, target)
    for source, target in zip(sources, targets, strict=True):
        assert torch.equal(target.cpu(), source.float())


@pytest.mark.gpu
def test_what_is_put_at_once_can_be_used_at_once(tmp_path: Path) -> None:
    numbers = torch.arange(2.0**18)
    source, target = mapped(tmp_path / "numbers", numbers), torch.empty(2**18, device="cuda")
    with Staging(CUDA, num_bytes=2**16) as staging:
        for _ in range(50):
            target.zero_()
            staging.put_at_once(source.view(512, -1), target.view(512, -1))
            assert torch.equal(target.clone().cpu(), numbers)


@pytest.mark.gpu
def test_what_cannot_be_copied_is_said(tmp_path: Path) -> None:
    source = mapped(tmp_path / "numbers", torch.zeros(2, 3))

    def copy() -> None:
        with Staging(CUDA) as staging:
            staging.put(source, torch.zeros(2, 4, device="cuda"))

    with pytest.raises(RuntimeError, match="must match"):
        copy()


@pytest.mark.gpu
def test_what_waits_for_the_end_is_done_once_all_is_read() -> None:
    done: list[int] = []
    with Staging(CUDA) as staging:
        staging.afterwards(lambda: done.append(1))
        assert not done
    assert done == [1]
