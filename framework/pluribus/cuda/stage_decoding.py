"""A stage's part of a pass in which every row computes one token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pluribus.cuda.graphs import Graphs, bucket, sizes_up_to
from pluribus.cuda.rank import Rank
from pluribus.cuda.sizes import SIZES
from pluribus.interfaces import Share, TokenLayout
from pluribus.kernels.upload import upload
from pluribus.logits_plan import LogitsPlan, Outcome, Task
from pluribus.step import Row


class StageDecoding:
    """Replays what lies between what a stage receives and what it sends.

    Which slots and positions the rows are is copied to the device for each pass: a stage in the
    middle never hears of tokens, so it could not find them out. The first stage looks its rows'
    tokens up and embeds them, the last one chooses the next, both inside the graph.

    Args:
        rank: whose graphs they are.
        share: the stage it is.
        hidden_size, dtype: of what stages hand on.
    """

    def __init__(self, rank: Rank, share: Share, hidden_size: int, dtype: torch.dtype) -> None:
        self._rank = rank
        self._share = share
        num_rows = self._padding = rank.state.padding
        self._columns = torch.zeros(2, num_rows, dtype=torch.int64, device=rank.device)
        self._columns[0] = self._padding  # until rows come: capturing runs what no text may see
        # Apart, or rows that pad would go round and round, and grow with every pass.
        self._received = torch.zeros(num_rows, hidden_size, dtype=dtype, device=rank.device)
        self._sent = torch.zeros_like(self._received)
        self._chosen = torch.zeros(num_rows, dtype=torch.int64, device=rank.device)
        self._last = torch.arange(num_rows, device=rank.device)
        self._sizes = sizes_up_to(num_rows, SIZES)
        self._graphs: Graphs[int] = Graphs(self._run_pass, rank.pool)
        self._size = 0

    def runs(self) -> list[Callable[[], None]]:
        """Return what is going to be captured, or launched for prompts, to be rehearsed."""
        return [*self._graphs.runs(self._sizes), self._run_prompts]

    def capture(self) -> None:
        """Capture a pass of every size."""
        for size in reversed(self._sizes):
            self._graphs.capture(size)

    def begin(self, rows: Sequence[Row]) -> Task:
        """Start a pass: tell the device which rows it has."""
        num_rows, slots = len(rows), [row.slot for row in rows]
        size = bucket(self._sizes, num_rows)
        assert size is not None, f"{num_rows} rows where there are {self._padding} slots"
        self._size = size
        num_padding = size - num_rows
        positions = [row.start for row in rows]
        [column] = upload(
            self._rank.device,
            [*slots, *[self._padding] * num_padding, *positions, *[0] * num_padding],
        )
        columns = column.view(2, size)
        self._columns[:, :size] = columns
        ours = columns[:, :num_rows]
        layout = TokenLayout(ours[0], ours[1], self._last[:num_rows])
        return Task(LogitsPlan.of(rows, self._rank.state), layout, ours[1])

    def embed(self, task: Task) -> Tensor:
        """Return as much as anybody else receives: the graph itself embeds."""
        return self._received[: len(task.positions)]

    def run(self, x: Tensor) -> Tensor:
        """Run the stage's layers on what has come from the stage before; return what to send."""
        if not self._share.is_first:
            self._received[: len(x)] = x
        self._graphs.replay(self._size)
        sent = self._sent[: len(x)]
        return sent if self._share.is_last else sent.clone()  # what is sent must not change

    def finish(self, task: Task, hidden: Tensor) -> Outcome:
        """Return the tokens that the last stage has chosen."""
        return Outcome(task.plan, self._chosen[: len(hidden)].clone(), None, None)

    def _run_prompts(self) -> None:
        """Run rows of one token and of more, which attend with kernels of their own."""
        rows = [Row(self._padding, 0, num_tokens, samples=False) for num_tokens in (1, 2)]
        self._rank.store.begin(rows)
        self._rank.network(self._received.new_zeros(3, self._received.shape[1]), self._rank.store)

    def _run_pass(self, num_rows: int) -> None:
        network, store, sampler = self._rank.network, self._rank.store, self._rank.sampler
        slots, positions = self._columns[:, :num_rows]
        store.begin_decode(slots, positions)
        x = self._received[:num_rows]
        if self._share.is_first:
            x = network.embed(self._rank.state.tokens[slots, positions], positions)
        x = network(x, store)
        if not self._share.is_last:
            self._sent[:num_rows] = x
            return
        following = positions + 1
        chosen = sampler.draw(network.logits(x), slots, following)
        sampler.append(chosen, slots, following)
        self._chosen[:num_rows] = chosen
