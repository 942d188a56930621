"""Work whose launches are captured once for each size, and replayed from then on.

On a CPU, where kernels run through Triton's interpreter, the work is simply run again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


class Graphs(Generic[Key]):
    """Graphs of ``run``, one for each key that comes up.

    Args:
        run: launches the work of a key. Every launch is fixed by the key, and capturing runs it
            once before, for what is compiled or allocated at first: it has to do no harm then.
        device: whose graphs they are.
    """

    def __init__(self, run: Callable[[Key], None], device: torch.device) -> None:
        self._run = run
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._replays: dict[Key, Callable[[], None]] = {}
        if self._is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __contains__(self, key: Key) -> bool:
        return key in self._replays

    def replay(self, key: Key, times: int = 1) -> None:
        """Run the work of a key, so many times in a row; it must have been captured."""
        replay = self._replays[key]
        for _ in range(times):
            replay()

    def capture(self, key: Key) -> None:
        """Capture the work of a key. Larger ones first leave memory that smaller ones share."""
        self._replays[key] = self._graph(key).replay if self._is_cuda else partial(self._run, key)

    def _graph(self, key: Key) -> torch.cuda.CUDAGraph:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._run(key)
        current.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # torch.cuda.graph() would collect garbage first, which takes longer than all this.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._run(key)
            finally:
                graph.capture_end()
        return graph


def bucket(sizes: Sequence[int], wanted: int) -> int | None:
    """Return the smallest size that holds ``wanted``; None where none does."""
    return min((size for size in sizes if size >= wanted), default=None)
