"""Work whose launches are captured once for each size, and replayed from then on.

On a CPU, where kernels run through Triton's interpreter, the work is simply run again.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

import torch

from pluribus.kernels.launching import compiling

Key = TypeVar("Key", bound=Hashable)


class GraphPool:
    """What all graphs of a rank share, as no two of them run at the same time.

    That is their memory, which takes no more than the largest of them needs, and the stream that
    they are captured on, for which cuBLAS has a workspace. Nothing that is to outlast a replay
    may be allocated while it is captured.

    Attributes:
        kernel_seconds: that rehearsals, and running work before it was captured, have taken:
            kernels are compiled then, or found in Triton's cache, and loaded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self.kernel_seconds = 0.0
        self._is_trimmed = False
        if self._is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def rehearse(self, runs: Iterable[Callable[[], None]]) -> None:
        """Have the kernels of this work compiled, all side by side; none of ours is launched."""
        if not self._is_cuda:
            return
        started = time.monotonic()
        with compiling():
            for run in runs:
                run()
        # What they would have worked in is on this thread's stream; they are captured on another.
        torch.cuda.empty_cache()
        self.kernel_seconds += time.monotonic() - started

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Return what replays ``run``, which is run once before."""
        if not self._is_cuda:
            return run
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        started = time.monotonic()
        with torch.cuda.stream(self._stream):
            run()
        self.kernel_seconds += time.monotonic() - started
        current.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        if self._is_trimmed:
            # What the run has left on its stream can be given back now, and not while capturing.
            torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # torch.cuda.graph() would collect garbage first, which takes longer than all this.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                with suppress(RuntimeError):  # what went wrong first is what there is to say
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay

    def trim(self) -> None:
        """Give back what running work before it was captured has left on the stream.

        From then on, others have the rest of the memory: it is given back before each capture.
        """
        self._is_trimmed = True
        if self._is_cuda:
            torch.cuda.empty_cache()


class Graphs(Generic[Key]):
    """Graphs of ``run``, one for each key that comes up.

    Args:
        run: launches the work of a key. Every launch is fixed by the key, and capturing runs it
            once before, for what is compiled or allocated at first: it has to do no harm then.
        pool: of the rank.
    """

    def __init__(self, run: Callable[[Key], None], pool: GraphPool) -> None:
        self._run = run
        self._pool = pool
        self._replays: dict[Key, Callable[[], None]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._replays

    def replay(self, key: Key, times: int = 1) -> None:
        """Run the work of a key, so many times in a row; it must have been captured."""
        replay = self._replays[key]
        for _ in range(times):
            replay()

    def runs(self, keys: Iterable[Key]) -> list[Callable[[], None]]:
        """Return what runs the work of each key without a graph."""
        return [partial(self._run, key) for key in keys]

    def capture(self, key: Key) -> None:
        """Capture the work of a key. Larger ones first leave memory that smaller ones share."""
        self._replays[key] = self._pool.capture(partial(self._run, key))


def bucket(sizes: Sequence[int], wanted: int) -> int | None:
    """Return the smallest size, of ascending ones, that holds ``wanted``; None if none does."""
    at = bisect_left(sizes, wanted)
    return sizes[at] if at < len(sizes) else None


def sizes_up_to(most: int, sizes: Sequence[int]) -> Sequence[int]:
    """Return the sizes below ``most``, and ``most`` itself."""
    return [*(size for size in sizes if size < most), most]
