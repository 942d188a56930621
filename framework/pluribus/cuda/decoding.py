"""Passes in which every row computes one token and samples the next: all of it on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pluribus.cuda.arrival import Arrival
from pluribus.cuda.graphs import Graphs, bucket, sizes_up_to
from pluribus.cuda.rank import Rank
from pluribus.cuda.sizes import SIZES
from pluribus.kernels.passes import Rows, begin_pass, end_pass
from pluribus.kernels.upload import upload
from pluribus.logits_plan import Outcome
from pluribus.step import Row, StepResult

MAX_PASSES = 8
SECONDS_OF_PASSES = 0.004
"""What passes of one step should take together. New generations wait for the step under way, and
for one more where the host runs ahead."""


class Decoding:
    """Replays decode passes, several in a row, and reads what came of them.

    Where choosing any row's token takes more than the sampling kernel, the layers are replayed and
    the rest is launched: what it computes in would double the memory that graphs hold.

    Attributes:
        max_passes: how many of them make a step of a few milliseconds.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._padding = rank.state.padding
        self._rows = Rows.make(self._padding, MAX_PASSES, rank.device)
        self._rows.asked.fill_(self._padding)
        self._wanted: tuple[tuple[int, ...], bool] = ((), False)
        self._places: Sequence[int] = ()
        self._sizes = sizes_up_to(self._padding, SIZES)
        self._graphs: Graphs[int] = Graphs(self._run_pass, rank.pool)
        self._layers: Graphs[int] = Graphs(self._run_layers, rank.pool)
        self._hidden: Tensor | None = None
        self._landings: list[Landing] = []
        self.max_passes = 1

    def runs(self) -> list[Callable[[], None]]:
        """Return what is going to be captured, or launched, to be rehearsed.

        Sampling comes first: no kernel takes longer to compile.
        """
        return [self._choose_any, *self._graphs.runs(self._sizes)]

    def capture(self) -> None:
        """Capture a pass of every size."""
        for size in reversed(self._sizes):
            self._capture(self._graphs, size)

    def run(self, rows: Sequence[Row], passes: int = 1) -> Callable[[], StepResult]:
        """Run passes of these rows; return a function that waits for what came of them."""
        size = bucket(self._sizes, len(rows))
        assert size is not None, f"{len(rows)} rows where there are {self._padding} slots"
        is_special = self._rank.is_special(rows)
        if is_special and size not in self._layers:
            self._capture(self._layers, size)
        places = self._place(rows, size, in_order=is_special)
        self._rows.counter.zero_()
        landing = self._landings.pop() if self._landings else Landing.make(self._rank, self._rows)
        landing.started.mark()
        if is_special:
            told = self._launch_heads(rows, size, passes)
            if told is not None:
                self._landings.append(landing)
                return self._rank.arrivals.bring(told)
        else:
            self._graphs.replay(size, passes)
        landing.answers[:passes].copy_(self._rows.answers[:passes], non_blocking=True)
        landing.ended.mark()

        def read() -> StepResult:
            landing.ended.wait()
            seconds = landing.ended.seconds_since(landing.started)
            wanted = passes * SECONDS_OF_PASSES / max(seconds, 1e-6)
            self.max_passes = max(1, min(MAX_PASSES, int(wanted)))
            tokens = list(zip(*landing.answers[:passes, : len(rows)].tolist(), strict=True))
            self._landings.append(landing)
            return StepResult([tokens[place] for place in places])

        return read

    def _launch_heads(self, rows: Sequence[Row], size: int, passes: int) -> Outcome | None:
        """Replay the layers of each pass, and launch what chooses its tokens.

        Returns what came of the only pass, if it tells more than tokens.
        """
        columns = self._rows.first(len(rows))
        for at in range(passes):
            self._layers.replay(size)
            assert self._hidden is not None, "layers leave what they return"
            now = [row.after(at) for row in rows]
            outcome = self._rank.choose(now, columns, self._hidden[: len(rows)])
        assert passes == 1 or outcome.logprobs is None, "of several passes, tokens alone are read"
        return None if outcome.logprobs is None else outcome

    def _capture(self, graphs: Graphs[int], size: int) -> None:
        """Capture a pass; that runs one, which no text may see."""
        self._ask((), size)
        self._rows.counter.zero_()
        graphs.capture(size)

    def _place(self, rows: Sequence[Row], size: int, *, in_order: bool) -> Sequence[int]:
        """Ask for these rows, the longest text first unless ``in_order``; return each one's place.

        Attention takes longest for the longest, so that one should not be the last to begin. All
        texts grow alike: who has come first stays there until somebody joins or leaves.
        """
        wanted = tuple([row.slot for row in rows]), in_order
        if wanted != self._wanted:
            starts = np.array([0 if in_order else -row.start for row in rows])
            order = starts.argsort(kind="stable")
            self._places = order.argsort().tolist()
            self._ask(tuple([rows[index].slot for index in order]), size)
            self._wanted = wanted
        return self._places

    def _ask(self, slots: tuple[int, ...], size: int) -> None:
        """Put slots into the first rows, and padding into the rest of what will run."""
        self._wanted = ((), False)
        [column] = upload(self._rank.device, slots + (self._padding,) * (size - len(slots)))
        self._rows.asked[:size] = column

    def _run_pass(self, num_rows: int) -> None:
        rows = self._rows.first(num_rows)
        logits = self._rank.network.logits(self._begin(rows))
        chosen = self._rank.sampler.draw(logits, rows.slots, rows.positions + 1)
        end_pass(self._rank.state.texts, rows, chosen)

    def _run_layers(self, num_rows: int) -> None:
        x = self._begin(self._rows.first(num_rows))
        if self._hidden is None:  # as it is run, before it is captured
            self._hidden = x.new_empty(self._padding, x.shape[1])
        self._hidden[:num_rows] = x

    def _begin(self, rows: Rows) -> Tensor:
        """Begin a pass; return what the last layer returns."""
        network, store = self._rank.network, self._rank.store
        begin_pass(self._rank.state.texts, rows)
        store.begin_decode(rows.slots, rows.positions)
        return network(network.embed(rows.tokens, rows.positions), store)

    def _choose_any(self) -> None:
        """Choose from logits as they are where something has adjusted them."""
        rows, sampler = self._rows.first(1), self._rank.sampler
        logits = torch.zeros(1, self._rank.state.num_token_ids, device=self._rank.device)
        sampler.draw(logits, rows.slots, rows.positions)


@dataclass(frozen=True, slots=True)
class Landing:
    """Where the answers of one step come to; used again once they are read.

    Ranks whose answers nobody reads make one for each step.

    Attributes:
        answers: on the host, int64, [max_passes, num_rows].
        started, ended: when the step's passes begin, and when their answers are there.
    """

    answers: Tensor
    started: Arrival
    ended: Arrival

    @classmethod
    def make(cls, rank: Rank, rows: Rows) -> Landing:
        """Return one for the answers of these rows."""
        is_cuda = rank.device.type == "cuda"
        answers = torch.empty_like(rows.answers, device="cpu", pin_memory=is_cuda)
        return cls(answers, Arrival(rank.arrivals), Arrival(rank.arrivals))
