"""Text from tokens as they come: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from pluribus.interfaces import Tokenizer


class Detokenizer:
    """The text of one answer, growing.

    Attributes:
        text: what may be shown: whole characters that no stop string can take back.
        is_stopped: a stop string has come up; ``text`` ends before the earliest.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]) -> None:
        """Start the text of an answer to ``prompt``, which any of ``stops`` ends."""
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._stops = tuple(stops)
        self._stream = tokenizer.stream(prompt)
        self._held = ""
        self._num_exempt = 0
        self.text = ""
        self.is_stopped = False

    def fresh(self) -> Detokenizer:
        """Return an empty one for the same prompt and stop strings."""
        return Detokenizer(self._tokenizer, self._prompt, self._stops)

    def append(self, tokens: Sequence[int], *, may_stop: bool = True) -> None:
        """Take more tokens; with ``may_stop=False`` they cannot complete a stop string."""
        if self.is_stopped:
            return
        self._held += self._stream.append(tokens)
        if not may_stop:
            self._num_exempt = len(self._held)
        ends = (_beginning(self._held, stop) for stop in self._stops)
        self._settle(min(ends, default=len(self._held)))

    def finish(self) -> None:
        """Show what was held back: nothing comes after it."""
        if not self.is_stopped:
            self._held += self._stream.finish()
            self._settle(len(self._held))

    def _settle(self, end: int) -> None:
        """Show what is held up to ``end``, where more text could yet make a difference.

        A stop string that comes up later than that waits: an earlier one may come of it.
        """
        found = [at for stop in self._stops if (at := self._find(stop)) >= 0]
        if found and min(found) <= end:
            end = min(found)
            self.is_stopped = True
        self.text += self._held[:end]
        self._held = self._held[end:]
        self._num_exempt = max(0, self._num_exempt - end)

    def _find(self, stop: str) -> int:
        """Return where ``stop`` comes up first, unless what is exempt completes it, or -1."""
        return self._held.find(stop, max(0, self._num_exempt - len(stop) + 1))


class Unread(Detokenizer):
    """Makes no text: the answer is read as text elsewhere, and no stop string may end it."""

    def __init__(self) -> None:
        self.text = ""
        self.is_stopped = False

    def fresh(self) -> Detokenizer:
        return self

    def append(self, tokens: Sequence[int], *, may_stop: bool = True) -> None:
        pass

    def finish(self) -> None:
        pass


def _beginning(text: str, stop: str) -> int:
    """Return where ``text`` may end in the beginning of ``stop``, or its length."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return at
        at = text.find(stop[0], at + 1)
    return len(text)
