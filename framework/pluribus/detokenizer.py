"""Text from tokens as they come: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from pluribus.interfaces import Tokenizer
from pluribus.stop_strings import StopStrings


class Detokenizer:
    """The text of one answer, growing.

    Attributes:
        text: what may be shown: whole characters that no stop string can take back.
        is_stopped: a stop string has come up; ``text`` ends before the earliest.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: StopStrings) -> None:
        """Start the text of an answer to ``prompt``, which any of ``stops`` ends."""
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._stops = stops
        self._stream = tokenizer.stream(prompt)
        self._state = stops.start
        self._held = ""
        self._found: int | None = None
        self.text = ""
        self.is_stopped = False

    def fresh(self) -> Detokenizer:
        """Return an empty one for the same prompt and stop strings."""
        return Detokenizer(self._tokenizer, self._prompt, self._stops)

    def append(self, tokens: Sequence[int], *, may_stop: bool = True) -> None:
        """Take more tokens; with ``may_stop=False`` they cannot complete a stop string."""
        if self.is_stopped:
            return
        self._hold(self._stream.append(tokens))
        if not may_stop:
            self._found = None
        self._settle(len(self._held) - self._state.num_open)

    def finish(self) -> None:
        """Show what was held back: nothing comes after it."""
        if not self.is_stopped:
            self._hold(self._stream.finish())
            self._settle(len(self._held))

    def _hold(self, text: str) -> None:
        """Hold ``text`` too, and note where the earliest stop string in all of it begins."""
        if self._stops:
            for end, character in enumerate(text, len(self._held) + 1):
                self._state = self._stops.after(self._state, character)
                if self._state.num_stopped:
                    begin = end - self._state.num_stopped
                    self._found = begin if self._found is None else min(self._found, begin)
        self._held += text

    def _settle(self, end: int) -> None:
        """Show what is held up to ``end``, where more text could yet make a difference.

        A stop string that comes up later than that waits: an earlier one may come of it.
        """
        if self._found is not None and self._found <= end:
            end = self._found
            self.is_stopped = True
        self.text += self._held[:end]
        self._held = self._held[end:]
        if self._found is not None:
            self._found -= end


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
