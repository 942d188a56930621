"""Where texts that end an answer come up in it, however many they are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter


@dataclass(eq=False, slots=True)
class State:
    """What matters of a text to the characters that come next: its ``beginning``.

    That is the longest end of the text that is the beginning of a stop string, or one itself.

    Attributes:
        first, last: where among the sorted stop strings those are that start with it.
        length: its characters.
        num_stopped: characters of the longest stop string that the text ends in; 0 for none.
        num_open: characters at the text's end that more of them may yet make a stop string.
        fallback: the state if a character less were left of it, or fewer; None if none is.
        following: the states after one more character, as far as they are known.
    """

    first: int
    last: int
    length: int
    num_stopped: int = 0
    num_open: int = 0
    fallback: State | None = None
    following: dict[str, State] = field(default_factory=dict)


class StopStrings:
    """Texts that end an answer, sought as it comes, character by character.

    What a character costs does not depend on how many they are: this is the automaton of Aho
    and Corasick (1975), of which only those states are made that an answer comes to. Answers
    share it, on one thread.

    Args:
        texts: any number, none of them empty; sorted ones are taken fastest.

    Attributes:
        start: the state of a text of which nothing matters.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = sorted(dict.fromkeys(texts))
        self._first_characters = frozenset(map(itemgetter(0), self._texts))
        self.start = State(0, len(self._texts), 0)

    def __len__(self) -> int:
        return len(self._texts)

    def after(self, state: State, character: str) -> State:
        """Return the state of a text in ``state`` once ``character`` has come."""
        if (known := state.following.get(character)) is not None:
            return known
        if state is self.start and character not in self._first_characters:
            return state
        return self._make(state, character)

    def _make(self, state: State, character: str) -> State:
        """Return the state after ``character``, and make it and those that it falls back to."""
        chain: list[State] = []
        shorter: State | None = state
        while shorter is not None:
            if (known := shorter.following.get(character)) is not None:
                chain.append(known)
                break
            if (new := self._narrow(shorter, character)) is not None:
                shorter.following[character] = new
                chain.append(new)
            shorter = shorter.fallback
        else:
            chain.append(self.start)
        for longer, fallback in reversed(list(pairwise(chain))):
            self._complete(longer, fallback)
        return chain[0]

    def _narrow(self, state: State, character: str) -> State | None:
        """Return the state of those that have ``character`` next, if any has."""
        at = itemgetter(slice(state.length, state.length + 1))
        first = bisect_left(self._texts, character, state.first, state.last, key=at)
        if first == state.last or at(self._texts[first]) != character:
            return None
        last = bisect_right(self._texts, character, first, state.last, key=at)
        return State(first, last, state.length + 1)

    def _complete(self, state: State, fallback: State) -> None:
        # Of those that start alike, the shortest is sorted first, and none comes twice.
        is_stop = len(self._texts[state.first]) == state.length
        is_open = len(self._texts[state.last - 1]) > state.length
        state.num_stopped = state.length if is_stop else fallback.num_stopped
        state.num_open = state.length if is_open else fallback.num_open
        state.fallback = fallback
