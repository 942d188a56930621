"""Choosing tokens from logits, one program a row, in a fixed number of launches: one.

The method is that of ``pluribus.sampling.choose``: an exponential race among blocks of ids, then
inside the block that won, again among the likelier ids for as long as ``top_p`` refuses the winner;
with the same noise, so the same seed chooses the same token. Beside ``top_p``, ``top_k`` comes
first and leaves the race fewer ids; the last of them is found by counting, not by sorting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.launching import early, follow, launch
from pluribus.sampling.blocks import BLOCK

GAMMA = tl.constexpr(-7046029254386353131)
IDS = tl.constexpr(BLOCK)
LOG2_E = tl.constexpr(1.4426950408889634)
"""exp(x) is exp2(x * LOG2_E), which the hardware has."""


NUM_DIGITS = {torch.float32: 16, torch.float16: 10, torch.bfloat16: 8}
"""Of two bits each, that tell a dtype's numbers apart in the bits of float32."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How each slot's tokens are chosen; every tensor is [num_slots].

    Attributes:
        temperature: float32; 0 is greedy.
        top_k: integers; 0 is all ids.
        top_p, min_p: float32.
        seed: int64.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor


def sample(
    logits: Tensor,
    num_ids: int,
    slots: Tensor,
    positions: Tensor,
    choices: Choices,
    *,
    num_blocks: int = 64,
    num_warps: int = 8,
) -> Tensor:
    """Return a token of each row, int64, [num_rows].

    Args:
        logits: [num_rows, at least num_ids], unit last stride.
        num_ids: ids to choose among, from 0.
        slots: of each row, int64, [num_rows].
        positions: of the token to be chosen in its slot's text, int64, [num_rows].
        choices: by slot.
        num_blocks: of ids that a program goes through at a time.
        num_warps: of a program.
    """
    tokens = torch.empty_like(slots)
    launch(
        _sample,
        (len(slots),),
        logits,
        logits.stride(0),
        num_ids,
        slots,
        positions,
        choices.temperature,
        choices.top_k,
        choices.top_p,
        choices.min_p,
        choices.seed,
        tokens,
        BLOCKS=min(num_blocks, triton.next_power_of_2(triton.cdiv(num_ids, BLOCK))),
        SPARE=32 - 2 * NUM_DIGITS[logits.dtype],
        num_warps=num_warps,
        **early(logits),
    )
    return tokens


