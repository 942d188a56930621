"""What ranks tell each other."""

from __future__ import annotations

from pathlib import Path

import torch

from opt.ranks import run_on_ranks
from pluribus.parallel.group import TensorParallel, everybodys, smallest

CPU = torch.device("cpu")


def asked(tp: TensorParallel, values: list[int]) -> tuple[int, list[int]]:
    return smallest(values[tp.rank], CPU), everybodys(values[tp.rank], CPU)


def test_each_rank_hears_everybodys_value(tmp_path: Path) -> None:
    values = [7 * 2**40, 3, 5]
    assert run_on_ranks(3, asked, values, tmp_path) == [(3, values)] * 3


def test_who_is_alone_hears_itself() -> None:
    assert (smallest(4, CPU), everybodys(4, CPU)) == (4, [4])
