"""Text comes out whole characters at a time and ends before the first stop string."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from pluribus.detokenizer import Detokenizer
from pluribus.stop_strings import StopStrings
from pluribus.text_streams import ByteStream

# Few letters, so that stop strings come up, overlap and nearly come up.
texts = st.text("abé€", max_size=30)
stop_strings = st.lists(st.text("abé€", min_size=1, max_size=6), max_size=4)


@dataclass(frozen=True)
class Bytes:
    """Every byte is a token."""

    num_token_ids: int = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def min_num_tokens(self, text: str) -> int:
        return len(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def stream(self, prompt: Sequence[int]) -> ByteStream:
        return ByteStream([bytes([byte]) for byte in range(256)])

    def token_bytes(self, id_: int) -> bytes:
        return bytes([id_])


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def first_stop(text: str, stops: Sequence[str], num_exempt: int = 0) -> int | None:
    """Where the earliest stop string begins that is not over within the exempt beginning."""
    found = [
        at
        for stop in stops
        for at in range(len(text))
        if text.startswith(stop, at) and at + len(stop) > num_exempt
    ]
    return min(found, default=None)


@given(texts, stop_strings, st.lists(st.integers(0, 60), max_size=8))
@example("aab", ["ab", "aabb"], [1, 2])
@example("aabb", ["ab", "aabb"], [3])
@example("aaba", ["aba"], [2])
def test_the_text_ends_before_the_earliest_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    detokenizer = Detokenizer(Bytes(), [], StopStrings(stops))
    shown = [""]
    for piece in pieces(text.encode(), cuts):
        detokenizer.append(piece)
        shown.append(detokenizer.text)
    detokenizer.finish()
    shown.append(detokenizer.text)
    assert detokenizer.text == text[: first_stop(text, stops)]
    assert detokenizer.is_stopped == (first_stop(text, stops) is not None)
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


@given(texts, texts, stop_strings)
@example("ab", "b", ["abb"])
def test_no_stop_is_completed_before_it_may_be(before: str, after: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(Bytes(), [], StopStrings(stops))
    for character in before:
        detokenizer.append(character.encode(), may_stop=False)
    assert not detokenizer.is_stopped
    detokenizer.append(after.encode())
    detokenizer.finish()
    whole = before + after
    assert detokenizer.text == whole[: first_stop(whole, stops, len(before))]


class Naive:
    """Tries every stop string at every character of all that has come."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._whole = self.text = ""
        self._num_exempt = 0
        self.is_stopped = False

    def append(self, text: str, *, may_stop: bool) -> None:
        self._whole += text
        if not may_stop:
            self._num_exempt = len(self._whole)
        self._settle(self._first_open())

    def finish(self) -> None:
        self._settle(len(self._whole))

    def _first_open(self) -> int:
        """Where the earliest end of the text begins that more may complete to a stop."""
        found = (
            at
            for at in range(len(self._whole))
            for stop in self._stops
            if stop.startswith(self._whole[at:]) and stop != self._whole[at:]
        )
        return next(found, len(self._whole))

    def _settle(self, end: int) -> None:
        if self.is_stopped:
            return
        at = first_stop(self._whole, self._stops, self._num_exempt)
        if at is not None and at <= end:
            self.is_stopped, end = True, at
        self.text = self._whole[:end]


@given(st.lists(st.tuples(texts, st.booleans()), max_size=8), stop_strings)
@example([("aabb", True), ("b", False), ("", True)], ["abb", "aabbc"])
@example([("aaaa", True), ("ab", True)], ["aaaab", "aab", "aaac"])
def test_it_shows_what_trying_every_stop_at_every_character_would(
    come: list[tuple[str, bool]], stops: list[str]
) -> None:
    shared = StopStrings(stops)
    for _ in range(2):  # the second answer meets the states that the first one made
        detokenizer, naive = Detokenizer(Bytes(), [], shared), Naive(stops)
        for text, may_stop in come:
            detokenizer.append(text.encode(), may_stop=may_stop)
            naive.append(text, may_stop=may_stop)
            assert (detokenizer.text, detokenizer.is_stopped) == (naive.text, naive.is_stopped)
        detokenizer.finish()
        naive.finish()
        assert (detokenizer.text, detokenizer.is_stopped) == (naive.text, naive.is_stopped)


def test_very_many_stops_do_not_make_a_character_slow() -> None:
    stops = StopStrings(f"{'ab' * (number % 7)}{number:06}" for number in range(50_000))
    detokenizer = Detokenizer(Bytes(), [], stops)
    began = time.process_time()
    for character in b"abab00001" * 1000:
        detokenizer.append([character])
    assert time.process_time() - began < 2  # one by one they would take minutes
    assert not detokenizer.is_stopped
    detokenizer.append(b"4")
    assert detokenizer.is_stopped


def test_what_may_begin_a_stop_waits_and_anything_else_does_not() -> None:
    detokenizer = Detokenizer(Bytes(), [], StopStrings(["stop", "!"]))
    detokenizer.append(b"on st")
    assert detokenizer.text == "on "
    detokenizer.append(b"a")
    assert detokenizer.text == "on sta"
    detokenizer.append("é".encode()[:1])
    assert detokenizer.text == "on sta"
    detokenizer.append("é".encode()[1:] + b"s")
    assert detokenizer.text == "on staé"
    detokenizer.finish()
    assert detokenizer.text == "on staés"


def test_nothing_follows_a_stop() -> None:
    detokenizer = Detokenizer(Bytes(), [], StopStrings(["."]))
    for token in b"a.b":
        detokenizer.append([token])
    detokenizer.finish()
    assert detokenizer.text == "a"


def test_a_fresh_one_starts_over() -> None:
    detokenizer = Detokenizer(Bytes(), [7], StopStrings(["stop"]))
    detokenizer.append(b"and stop" + b"\xe2")
    assert detokenizer.is_stopped
    fresh = detokenizer.fresh()
    assert (fresh.text, fresh.is_stopped) == ("", False)
    fresh.append(b"go on stop")
    assert (fresh.text, fresh.is_stopped) == ("go on ", True)
