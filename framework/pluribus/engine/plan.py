"""Whether what a batcher plans can be run; nothing could go on if it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NoReturn

from pluribus.errors import PluginError
from pluribus.generation import Batch, Generation
from pluribus.interfaces import Batcher


def check_plan(
    batcher: Batcher,
    batch: Batch | None,
    alive: Set[Generation],
    limits: Mapping[Generation, int],
    *,
    is_idle: bool,
) -> None:
    """Raise PluginError where ``batch`` breaks the batcher's contract.

    Args:
        batcher: that planned it.
        batch: the next step, or None where it has none.
        alive: generations that wait or run.
        limits: tokens that some of them may have scheduled, as the KV ledger says.
        is_idle: whether no step is under way.
    """
    if batch is None:
        if alive and is_idle:
            _blame(batcher, "plans no step while there is work and none is under way")
        return
    if not isinstance(batch, Batch):
        _blame(batcher, f"plans a {type(batch).__name__}, not a Batch")
    if not batch.num_tokens:
        _blame(batcher, "plans a step for no generation")
    if not batch.num_tokens.keys() <= alive:
        ended = next(generation for generation in batch.num_tokens if generation not in alive)
        _blame(batcher, f"plans a step for generation {ended.id}, which has ended")
    for generation, num_tokens in batch.num_tokens.items():
        # That there is room for a token more says it for most of them, and sooner.
        if num_tokens == 1 and generation.num_scheduled < generation.last:
            continue
        if not 0 < num_tokens <= generation.num_unscheduled:
            _blame(
                batcher,
                f"plans {num_tokens} tokens of generation {generation.id}, which has "
                f"{generation.num_unscheduled} to compute",
            )
    for generation, limit in limits.items():
        num_tokens = batch.num_tokens.get(generation, 0)
        if num_tokens and generation.num_scheduled + num_tokens > limit:
            _blame(
                batcher,
                f"plans {num_tokens} tokens of generation {generation.id} after "
                f"{generation.num_scheduled}, which has room in the KV cache for {limit} until "
                "others give back what it was promised",
            )


def check_start(batcher: Batcher, num_new: int, num_free_slots: int) -> None:
    """Raise PluginError where a batch starts more generations than there are slots for."""
    if num_new > num_free_slots:
        _blame(
            batcher,
            f"starts {num_new} generations at once where max_batch_size allows {num_free_slots}",
        )


def check_repeats(batcher: Batcher, repeats: int, most: int) -> int:
    """Return ``repeats``; raise PluginError where a batch cannot be run so many times."""
    if not 1 <= repeats <= most:
        _blame(batcher, f"repeats a batch {repeats} times where 1 to {most} are possible")
    return repeats


def _blame(batcher: Batcher, breach: str) -> NoReturn:
    cls = type(batcher)
    raise PluginError(f"the batcher {cls.__module__}.{cls.__qualname__} {breach}")
