"""Work to measure engines with: how many requests, how long each, made of which tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

SHORTEST = 4
FIRST_ID, LAST_ID = 4, 49999
"""Ids that every OPT tokenizer has, special ones left out; smaller vocabularies fold them."""
SHIFT = 7919


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts are: all ``median`` tokens, or lognormal about it, ``most`` at most.

    ``spread`` is the standard deviation of the logarithm.
    """

    median: float
    spread: float = 0.0
    most: int = 2048

    def draw(self, rng: random.Random) -> int:
        """Return a length."""
        if not self.spread:
            return int(self.median)
        drawn = int(rng.lognormvariate(math.log(self.median), self.spread))
        return min(self.most, max(SHORTEST, drawn))


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how many tokens to generate."""

    prompt: tuple[int, ...]
    num_tokens: int

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + self.num_tokens


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are there all at once."""

    num_requests: int
    prompt: Lengths
    output: Lengths
    seed: int = 0

    def requests(self, round_: int, bos: Sequence[int], num_token_ids: int) -> list[Request]:
        """Return the requests: as long in every round, but never the same tokens.

        A prompt that comes back would be found in the cache.

        Args:
            round_: counted from 0.
            bos: what every prompt begins with.
            num_token_ids: of the vocabulary.
        """
        rng = random.Random(self.seed)  # noqa: S311 - nobody gains by guessing it
        fold = min(LAST_ID + 1, num_token_ids) - FIRST_ID
        requests = []
        for _ in range(self.num_requests):
            length, num_tokens = self.prompt.draw(rng), self.output.draw(rng)
            drawn = [rng.randrange(FIRST_ID, LAST_ID + 1) for _ in range(length - len(bos))]
            ids = (FIRST_ID + (id_ - FIRST_ID + round_ * SHIFT) % fold for id_ in drawn)
            requests.append(Request((*bos, *ids), num_tokens))
        return requests


def fixed(num_requests: int, prompt: int, output: int) -> Workload:
    """Return requests that are all alike."""
    return Workload(num_requests, Lengths(prompt), Lengths(output))


def mixed(num_requests: int) -> Workload:
    """Return requests as long and as uneven as people's conversations (ShareGPT)."""
    prompt = Lengths(math.exp(4.6), spread=1.1, most=1024)
    output = Lengths(math.exp(4.9), spread=0.9, most=768)
    return Workload(num_requests, prompt, output, seed=1)


WORKLOADS = MappingProxyType(
    {
        "lat1": fixed(1, 32, 256),
        "lat8": fixed(8, 32, 256),
        "b16": fixed(16, 128, 128),
        "b64": fixed(64, 128, 128),
        "b256": fixed(256, 128, 128),
        "prefill": fixed(64, 1024, 1),
        "mix16": mixed(16),
        "mix512": mixed(512),
    }
)
