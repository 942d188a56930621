"""Splitting a number of things over ranks."""

from __future__ import annotations


def even_span(total: int, index: int, size: int) -> tuple[int, int]:
    """Return where part ``index`` of ``size`` parts of ``total`` begins and ends.

    Parts are as equal as can be, larger ones first; there may be nothing for the last ones.
    """
    part, left = divmod(total, size)
    start = index * part + min(index, left)
    return start, start + part + (index < left)
