"""What the engine tells every rank about one step. Plain data: it may cross a socket.

Ranks keep the state of running generations - tokens, positions, sampling parameters - on
their device, by slot. The engine sends changes only, so it never needs a token's value to
plan the next step.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A generation enters ``slot``.

    Attributes:
        slot: row of the device's state.
        prompt: its token ids.
        max_length: tokens of prompt and answer at most.
        temperature, top_k, top_p, seed: see SamplingParams; ``seed`` is set.
        placement: what the KV ledger promised it, for the KV store.
    """

    slot: int
    prompt: tuple[int, ...]
    max_length: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    placement: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Compute ``num_tokens`` tokens of ``slot``, from position ``start``.

    ``samples`` says that they reach the end of what is known, so that a token follows.
    """

    slot: int
    start: int
    num_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One step, the same on every rank: first evict, then admit, then run the rows.

    ``number`` counts from 0; changes and rows apply at exactly this step.
    """

    number: int
    evicted: tuple[int, ...]
    admitted: tuple[Admission, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step: one token id for each row that samples, in row order."""

    tokens: tuple[int, ...]
