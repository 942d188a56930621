"""A plan for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pluribus.plan.change import replaced_by, split_overrides
from pluribus.plan.fit import Plan, RankPlan
from pluribus.plan.report import Report, lengths


def record(report: Report) -> dict[str, Any]:
    """Return what a report says, in bytes, seconds and tokens."""
    plan, device = report.plan, report.plan.site.device
    spec = plan.outline.blueprint.spec
    return {
        "fits": plan.fits,
        "problem": plan.problem,
        "model": {"name": spec.name, "parameters": spec.num_parameters},
        "dtype": plan.outline.dtype_on(device.type),
        "weights": spec.weights,
        "device": {"name": device.name, "count": plan.site.count, "memory": device.memory},
        "overrides": list(report.spread),
        "replicas": {
            "count": plan.outline.num_replicas,
            "devices": plan.num_devices,
            "bytes": plan.total,
        },
        "ranks": [_rank(rank) for rank in plan.ranks],
        "kv_tokens": plan.num_tokens,
        "max_batch_size": plan.outline.num_slots,
        "generations": {str(n): plan.num_generations(n) for n in lengths(plan)},
        "load_seconds": round(plan.seconds_to_load(report.disk), 1),
        "changes": [_overrides(change.overrides, report.given) for change in report.changes],
        "other_splits": [_other(other, report.given) for other in report.others],
    }


def _overrides(overrides: Sequence[str], given: Sequence[str]) -> dict[str, Any]:
    """Return overrides to add, and which of those that were given they are instead of."""
    return {"overrides": list(overrides), "instead_of": list(replaced_by(overrides, given))}


def _other(plan: Plan, given: Sequence[str]) -> dict[str, Any]:
    longest = plan.outline.blueprint.spec.max_length
    return {
        **_overrides(split_overrides(len(plan.ranks)), given),
        "fits": plan.fits,
        "bytes_per_rank": max(rank.total for rank in plan.ranks),
        "generations_of_full_length": plan.num_generations(longest),
    }


def _rank(rank: RankPlan) -> dict[str, Any]:
    needs = rank.demand
    return {
        "rank": needs.share.rank,
        "layers": len(needs.share.layers),
        "weights": needs.weights,
        "kv_bytes_per_token": needs.kv_bytes_per_token,
        "kv": rank.kv,
        "work": needs.work_parts,
        "runtime": {"context": needs.context, "collectives": needs.collectives},
        "total": rank.total,
        "memory": rank.memory,
    }
