"""Which layers a pipeline's stages hold."""

from __future__ import annotations


def split_layers(
    num_layers: int, num_stages: int, *, layer_cost: float, head_cost: float
) -> list[range]:
    """Return each stage's layers: side by side, one at least, the costliest stage cheapest.

    A pipeline is as fast as its slowest stage, which the last one would be if the head, which
    only it has, cost it no layers. Beyond that, stages are as alike as can be.

    Args:
        num_layers: at least ``num_stages``.
        num_stages: at least 1.
        layer_cost: of one layer; above 0.
        head_cost: of what the last stage does beside its layers, in the same unit.
    """

    if num_stages == 1:
        return [range(num_layers)]

    def costs(counts: list[int]) -> list[float]:
        *others, last = (count * layer_cost for count in counts)
        return sorted([*others, last + head_cost], reverse=True)

    splits = [
        [*_evenly(num_layers - last, num_stages - 1), last]
        for last in range(1, num_layers - num_stages + 2)
    ]
    counts = min(splits, key=costs)
    starts = [sum(counts[:stage]) for stage in range(num_stages)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]


def _evenly(total: int, num_parts: int) -> list[int]:
    """Return ``num_parts`` numbers as equal as can be, larger ones first."""
    return [(total + num_parts - 1 - part) // num_parts for part in range(num_parts)]
