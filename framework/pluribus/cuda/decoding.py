"""Passes in which every row computes one token and samples the next: all of it on the device."""

from __future__ import annotations

from collections.abc import Callable

from pluribus.cuda.graphs import Graphs, bucket, sizes_up_to
from pluribus.cuda.rank import Rank
from pluribus.cuda.sizes import SIZES
from pluribus.kernels.passes import Rows, begin_pass, end_pass
from pluribus.kernels.upload import upload
from pluribus.step import StepResult

MAX_PASSES = 8
SECONDS_OF_PASSES = 0.004
"""What passes of one step should take together: new generations wait for no longer than that."""


class Decoding:
    """Replays decode passes, several in a row, and reads what came of them.

    Attributes:
        max_passes: how many of them make a step of a few milliseconds.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._padding = rank.state.padding
        self._rows = Rows.make(self._padding, MAX_PASSES, rank.device)
        self._rows.asked.fill_(self._padding)
        self._asked: tuple[int, ...] = ()
        self._sizes = sizes_up_to(self._padding, SIZES)
        self._graphs: Graphs[int] = Graphs(self._run_pass, rank.pool)
        self.max_passes = 1

    def runs(self) -> list[Callable[[], None]]:
        """Return what is going to be captured, to be rehearsed."""
        return self._graphs.runs(self._sizes)

    def capture(self) -> None:
        """Capture a pass of every size."""
        for size in reversed(self._sizes):
            self._capture(size)

    def run(self, slots: tuple[int, ...], passes: int) -> Callable[[], StepResult]:
        """Run passes of these slots; return a function that waits for their tokens."""
        size = bucket(self._sizes, len(slots))
        assert size is not None, f"{len(slots)} rows where there are {self._padding} slots"
        self._ask(slots, size)
        self._rows.counter.zero_()
        started = self._rank.arrivals.mark()
        self._graphs.replay(size, passes)
        answers = self._rows.answers[:passes, : len(slots)]
        answers = answers.to("cpu", non_blocking=True, copy=True)
        ended = self._rank.arrivals.mark()

        def read() -> StepResult:
            ended.wait()
            wanted = passes * SECONDS_OF_PASSES / max(ended.seconds_since(started), 1e-6)
            self.max_passes = max(1, min(MAX_PASSES, int(wanted)))
            return StepResult(answers.T.tolist())

        return read

    def _capture(self, size: int) -> None:
        """Capture a pass; that runs one, which no text may see."""
        self._ask((), size)
        self._rows.counter.zero_()
        self._graphs.capture(size)

    def _ask(self, slots: tuple[int, ...], size: int) -> None:
        """Put slots into the first rows, and padding into the rest of what will run."""
        asked = slots + (self._padding,) * (size - len(slots))
        if self._asked[:size] != asked:
            [column] = upload(self._rank.device, asked)
            self._rows.asked[:size] = column
            self._asked = asked + self._asked[size:]

    def _run_pass(self, num_rows: int) -> None:
        network, store = self._rank.network, self._rank.store
        rows, texts = self._rows.first(num_rows), self._rank.state.texts
        begin_pass(texts, rows)
        store.begin_decode(rows.slots, rows.positions)
        x = network(network.embed(rows.tokens, rows.positions), store)
        chosen = self._rank.sampler.draw(network.logits(x), rows.slots, rows.positions + 1)
        end_pass(texts, rows, chosen)
