"""The sampling kernel chooses the tokens that plain torch does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from framework.chances import NUM_DRAWS, NUM_IDS, OPTIONS, Options, assert_fits, some_logits
from kernels import races
from kernels.device import DEVICE
from pluribus.kernels.sample import Choices, sample
from pluribus.sampling import greedy

GREEDY = Options(temperature=0.0)
BLOCKS = 2
"""Of ids that a program goes through at a time: fewer than there are."""
ALONE = {name: options for name, options in OPTIONS.items() if options.top_k in (0, 5)}
BOTH = {name: OPTIONS[name] for name in ("top-k-top-p", "everything")}


def run(
    logits: Tensor,
    options: Sequence[Options],
    seed: Tensor,
    position: Tensor,
    *,
    num_blocks: int = BLOCKS,
) -> list[int]:
    """Return what the kernel chooses; the rows' slots are in reverse."""

    def column(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        values = [getattr(each, name) for each in reversed(options)]
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    choices = Choices(
        temperature=column("temperature"),
        top_k=column("top_k", torch.int64),
        top_p=column("top_p"),
        min_p=column("min_p"),
        seed=seed.flip(0).to(DEVICE),
    )
    slots = torch.arange(len(options), device=DEVICE).flip(0)
    tokens = sample(
        logits.to(DEVICE),
        logits.shape[1],
        slots,
        position.to(DEVICE),
        choices,
        num_blocks=num_blocks,
    )
    return tokens.tolist()


def some_rows(num_rows: int, num_ids: int = NUM_IDS) -> Tensor:
    return torch.randn(num_rows, num_ids, generator=torch.Generator().manual_seed(3)) * 3


def keys(num_rows: int) -> tuple[Tensor, Tensor]:
    """Return seeds and positions, large and small."""
    number = torch.arange(num_rows)
    return number * 2**58 + 11, 7 * number + 1


# What the kernel is compared with is first compared with transformers.


@pytest.mark.parametrize("name", ["top-k", "top-k-of-many", "top-k-min-p", *BOTH])
def test_the_plain_races_fit_the_exact_probabilities(name: str) -> None:
    logits, options = some_logits(), OPTIONS[name]
    seed = torch.arange(NUM_DRAWS)
    tokens = races.choose(logits.expand(NUM_DRAWS, -1), options, seed, torch.full_like(seed, 5))
    assert_fits(tokens, options.exact(logits))


@pytest.mark.parametrize("name", [name for name, each in OPTIONS.items() if not each.top_k])
def test_the_plain_races_choose_what_a_cpu_chooses(name: str) -> None:
    logits, options = some_rows(500), OPTIONS[name]
    seed, position = keys(500)
    tokens = races.choose(logits, options, seed, position)
    assert tokens.equal(options.sample(logits, seed, position))


@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_it_chooses_what_plain_torch_chooses(options: Options) -> None:
    logits, (seed, position) = some_rows(12), keys(12)
    tokens = run(logits, [options] * 12, seed, position)
    assert tokens == races.choose(logits, options, seed, position).tolist()


@pytest.mark.parametrize("options", BOTH.values(), ids=BOTH)
def test_it_chooses_what_plain_torch_chooses_among_the_top(options: Options) -> None:
    logits, (seed, position) = some_rows(3), keys(3)
    tokens = run(logits, [options] * 3, seed, position)
    assert tokens == races.choose(logits, options, seed, position).tolist()


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0] * 70, [5.0] * 210, [-torch.inf] * 209 + [-1.0]])
    seed, position = keys(3)
    for dtype in (torch.float32, torch.float16):
        rows = logits.to(dtype)
        assert run(rows, [GREEDY] * 3, seed, position) == greedy(rows).tolist() == [1, 0, 209]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [Options(), Options(top_p=0.7), Options(top_k=5), Options(top_k=5, top_p=0.9)],
    ids=str,
)
def test_half_precision_logits_give_what_they_give_in_single(
    options: Options, dtype: torch.dtype
) -> None:
    logits, (seed, position) = some_rows(6).to(dtype), keys(6)
    tokens = run(logits, [options] * 6, seed, position)
    assert tokens == run(logits.float(), [options] * 6, seed, position)


@pytest.mark.parametrize("num_blocks", [1, 4, 64])
def test_how_many_ids_are_gone_through_at_a_time_changes_nothing(num_blocks: int) -> None:
    kinds = [Options(), Options(top_p=0.6), Options(top_k=9), GREEDY]
    logits, (seed, position) = some_rows(4), keys(4)
    tokens = run(logits, kinds, seed, position, num_blocks=num_blocks)
    assert tokens == run(logits, kinds, seed, position)


