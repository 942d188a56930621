"""The smallest change that makes a plan fit, as the overrides that make it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from pluribus.config import SHARED
from pluribus.errors import ConfigError
from pluribus.plan.devices import GPUS, Device, larger_devices
from pluribus.plan.fit import Plan
from pluribus.plan.outline import Outline

Try = Callable[[Sequence[str]], Plan]
"""Returns the plan with some overrides on top."""

MOST_DEVICES = 16
"""Of the kind that is there: more are no small change."""
MOST_REPLICAS = 64
"""That are suggested instead of even more."""
USUAL_COUNTS = (1, 2, 4, 8)
"""Of other devices: machines have so many."""
LEAST_TOKENS = 256
"""Of a step: fewer save next to no memory."""


@dataclass(frozen=True, slots=True)
class Change:
    """Overrides to add; ``kind`` says what they cost, and one of each is worth naming."""

    kind: str
    overrides: tuple[str, ...]


def changes_that_fit(plan: Plan, try_out: Try) -> Sequence[Change]:
    """Return the smallest change of each kind that makes a plan fit, what costs least first."""
    found = _smallest_of_each_kind(plan, try_out)
    if found or plan.outline.num_replicas == 1:
        return found
    alone = ("parallel.replicas=1",)
    others = changes_that_fit(try_out(alone), lambda overrides: try_out((*alone, *overrides)))
    return [replace(change, overrides=alone + change.overrides) for change in others]


def _smallest_of_each_kind(plan: Plan, try_out: Try) -> Sequence[Change]:
    found: dict[str, Change] = {}
    savings = list(_savings(plan))
    _keep_first(found, savings, try_out)
    savings = [saving for saving in savings if not _is_needless(saving, found.values())]
    for change in _more_room(plan):
        if _is_told(change, found.values()):
            continue
        candidates = [change, *(_and(change, saving) for saving in savings)]
        # What saves most says whether trying the others is of use. It may be either of the last
        # two: of a host auto takes half, and the size that is set perhaps more.
        if any(_fits(each, try_out) for each in candidates[-2:]):
            _keep_first(found, candidates, try_out)
    return list(found.values())


def _keep_first(found: dict[str, Change], changes: Iterable[Change], try_out: Try) -> None:
    """Keep of each kind that was not found yet the first change that fits."""
    for change in changes:
        if not _is_told(change, found.values()) and _fits(change, try_out):
            found[change.kind] = change


def _is_told(change: Change, found: Iterable[Change]) -> bool:
    """Return whether a change is of a kind that is found already, or more than one that is."""
    return any(
        each.kind == change.kind or set(each.overrides) <= set(change.overrides) for each in found
    )


def _is_needless(saving: Change, found: Iterable[Change]) -> bool:
    """Return whether the same settings, or fewer of them, are enough by themselves."""
    return any(_keys(each) <= _keys(saving) for each in found)


def _keys(change: Change) -> set[str]:
    return {override.partition("=")[0] for override in change.overrides}


def _fits(change: Change, try_out: Try) -> bool:
    with contextlib.suppress(ConfigError):  # cannot be split so
        return try_out(change.overrides).fits
    return False


def _and(change: Change, saving: Change) -> Change:
    return replace(change, overrides=change.overrides + saving.overrides)


def _savings(plan: Plan) -> Iterator[Change]:
    """Yield what costs nothing, then what costs precision; the last saves most."""
    settings = [Change("a setting", overrides) for overrides in _settings(plan)]
    yield from settings
    for overrides in _narrower_dtypes(plan):
        narrower = Change("numbers of half the size", overrides)
        yield narrower
        yield from (_and(narrower, setting) for setting in settings)


def _more_room(plan: Plan) -> Iterator[Change]:
    """Yield what finds room elsewhere, from what is there to what has to be bought."""
    for overrides in _other_ranks(plan, plan.outline.num_replicas):
        yield Change("another split", overrides)
    for overrides in _fewer_replicas(plan):
        yield Change("fewer replicas", overrides)
    for kind, overrides in (*_more_devices(plan), *_other_devices(plan)):
        yield Change(kind, overrides)


def _settings(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Yield as much memory for keys and values as there is, then ever smaller batches."""
    memory = ("cache.kv.memory=auto",) if plan.outline.kv_cache.memory != "auto" else ()
    if memory:
        yield memory
    for smaller in _smaller_batches(plan.outline):
        yield smaller
        if memory:
            yield (*smaller, *memory)


