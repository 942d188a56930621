"""Choosing tokens from logits, one program a row, in a fixed number of launches: one.

The method is that of ``pluribus.sampling.choose``: an exponential race among blocks of ids, then
inside the block that won, again among the likelier ids for as long as ``top_p`` refuses the winner;
with the same noise, so the same seed chooses the same token. ``top_k`` comes first and leaves the
race fewer ids to begin with; they are found by counting the digits of the logits, not by sorting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pluribus.kernels.following import early, follow
from pluribus.sampling.blocks import BLOCK

GAMMA = tl.constexpr(-7046029254386353131)
IDS = tl.constexpr(BLOCK)
LOG2_E = tl.constexpr(1.4426950408889634)
"""exp(x) is exp2(x * LOG2_E), which the hardware has."""
DIGIT = tl.constexpr(5)
"""Bits of a digit; more would make counting dearer, fewer would make it take more passes."""
NUM_DIGITS = tl.constexpr(1 << 5)
NUM_PLACES = tl.constexpr(7)


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
    is_ranked: bool,
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
        is_ranked: whether any row has both ``top_k`` and ``top_p``; it costs the others too.
        num_blocks: of ids that a program goes through at a time.
        num_warps: of a program.
    """
    tokens = torch.empty_like(slots)
    _sample[(len(slots),)](
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
        RANKED=is_ranked,
        num_warps=num_warps,
        **early(logits),
    )
    return tokens


@triton.jit
def _sample(
    logits, row_stride, num_ids, slots, positions, temperatures, top_ks, top_ps, min_ps, seeds,
    tokens, BLOCKS: tl.constexpr, RANKED: tl.constexpr, EARLY: tl.constexpr,
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
            tl.load(positions + row), BLOCKS, RANKED,
        )  # fmt: skip
    tl.store(tokens + row, token.to(tl.int64))


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
    BLOCKS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    """Return the id that wins; refused by top_k or top_p, it is run again among likelier ids."""
    if (top_k == 0) | (top_k > num_ids):
        top_k = num_ids
    key = -0x80000000
    spare = num_ids
    most = top_k
    if RANKED:  # noqa: SIM102 - one is for the compiler, one for the program
        # top_p counts what top_k leaves, so that has to be known first.
        if (top_k < num_ids) & (top_p < 1):
            key, spare = _kth(logits, num_ids, top_k, BLOCKS)
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
            logits, num_ids, highest, coldness, least, key, spare, bound, bound_id,
            attempt, seed, position, BLOCKS, RANKED,
        )  # fmt: skip
        if (attempt == 0) & (top_p < 1):
            limit = top_p * whole
        if (attempt > 0) & (mass < limit) & (count < most):
            is_chosen = True
        else:
            token, bound = _race_inside(
                logits, num_ids, highest, coldness, least, key, spare, bound, bound_id,
                block, attempt, seed, position, RANKED,
            )  # fmt: skip
            bound_id = token
            is_chosen = not is_cut
            attempt += 1
    return token


@triton.jit
def _race_of_blocks(
    logits, num_ids, highest, coldness, least, key, spare, bound, bound_id,
    attempt, seed, position, BLOCKS: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    """Return the weight of all, the weight and number of who races, and the block that wins."""
    line = tl.arange(0, BLOCKS)
    column = tl.arange(0, IDS)
    wholes = tl.zeros((BLOCKS,), tl.float32)
    masses = tl.zeros((BLOCKS,), tl.float32)
    counts = tl.zeros((BLOCKS,), tl.int32)
    best = tl.full((BLOCKS,), -1.0, tl.float32)
    winner = tl.zeros((BLOCKS,), tl.int32)
    num_equal = 0
    for first in range(0, tl.cdiv(num_ids, IDS), BLOCKS):
        block = first + line
        id_ = block[:, None] * IDS + column[None, :]
        value = tl.load(logits + id_, mask=id_ < num_ids, other=float("-inf")).to(tl.float32)
        weight = tl.exp2((value - highest) * coldness)
        if RANKED:
            # Of ids as likely as the last that top_k admits, the first ones are in.
            equal = ((_key(value) == key) & (id_ < num_ids)).to(tl.int32)
            each = tl.sum(equal, 1)
            rank = num_equal + (tl.cumsum(each, 0) - each)[:, None] + tl.cumsum(equal, 1) - equal
            num_equal += tl.sum(each, 0)
            weight = tl.where((_key(value) > key) | ((equal > 0) & (rank < spare)), weight, 0.0)
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
    logits, num_ids, highest, coldness, least, key, spare, bound, bound_id,
    block, attempt, seed, position, RANKED: tl.constexpr,
):  # fmt: skip
    """Return the id that wins inside a block, and its weight."""
    column = tl.arange(0, IDS)
    id_ = block * IDS + column
    value = tl.load(logits + id_, mask=id_ < num_ids, other=float("-inf")).to(tl.float32)
    weight = tl.exp2((value - highest) * coldness)
    if RANKED:
        before = 0
        for other in range(block):
            earlier = tl.load(logits + other * IDS + column).to(tl.float32)
            before += tl.sum((_key(earlier) == key).to(tl.int32), 0)
        equal = ((_key(value) == key) & (id_ < num_ids)).to(tl.int32)
        rank = before + tl.cumsum(equal, 0) - equal
        weight = tl.where((_key(value) > key) | ((equal > 0) & (rank < spare)), weight, 0.0)
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
def _kth(logits, num_ids, k, BLOCKS: tl.constexpr):
    """Return the key of the k-th highest logit, and how many as high are among the first k.

    The key is found digit by digit, each by counting how many candidates have which.
    """
    inside = tl.arange(0, BLOCKS * IDS)
    digit = tl.arange(0, NUM_DIGITS)
    known = tl.zeros((), tl.int64)
    left = k
    for place in tl.static_range(NUM_PLACES - 1, -1, -1):
        counts = tl.zeros((NUM_DIGITS,), tl.int32)
        for start in range(0, num_ids, BLOCKS * IDS):
            id_ = start + inside
            value = tl.load(logits + id_, mask=id_ < num_ids, other=0.0).to(tl.float32)
            key = _key(value).to(tl.int64) + 0x80000000
            is_candidate = (id_ < num_ids) & ((key >> (DIGIT * place + DIGIT)) == known)
            here = ((key >> (DIGIT * place)) & (NUM_DIGITS - 1)).to(tl.int32)
            counts += tl.histogram(here, NUM_DIGITS, mask=is_candidate)
        from_here = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
        found = tl.max(tl.where(from_here >= left, digit, 0), 0)
        left -= tl.sum(tl.where(digit > found, counts, 0), 0)
        known = (known << DIGIT) | found
    return (known - 0x80000000).to(tl.int32), left


@triton.jit
def _key(value):
    """Return int32 in the order of float32."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _exponential(seed, position, draw, id_):
    """Return standard exponentials; see pluribus.sampling.noise."""
    stream = _mix(seed ^ _mix(position + draw * 4294967296))
    bits = _shift(_mix(stream + id_.to(tl.int64) * GAMMA), 32)
    uniform = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    uniform = tl.minimum(uniform, 0.99999994)
    # log1p(-u), exact where u is small: nothing is lost in 1 - u if that is corrected for.
    rest = 1.0 - uniform
    lost = (1.0 - rest) - uniform
    return -tl.log(rest) + lost / rest


@triton.jit
def _mix(x):
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


@triton.jit
def _shift(x, by: tl.constexpr):
    """Shift right, filling with zeros."""
    return (x >> by) & ((1 << (64 - by)) - 1)
