"""What ranks tell each other."""

from __future__ import annotations

from pathlib import Path

import torch

from opt.ranks import run_on_ranks
from pluribus.parallel.agreement import everybodys, smallest
from pluribus.parallel.group import TensorParallel, new_group

CPU = torch.device("cpu")


def asked(tp: TensorParallel, values: list[int]) -> tuple[int, list[int]]:
    return smallest(values[tp.rank], CPU), everybodys(values[tp.rank], CPU)


def test_each_rank_hears_everybodys_value(tmp_path: Path) -> None:
    values = [7 * 2**40, 3, 5]
    assert run_on_ranks(3, asked, values, tmp_path) == [(3, values)] * 3


def asked_in_pairs(tp: TensorParallel, values: list[int]) -> tuple[int, list[int]]:
    pairs = [new_group([0, 1]), new_group([2, 3])]
    group, value = pairs[tp.rank // 2], values[tp.rank]
    return smallest(value, CPU, group), everybodys(value, CPU, group)


def test_a_group_s_ranks_hear_only_each_other(tmp_path: Path) -> None:
    heard = run_on_ranks(4, asked_in_pairs, [8, 6, 3, 5], tmp_path)
    assert heard == [(6, [8, 6])] * 2 + [(3, [3, 5])] * 2


def test_who_is_alone_hears_itself() -> None:
    assert (smallest(4, CPU), everybodys(4, CPU)) == (4, [4])