def _smaller_batches(outline: Outline) -> Iterator[tuple[str, ...]]:
    num_tokens = getattr(outline.batcher_config, "max_batch_tokens", None)
    size = outline.num_slots
    if num_tokens is None:
        while size > 1:
            size //= 2
            yield (f"batcher.max_batch_size={size}",)
        return
    while num_tokens > LEAST_TOKENS:
        num_tokens = max(LEAST_TOKENS, num_tokens // 2)
        smaller = (f"batcher.max_batch_size={num_tokens}",) if size > num_tokens else ()
        yield (*smaller, f"batcher.max_batch_tokens={num_tokens}")


def _narrower_dtypes(plan: Plan) -> Iterator[tuple[str, ...]]:
    if plan.outline.dtype_on(plan.site.device.type) == "float32":
        yield ("dtype=bfloat16",)


def _other_ranks(plan: Plan, num_replicas: int) -> Iterator[tuple[str, ...]]:
    """Yield splits over the devices that there are; ranks of a host share its memory."""
    if plan.site.device.type == "cuda":
        count = plan.site.count // num_replicas
        for size in range(1 if count == 1 else 2, count + 1):
            if size != plan.outline.parallelism.world_size:
                yield split_overrides(size)


def _fewer_replicas(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Yield ever fewer replicas on what there is, then the same with other splits."""
    numbers = range(min(plan.outline.num_replicas - 1, MOST_REPLICAS), 0, -1)
    for number in numbers:
        yield (f"parallel.replicas={number}",)
    for number in numbers:
        for split in _other_ranks(plan, number):
            yield (f"parallel.replicas={number}", *split)


def _more_devices(plan: Plan) -> Iterator[tuple[str, tuple[str, ...]]]:
    site, num_replicas = plan.site, plan.outline.num_replicas
    if site.device.type == "cuda" and not site.is_here:
        for count in range(site.count + 1, MOST_DEVICES + 1):
            if count % num_replicas == 0:
                split = split_overrides(count // num_replicas)
                yield "more devices", (f"plan.count={count}", *split)


def _other_devices(plan: Plan) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield a larger device instead, then several, those with the least memory in all first."""
    site = plan.site
    alike = larger_devices(site.device)
    num_ranks, num_replicas = plan.outline.num_ranks, plan.outline.num_replicas
    for device in alike if site.count in (1, num_ranks) else ():
        yield "larger devices", (f"plan.device={device.name}",)

    def memory(choice: tuple[int, Device]) -> int:
        return choice[0] * choice[1].memory

    # A single one is a larger device, which has been tried; instead of a host it is another.
    counts = USUAL_COUNTS if site.device.type == "cpu" else USUAL_COUNTS[1:]
    others = [device for device in GPUS if device != site.device]
    choices = [(count, device) for count in counts if count >= num_replicas for device in others]
    for count, device in sorted(choices, key=memory):
        on = (f"plan.device={device.name}", f"plan.count={count}")
        yield "other devices", (*on, *split_overrides(count // num_replicas))


def replaced_by(overrides: Iterable[str], given: Iterable[str]) -> tuple[str, ...]:
    """Return which of the given overrides are to go where others choose another split.

    Settings of one kind of ``parallel`` are unknown to another; those of ``SHARED`` stay.
    """
    if not any(override.startswith("parallel=") for override in overrides):
        return ()
    return tuple(override for override in given if _is_of_split(override))


def _is_of_split(override: str) -> bool:
    section, _, name = override.lstrip("+~").partition("=")[0].partition(".")
    shared = [field.name for field in fields(SHARED["parallel"])]
    return section == "parallel" and name not in shared


def split_overrides(size: int) -> tuple[str, ...]:
    """Return the overrides that spread every layer over so many ranks."""
    return ("parallel=single",) if size == 1 else ("parallel=tensor", f"parallel.size={size}")