@triton.jit
def _sample(
    logits, row_stride, num_ids, slots, positions, temperatures, top_ks, top_ps, min_ps, seeds,
    tokens, BLOCKS: tl.constexpr, SPARE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    follow(EARLY)
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    logits += row.to(tl.int64) * row_stride
    highest, token = _likeliest(logits, num_ids, BLOCKS)
    temperature = tl.load(temperatures + slot)
    if temperature > 0:
        token = _race(
            logits, num_ids, highest, LOG2_E / temperature, tl.load(min_ps + slot),
            tl.load(top_ks + slot).to(tl.int32), tl.load(top_ps + slot), tl.load(seeds + slot),
            tl.load(positions + row), BLOCKS, SPARE,
        )  # fmt: skip
    # Of what are no numbers none is the highest, and no id was found.
    tl.store(tokens + row, tl.minimum(token, num_ids - 1).to(tl.int64))


@triton.jit
def _likeliest(logits, num_ids, BLOCKS: tl.constexpr):
    """Return the highest logit and its id, the lowest such id."""
    inside = tl.arange(0, BLOCKS * IDS)
    highest = tl.full((BLOCKS * IDS,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCKS * IDS,), tl.int32)
    for start in range(0, num_ids, BLOCKS * IDS):
        id_ = start + inside
        value = tl.load(logits + id_, mask=id_ < num_ids, other=float("-inf")).to(tl.float32)
        where = tl.where(value > highest, id_, where)
        highest = tl.maximum(highest, value)
    top = tl.max(highest, 0)
    return top, tl.min(tl.where(highest == top, where, num_ids), 0)


@triton.jit
def _race(
    logits, num_ids, highest, coldness, least, top_k, top_p, seed, position,
    BLOCKS: tl.constexpr, SPARE: tl.constexpr,
):  # fmt: skip
    """Return the id that wins; refused by top_k or top_p, it is run again among likelier ids."""
    if (top_k == 0) | (top_k > num_ids):
        top_k = num_ids
    least_key = -0x80000000
    last_id = num_ids
    most = top_k
    if (top_k < num_ids) & (top_p < 1):
        # top_p counts what top_k leaves, so that has to be known first.
        least_key, last_id = _last_of(logits, num_ids, top_k, BLOCKS, SPARE)
        most = num_ids
    is_cut = (top_p < 1) | (most < num_ids)
    # What is above the bound races; of equals, ids before the bounding one.
    bound = -1.0
    bound_id = 0
    limit = float("inf")
    token = 0
    attempt = tl.zeros((), tl.int64)
    is_chosen = False
    while not is_chosen:
        whole, mass, count, block = _race_of_blocks(
            logits, num_ids, highest, coldness, least, least_key, last_id, bound, bound_id,
            attempt, seed, position, BLOCKS, SPARE,
        )  # fmt: skip
        if (attempt == 0) & (top_p < 1):
            limit = top_p * whole
        # Where nothing races any more - as where there are no numbers - no sum tells.
        if (attempt > 0) & (((mass < limit) & (count < most)) | (count == 0)):
            is_chosen = True
        else:
            token, bound = _race_inside(
                logits, num_ids, highest, coldness, least, least_key, last_id, bound, bound_id,
                block, attempt, seed, position, SPARE,
            )  # fmt: skip
            bound_id = token
            is_chosen = not is_cut
            attempt += 1
    return token


@triton.jit
def _race_of_blocks(
    logits, num_ids, highest, coldness, least, least_key, last_id, bound, bound_id,
    attempt, seed, position, BLOCKS: tl.constexpr, SPARE: tl.constexpr,
):  # fmt: skip
    """Return the weight of all, the weight and number of who races, and the block that wins."""
    line = tl.arange(0, BLOCKS)
    column = tl.arange(0, IDS)
    wholes = tl.zeros((BLOCKS,), tl.float32)
    masses = tl.zeros((BLOCKS,), tl.float32)
    counts = tl.zeros((BLOCKS,), tl.int32)
    best = tl.full((BLOCKS,), -1.0, tl.float32)
    winner = tl.zeros((BLOCKS,), tl.int32)
    for first in range(0, tl.cdiv(num_ids, IDS), BLOCKS):
        block = first + line
        id_ = block[:, None] * IDS + column[None, :]
        value = tl.load(logits + id_, mask=id_ < num_ids, other=float("-inf")).to(tl.float32)
        weight = tl.exp2((value - highest) * coldness)
        weight = tl.where(_is_in(value, id_, least_key, last_id, SPARE), weight, 0.0)
        wholes += tl.sum(weight, 1)
        races = _is_racing(weight, id_, least, bound, bound_id)
        sums = tl.sum(tl.where(races, weight, 0.0), 1)
        masses += sums
        counts += tl.sum(races.to(tl.int32), 1)
        race = sums / _exponential(seed, position, 2 * attempt, block)
        winner = tl.where(race > best, block, winner)
        best = tl.maximum(best, race)
    top = tl.max(best, 0)
    block = tl.min(tl.where(best == top, winner, num_ids), 0)
    return tl.sum(wholes, 0), tl.sum(masses, 0), tl.sum(counts, 0), block


@triton.jit
def _race_inside(
    logits, num_ids, highest, coldness, least, least_key, last_id, bound, bound_id,
    block, attempt, seed, position, SPARE: tl.constexpr,
):  # fmt: skip
    """Return the id that wins inside a block, and its weight."""
    column = tl.arange(0, IDS)
    id_ = block * IDS + column
    value = tl.load(logits + id_, mask=id_ < num_ids, other=float("-inf")).to(tl.float32)
    weight = tl.exp2((value - highest) * coldness)
    weight = tl.where(_is_in(value, id_, least_key, last_id, SPARE), weight, 0.0)
    weight = tl.where(_is_racing(weight, id_, least, bound, bound_id), weight, 0.0)
    race = weight / _exponential(seed, position, 2 * attempt + 1, column)
    token = tl.min(tl.where(race == tl.max(race, 0), id_, num_ids), 0)
    return token, tl.sum(tl.where(id_ == token, weight, 0.0), 0)


@triton.jit
def _is_racing(weight, id_, least, bound, bound_id):
    """Return whether ids are likely enough, and likelier than the bound."""
    is_likelier = (weight > bound) | ((weight == bound) & (id_ < bound_id))
    return is_likelier & (weight >= least) & (weight > 0.0)


@triton.jit
def _is_in(value, id_, least_key, last_id, SPARE: tl.constexpr):
    """Return whether ids are among those that top_k admits; of equals, the first ones are."""
    key = _key(value, SPARE)
    return (key > least_key) | ((key == least_key) & (id_ <= last_id))


@triton.jit
def _last_of(logits, num_ids, k, BLOCKS: tl.constexpr, SPARE: tl.constexpr):
    """Return the key of the k-th highest logit, and the last id with it among the first k."""
    key = tl.full((), -(1 << (31 - SPARE)), tl.int32)
    step = tl.full((), 1 << (30 - SPARE), tl.int32)
    while step > 0:
        key = _next_digit(logits, num_ids, k, key, step, BLOCKS, SPARE)
        step >>= 2
    num_above = _count(logits, num_ids, key + 1, key + 1, num_ids, BLOCKS, SPARE)
    first = 0
    last_id = num_ids - 1
    if _count(logits, num_ids, key, key + 1, last_id, BLOCKS, SPARE) > k:
        while first < last_id:
            middle = (first + last_id) // 2
            num_equal = _count(logits, num_ids, key, key + 1, middle, BLOCKS, SPARE) - num_above
            is_enough = num_equal >= k - num_above
            first = tl.where(is_enough, first, middle + 1)
            last_id = tl.where(is_enough, middle, last_id)
    return key, last_id


@triton.jit
def _next_digit(
    logits, num_ids, k, key, step, BLOCKS: tl.constexpr, SPARE: tl.constexpr
):  # fmt: skip
    """Return the highest of key and three steps above it that k logits reach."""
    first = key + step
    second = first + step
    third = second + step
    inside = tl.arange(0, BLOCKS * IDS)
    one = tl.zeros((BLOCKS * IDS,), tl.int32)
    two = tl.zeros((BLOCKS * IDS,), tl.int32)
    three = tl.zeros((BLOCKS * IDS,), tl.int32)
    for start in range(0, num_ids, BLOCKS * IDS):
        id_ = start + inside
        value = tl.load(logits + id_, mask=id_ < num_ids, other=float("-inf")).to(tl.float32)
        reached = tl.where(id_ < num_ids, _key(value, SPARE), key)
        one += (reached >= first).to(tl.int32)
        two += (reached >= second).to(tl.int32)
        three += (reached >= third).to(tl.int32)
    digit = (tl.sum(one, 0) >= k).to(tl.int32) + (tl.sum(two, 0) >= k).to(tl.int32)
    return key + step * (digit + (tl.sum(three, 0) >= k).to(tl.int32))


@triton.jit
def _count(
    logits, num_ids, key, above, last_id, BLOCKS: tl.constexpr, SPARE: tl.constexpr
):  # fmt: skip
    """Return how many logits reach a key up to an id, or are above it wherever they are."""
    inside = tl.arange(0, BLOCKS * IDS)
    counts = tl.zeros((BLOCKS * IDS,), tl.int32)
    for start in range(0, num_ids, BLOCKS * IDS):
        id_ = start + inside
        value = tl.load(logits + id_, mask=id_ < num_ids, other=float("-inf")).to(tl.float32)
        reached = _key(value, SPARE)
        counted = (reached >= above) | ((reached >= key) & (id_ <= last_id))
        counts += (counted & (id_ < num_ids)).to(tl.int32)
    return tl.sum(counts, 0)


@triton.jit
def _key(value, SPARE: tl.constexpr):
    """Return int32 in the order of float32, less the last bits, that tell nothing."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SPARE


@triton.jit
def _exponential(seed, position, draw, id_):
    """Return standard exponentials; see pluribus.sampling.noise."""
    stream = _mix(seed ^ _mix(position + draw * 4294967296))
    bits = _shift(_mix(stream + id_.to(tl.int64) * GAMMA), 32)
    uniform = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    uniform = tl.minimum(uniform, 0.99999994)
    # -log1p(-u), exact where u is small: what rounding 1 - u has lost is put back.
    rest = 1.0 - uniform
    lost = (1.0 - rest) - uniform
    return -tl.log(rest) - lost / rest


@triton.jit
def _mix(x):
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


@triton.jit
def _shift(x, by: tl.constexpr):
    """Shift right, filling with zeros."""
    return (x >> by) & ((1 << (64 - by)) - 1)