@pytest.mark.parametrize(
    "options",
    [Options(top_k=1), Options(top_p=1e-6), Options(min_p=1.0), Options(temperature=1e-30)],
    ids=str,
)
def test_the_narrowest_choice_is_the_likeliest(options: Options) -> None:
    logits, (seed, position) = some_rows(4), keys(4)
    assert run(logits, [options] * 4, seed, position) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("options", "num_kept"),
    [(Options(top_k=3), 3), (Options(top_p=0.5), 35), (Options(top_k=3, top_p=0.6), 2)],
    ids=str,
)
def test_of_equal_logits_the_lower_ids_are_kept(options: Options, num_kept: int) -> None:
    num_rows = 4 if options.top_k and options.top_p < 1 else 20
    logits, (seed, position) = torch.zeros(num_rows, 70), keys(num_rows)
    tokens = run(logits, [options] * num_rows, seed, position)
    assert max(tokens) < num_kept
    assert len(set(tokens)) > 1
    assert tokens == races.choose(logits, options, seed, position).tolist()


def test_equal_logits_at_the_last_place_are_admitted_in_order_of_their_ids() -> None:
    logits = torch.full((4, 140), -9.0)
    logits[:, [5, 70, 71, 130]] = 1.0
    logits[:, 90] = 1.2
    options = Options(top_k=4, top_p=0.999)
    seed, position = keys(4)
    tokens = run(logits, [options] * 4, seed, position)
    assert tokens == races.choose(logits, options, seed, position).tolist()
    assert set(tokens) <= {5, 70, 71, 90}


@pytest.mark.parametrize("options", [Options(), Options(top_k=2), Options(top_p=0.9)], ids=str)
def test_what_is_ruled_out_never_comes_up(options: Options) -> None:
    logits = torch.full((6, NUM_IDS), -torch.inf)
    logits[:, [3, 70, NUM_IDS - 1]] = torch.tensor([1e4, 1e4 - 1, 1e4 + 1])
    seed, position = keys(6)
    assert set(run(logits, [options] * 6, seed, position)) <= {3, 70, NUM_IDS - 1}


@pytest.mark.parametrize("top_k", [NUM_IDS, NUM_IDS + 1, 2**31 - 1])
def test_a_top_k_of_all_ids_is_none(top_k: int) -> None:
    logits, (seed, position) = some_rows(3), keys(3)
    for options in (Options(), Options(top_p=0.8)):
        wide = replace(options, top_k=top_k)
        tokens = run(logits, [options] * 3, seed, position)
        assert run(logits, [wide] * 3, seed, position) == tokens


def test_ids_beyond_those_with_text_never_come_up() -> None:
    logits = some_rows(3, 100)
    padded = torch.cat([logits, torch.full((3, 28), 99.0)], 1)[:, :100]
    seed, position = keys(3)
    kinds = [GREEDY, Options(temperature=2.0), Options(top_p=0.9)]
    assert padded.stride(0) == 128
    assert run(padded, kinds, seed, position) == run(logits, kinds, seed, position)


def test_a_row_is_chosen_as_if_it_were_alone() -> None:
    both = Options(top_k=12, top_p=0.8)
    kinds = [GREEDY, Options(), Options(top_p=0.5), both, Options(top_k=4), Options(min_p=0.2)]
    logits, (seed, position) = some_rows(len(kinds)), keys(len(kinds))
    together = run(logits, kinds, seed, position)
    for row, options in enumerate(kinds):
        only = slice(row, row + 1)
        alone = run(logits[only], [options], seed[only], position[only])
        assert alone == together[only], options


@pytest.mark.parametrize("options", [GREEDY, *OPTIONS.values()], ids=["greedy", *OPTIONS])
@pytest.mark.parametrize("fill", [torch.nan, -torch.inf], ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which the interpreter runs on
def test_what_are_no_numbers_ends_in_some_token(options: Options, fill: float) -> None:
    logits = torch.full((2, NUM_IDS), fill)
    tokens = run(logits, [options] * 2, *keys(2))
    assert all(0 <= token < NUM_IDS for token in tokens)


@pytest.mark.parametrize(("seed", "winner"), [(15132593, 5), (10224741, 71)], ids=["id", "block"])
@pytest.mark.parametrize("options", [Options(), Options(top_k=20)], ids=["free", "top-k"])
def test_the_rarest_noise_is_no_reason_for_what_has_no_weight(
    options: Options, seed: int, winner: int
) -> None:
    """These seeds draw numbers so small that 1 less one of them rounds to 1."""
    logits = torch.full((1, 256), -30.0)
    logits[0, winner] = 90.0
    assert run(logits, [options], torch.tensor([seed]), torch.tensor([10])) == [winner]
