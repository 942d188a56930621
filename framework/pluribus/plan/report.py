"""A plan for people; ``record`` is the same for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import fill

from pluribus.plan.change import Change, replaced_by, split_overrides
from pluribus.plan.fit import Plan, RankPlan
from pluribus.units import format_bytes

WIDTH = 90
LENGTHS = (128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What there is to say of a plan.

    Attributes:
        changes: what would make it fit, the smallest first.
        others: of other numbers of ranks.
        spread: overrides that were taken for granted.
        given: overrides that the configuration was composed of.
        disk: bytes that are read in a second.
    """

    plan: Plan
    changes: Sequence[Change]
    others: Sequence[Plan]
    spread: Sequence[str]
    given: Sequence[str]
    disk: int

    def as_text(self) -> str:
        """Return it for people."""
        plan = self.plan
        parts = [_headline(plan, self.spread), _ranks(plan), _parts(plan)]
        if plan.fits:
            parts += [_capacity(plan), _loading(plan, self.disk)]
        else:
            parts.append(_advice(plan, self.changes, self.given))
        if self.others:
            parts.append(_others(self.others, self.given))
        return "\n\n".join(parts)


def lengths(plan: Plan) -> Sequence[int]:
    """Return lengths of texts that are worth a column; the last is the longest there can be."""
    longest = plan.outline.blueprint.spec.max_length
    return [*(length for length in LENGTHS if length < longest), longest]


def _headline(plan: Plan, spread: Sequence[str]) -> str:
    spec, site = plan.outline.blueprint.spec, plan.site
    verdict = "fits" if plan.fits else "does not fit"
    dtype = plan.outline.dtype_on(site.device.type)
    if spec.weights:
        dtype += f" with {spec.weights} weights"
    num_ranks, num_replicas = len(plan.ranks), plan.outline.num_replicas
    ranks = "1 rank" if num_ranks == 1 else f"{num_ranks} ranks"
    if num_replicas > 1:
        ranks = f"{num_replicas} replicas of {ranks}"
    if spread:
        ranks += f" ({' '.join(spread)})"
    return f"{spec.name} in {dtype}, {ranks}, on {site}: {verdict}"


def _ranks(plan: Plan) -> str:
    """Return a table with a row for all ranks that are alike and next to each other."""
    header = ("rank", "weights", "keys, values", "work space", "runtime", "in all", "of", "")
    rows = [header, *map(_rank_row, _alike(plan.ranks))]
    return _table(rows)


def _parts(plan: Plan) -> str:
    """Say what work space and runtime of the fullest rank are made of."""
    fullest = max(plan.ranks, key=lambda rank: rank.total).demand
    runtime = {"CUDA" if plan.site.device.type == "cuda" else "process": fullest.context}
    if fullest.collectives:
        runtime["NCCL"] = fullest.collectives
    text = (
        f"Rank {fullest.share.rank}'s work space is {_listed(fullest.work_parts)}; "
        f"its runtime {_listed(runtime)}."
    )
    return "\n".join([fill(text, WIDTH), *_replicas(plan)])


def _replicas(plan: Plan) -> Iterator[str]:
    """Say what all replicas take, where there are several."""
    num_replicas = plan.outline.num_replicas
    if num_replicas > 1:
        is_host = plan.site.device.type == "cpu"
        where = plan.site.one if is_host else f"{plan.num_devices} devices"
        yield f"So much for one; all {num_replicas} need {format_bytes(plan.total)} on {where}."


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)


def _alike(ranks: Sequence[RankPlan]) -> Iterator[Sequence[RankPlan]]:
    for _, group in groupby(ranks, lambda rank: (rank.demand.weights, rank.kv, rank.total)):
        yield list(group)


def _rank_row(ranks: Sequence[RankPlan]) -> Sequence[str]:
    first, last = ranks[0], ranks[-1]
    numbers = [first.demand.share.rank, last.demand.share.rank]
    needs = first.demand
    kv = format_bytes(first.kv) if first.kv else "-"
    return (
        "-".join(map(str, dict.fromkeys(numbers))),
        format_bytes(needs.weights),
        kv,
        format_bytes(needs.work),
        format_bytes(needs.runtime),
        format_bytes(first.total),
        format_bytes(first.memory),
        f"{100 * first.total / first.memory:.0f} %" if first.memory else "",
    )


def _capacity(plan: Plan) -> str:
    per_token = max(rank.demand.kv_bytes_per_token for rank in plan.ranks)
    num_slots = plan.outline.num_slots
    counts = {length: plan.num_generations(length) for length in lengths(plan)}
    table = _table(
        [
            ("tokens of each", *map(str, counts)),
            ("at once", *(f"{n}*" if n == num_slots else str(n) for n in counts.values())),
        ]
    )
    where = " in a replica" if plan.outline.num_replicas > 1 else ""
    lines = [
        f"Keys and values: {format_bytes(per_token)} a token on a rank, room for "
        f"{plan.num_tokens:,} tokens{where}.",
        f"Texts, prompt and answer together, that run at once{where}:",
        "",
        table,
    ]
    if num_slots in counts.values():
        lines.append(f"* as many as batcher.max_batch_size={num_slots} allows")
    return "\n".join(lines)


def _loading(plan: Plan, disk: int) -> str:
    seconds = plan.seconds_to_load(disk)
    stored = sum(plan.outline.blueprint.stored_bytes(rank.demand.share) for rank in plan.ranks)
    duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    if not stored:
        return "Loading: no checkpoint is read, the weights are random."
    return (
        f"Loading: about {duration if seconds >= 1 else '1 s'}, {format_bytes(stored)} from a disk "
        f"at {disk / 1e9:g} GB/s (plan.disk)."
    )


def _advice(plan: Plan, changes: Sequence[Change], given: Sequence[str]) -> str:
    lines = [fill(f"{plan.problem}.", WIDTH)]
    if not changes:
        lines.append("No change of settings or devices that is known here makes it fit.")
        return "\n".join(lines)
    first, *rest = changes
    lines += ["", f"The smallest change that fits, {first.kind}:", *_change_lines(first, given)]
    for change in rest:
        lines += [f"or {change.kind}:", *_change_lines(change, given)]
    return "\n".join(lines)


def _change_lines(change: Change, given: Sequence[str]) -> Iterator[str]:
    yield f"  {' '.join(change.overrides)}"
    if replaced := replaced_by(change.overrides, given):
        yield f"  instead of {' '.join(replaced)}"


def _others(others: Sequence[Plan], given: Sequence[str]) -> str:
    longest = others[0].outline.blueprint.spec.max_length
    header = ("Other splits", "weights", "in all", "", f"texts of {longest} at once")
    rows = [header]
    for plan in others:
        largest = max(plan.ranks, key=lambda rank: rank.total)
        weights, total = format_bytes(largest.demand.weights), format_bytes(largest.total)
        verdict = "fits" if plan.fits else "does not fit"
        count = str(plan.num_generations(longest)) if plan.fits else "-"
        name = " ".join(split_overrides(len(plan.ranks)))
        rows.append((name, weights, total, verdict, count))
    replaced = replaced_by(split_overrides(len(others[0].ranks)), given)
    note = f"\neach instead of {' '.join(replaced)}" if replaced else ""
    return _table(rows) + note


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
