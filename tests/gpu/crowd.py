"""A crowd that comes, leaves and is sent away at random, as fast as steps can be run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from random import Random

from gpu.tiny import BLOCK_SIZE, GREEDY, NUM_SLOTS, PROMPT, SEEDED, SHAPE, SPEC, TinyWorker, alone
from pluribus import Batcher, Generation, KVLedger, SamplingParams
from pluribus.engine.core import EngineCore, Observer
from pluribus.worker import Worker
from pluribus_batchers.continuous import ContinuousBatcher, ContinuousConfig
from pluribus_batchers.fair import FairBatcher
from pluribus_caches.kv.paged import PagedConfig, PagedKVCache

BATCHERS: tuple[Callable[[ContinuousConfig, KVLedger], Batcher], ...] = (
    ContinuousBatcher,
    FairBatcher,
)
MOST_WAITING = 12
KINDS: tuple[SamplingParams, ...] = (
    GREEDY,
    replace(GREEDY, max_tokens=25),
    replace(GREEDY, stop_token_ids=tuple(range(3, 60, 3)), max_tokens=25),
    replace(GREEDY, max_tokens=1),
    replace(GREEDY, max_tokens=0, prompt_logprobs=0),
    replace(GREEDY, stop_token_ids=tuple(range(3, 60, 3)), max_tokens=15),
    replace(GREEDY, frequency_penalty=0.9, logprobs=1),
    SEEDED,
    replace(SEEDED, max_tokens=17, top_p=0.7),
    replace(SEEDED, top_k=5, top_p=0.9),
    replace(SEEDED, ignore_eos=False, max_tokens=12, min_tokens=3),
    replace(SEEDED, logit_bias=((2, 4.0),), ignore_eos=False, max_tokens=12),
)
"""What a member may ask for."""
PROMPTS = (
    *(PROMPT[:length] for length in range(1, len(PROMPT) + 1, 2)),
    *(PROMPT[:6] + (10 + length,) * length for length in range(1, 20, 4)),
)
"""What it may begin from; many begin alike."""


class Crowd:
    """Drives one engine, checks its ledger after every step, and every answer that is whole.

    The KV cache holds fewer than two of the longest texts, so that it is often full, and its blocks
    are promised to one after another.

    Args:
        make_worker: returns a worker; another one gives each answer alone.
        seed: of everything that happens.
    """

    def __init__(self, make_worker: Callable[[], Worker], seed: int) -> None:
        self._chance = chance = Random(seed)
        self._worker, lone = make_worker(), make_worker()

        @cache
        def expected(prompt: tuple[int, ...], params: SamplingParams) -> Generation:
            return alone(lone, Generation(id=0, prompt=prompt, params=params))

        self._expected = expected
        shape = replace(SHAPE, num_tokens=80)
        config = PagedConfig(block_size=BLOCK_SIZE, prefix_caching=chance.random() < 0.7)
        ledger = PagedKVCache(config).ledger(shape)
        limits = ContinuousConfig(NUM_SLOTS, chance.choice([NUM_SLOTS, 8, 16, 64]))
        batcher = chance.choice(BATCHERS)(limits, ledger)
        ends, lookahead = SPEC.eos_token_ids, chance.choice([0, 1, 1, 3])
        self.core = EngineCore(batcher, ledger, self._worker, ends, Observer(), lookahead)
        self.num_added = self.num_finished = self.num_cancelled = 0
        self._alive: dict[int, Generation] = {}

    def run(self, num_steps: int) -> None:
        """Let the crowd come and go for so many steps; then let those who are left finish."""
        mood = 0.3
        for _ in range(num_steps):
            if self._chance.random() < 0.02:  # bursts, and times when nobody comes
                mood = self._chance.choice([0.0, 0.1, 0.3, 0.9])
            self._come(mood)
            self._leave()
            self._step()
        while self.core.has_work:
            self._step()
        self._check_empty()

    def _come(self, mood: float) -> None:
        while len(self._alive) < NUM_SLOTS + MOST_WAITING and self._chance.random() < mood:
            self.num_added += 1
            params = replace(self._chance.choice(KINDS), seed=self._chance.randrange(3))
            generation = Generation(
                id=self.num_added,
                prompt=self._chance.choice(PROMPTS),
                params=params,
                tenant=self._chance.choice("abc"),
                weight=self._chance.choice([1.0, 2.0]),
            )
            self._alive[generation.id] = generation
            self.core.add(generation)

    def _leave(self) -> None:
        """Cancel somebody, waiting or running, now and then; rarely everybody at once."""
        fate = self._chance.random()
        if fate < 0.002:
            doomed = list(self._alive.values())
        elif fate < 0.1 and self._alive:
            doomed = [self._chance.choice(list(self._alive.values()))]
        else:
            return
        for generation in doomed:
            self.num_cancelled += 1
            self.core.finish(self._alive.pop(generation.id))
            wanted = self._expected(generation.prompt, generation.params)
            assert generation.tokens == wanted.tokens[: len(generation.tokens)]

    def _step(self) -> None:
        if isinstance(self._worker, TinyWorker):
            self._worker.passes = self._chance.choice([1, 2, 4, 8])
        outputs = self.core.step()
        self.core.ledger.check_integrity()
        for output in outputs:
            if output.finish_reason is not None:
                self._check(self._alive.pop(output.id))

    def _check(self, generation: Generation) -> None:
        self.num_finished += 1
        wanted = self._expected(generation.prompt, generation.params)
        ours = (generation.tokens, generation.finish_reason)
        assert ours == (wanted.tokens, wanted.finish_reason), generation

    def _check_empty(self) -> None:
        """Check that nobody is left, nor anything that anybody has held."""
        core = self.core
        assert not self._alive
        assert self.num_finished + self.num_cancelled == self.num_added
        assert core.ledger.num_used_tokens == 0
        stats = core.stats()
        assert stats.num_running == stats.num_waiting == 0
        assert sorted(core._free_slots) == list(range(NUM_SLOTS))
