"""Passes that only decode, captured once for each number of rows and replayed from then on."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

BUCKETS = (
    1,
    2,
    4,
    *range(8, 32, 8),
    *range(32, 128, 16),
    *range(128, 256, 32),
    *range(256, 513, 64),
)
"""Numbers of rows that passes are captured for, at most as many as are asked for and one more."""


class DecodeGraphs:
    """Graphs of ``run_pass``, by number of rows and whether any of them is ranked.

    Args:
        run_pass: launches a pass of so many rows, every launch fixed; given that number and
            whether any row is ranked.
        max_rows: that a pass will be asked to have.
        device: whose graphs they are.
    """

    def __init__(
        self, run_pass: Callable[[int, bool], None], max_rows: int, device: torch.device
    ) -> None:
        self._run_pass = run_pass
        self._buckets: list[int] = [size for size in BUCKETS if size < max_rows] + [max_rows]
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}

    def bucket(self, num_rows: int) -> int:
        """Return how many rows a pass for ``num_rows`` has, padding included."""
        return min(size for size in self._buckets if size >= num_rows)

    def capture_all(self) -> None:
        """Capture a pass of every size, the largest first, so that the others fit its memory."""
        started = time.monotonic()
        for size in reversed(self._buckets):
            self._graph(size, is_ranked=False)
        seconds = time.monotonic() - started
        logger.info("captured %d decode graphs in %.1f s", len(self._buckets), seconds)

    def replay(self, num_rows: int, passes: int, *, is_ranked: bool) -> None:
        """Run passes, one after the other."""
        graph = self._graph(num_rows, is_ranked=is_ranked)
        for _ in range(passes):
            graph.replay()

    def _graph(self, num_rows: int, *, is_ranked: bool) -> torch.cuda.CUDAGraph:
        key = (num_rows, is_ranked)
        if key not in self._graphs:
            self._graphs[key] = self._capture(num_rows, is_ranked)
        return self._graphs[key]

    def _capture(self, num_rows: int, is_ranked: bool) -> torch.cuda.CUDAGraph:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run_pass(num_rows, is_ranked)  # whatever is compiled or allocated once is now
        current.wait_stream(self._stream)
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            self._run_pass(num_rows, is_ranked)
        return graph
