"""A worker on a tiny random OPT gives what transformers gives, however its steps are cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import OPTForCausalLM, RepetitionPenaltyLogitsProcessor

from opt.reading import decoder
from opt.variants import architecture, canonical, hugging_face
from pluribus import head as head_module
from pluribus.errors import PluginError
from pluribus.generation import SamplingParams, TokenLogprobs
from pluribus.interfaces import KVShape, KVStore, ModelSpec, Network
from pluribus.sampler import NextTokens, Sampler
from pluribus.slots import SlotState, floats_of
from pluribus.step import Admission, Row, Step, StepResult
from pluribus.testing.reference import ReferenceKVStore
from pluribus.worker import Worker
from pluribus_opt.decoder import OPTDecoder

PROMPT = (2, 50, 7, 71, 33, 33, 4, 68, 12, 29, 5)
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, seed=0)
NUM_IDS = 90
"""Ids with text: fewer than the head has, as in OPT's own checkpoints."""
SPEC = ModelSpec(
    name="tiny",
    num_layers=3,
    hidden_size=32,
    num_heads=4,
    head_dim=8,
    vocab_size=96,
    num_token_ids=NUM_IDS,
    max_length=40,
    eos_token_ids=(2,),
    pad_token_id=1,
    dtype="float32",
    num_parameters=0,
    num_layer_parameters=1,
    num_head_parameters=1,
)
SHAPE = KVShape(num_layers=3, num_heads=4, head_dim=8, num_slots=4, max_length=40, num_tokens=160)


@cache
def theirs() -> OPTForCausalLM:
    return hugging_face("pre-norm")


@cache
def ours() -> OPTDecoder:
    return decoder(architecture(theirs()), canonical(theirs()))


def expected_logits(text: Sequence[int]) -> Tensor:
    """Return transformers' logits after every token of ``text``."""
    with torch.inference_mode():
        logits: Tensor = theirs()(torch.tensor([list(text)])).logits[0, :, :NUM_IDS]
    return logits


class Driver:
    """What an engine does, by hand."""

    def __init__(self, network: Network | None = None) -> None:
        store, device = ReferenceKVStore(), torch.device("cpu")
        self.worker = Worker(network or ours(), store, SPEC, SHAPE, device)
        self.num_steps = 0

    def submit(
        self,
        *rows: Row,
        admitted: Sequence[Admission] = (),
        evicted: Sequence[int] = (),
    ) -> Callable[[], StepResult]:
        step = Step(self.num_steps, tuple(evicted), tuple(admitted), rows)
        self.num_steps += 1
        return self.worker.submit(step)

    def run(self, admission: Admission, *cuts: int, evicted: Sequence[int] = ()) -> list[int]:
        """Compute the prompt in chunks of these sizes and a last one, then all of the answer."""
        slot, length = admission.slot, len(admission.prompt)
        starts = [sum(cuts[:index]) for index in range(len(cuts) + 1)]
        ends = [*starts[1:], length]
        rows = [
            Row(slot, start, end - start, samples=end == length)
            for start, end in zip(starts, ends, strict=True)
        ]
        rows += [Row(slot, at, 1, samples=True) for at in range(length, admission.max_length - 1)]
        tokens: list[int] = []
        for index, row in enumerate(rows):
            admitted = [admission] if index == 0 else []
            result = self.submit(row, admitted=admitted, evicted=evicted if index == 0 else [])
            tokens += (token for [token] in result().tokens)
        return tokens


def admission(
    params: SamplingParams = GREEDY,
    *,
    slot: int = 0,
    prompt: Sequence[int] = PROMPT,
    ends: Sequence[int] = (),
) -> Admission:
    return Admission(
        slot=slot,
        prompt=tuple(prompt),
        max_length=len(prompt) + params.max_tokens,
        params=params,
        ends=tuple(ends),
        placement=(),
    )


def greedy_answer(
    change: Callable[[list[int], Tensor], Tensor] = lambda text, logits: logits,
    prompt: Sequence[int] = PROMPT,
) -> list[int]:
    """Return transformers' greedy answer, its logits changed by what came before."""
    text = list(prompt)
    for _ in range(GREEDY.max_tokens):
        text.append(int(change(text, expected_logits(text)[-1]).argmax()))
    return text[len(prompt) :]


def test_a_greedy_answer_is_transformers() -> None:
    assert Driver().run(admission()) == greedy_answer()


def test_steps_may_be_submitted_before_results_are_read() -> None:
    driver = Driver()
    waiting = [
        driver.submit(Row(0, 0, len(PROMPT), samples=True), admitted=[admission()]),
        *(driver.submit(Row(0, len(PROMPT) + at, 1, samples=True)) for at in range(7)),
    ]
    last_first = [token for wait in reversed(waiting) for [token] in wait().tokens]
    assert last_first == greedy_answer()[::-1]


@pytest.mark.parametrize("cuts", [(), (4,), (1, 1, 7)], ids=str)
def test_penalties_see_the_whole_prompt_however_it_is_cut(cuts: tuple[int, ...]) -> None:
    params = replace(GREEDY, repetition_penalty=1.5, presence_penalty=0.7, frequency_penalty=0.4)

    def penalised(text: list[int], logits: Tensor) -> Tensor:
        ids: Any = torch.tensor([text])
        changed: Tensor = RepetitionPenaltyLogitsProcessor(1.5)(ids, logits[None].clone())[0]
        answer = text[len(PROMPT) :]
        for id_ in set(answer):
            changed[id_] -= 0.7 + 0.4 * answer.count(id_)
        return changed

    answer = greedy_answer(penalised)
    assert answer != greedy_answer()
    assert Driver().run(admission(params), *cuts) == answer


def test_banned_ids_come_up_only_after_min_tokens() -> None:
    favourite, bias = 17, 50.0
    params = replace(GREEDY, min_tokens=3, logit_bias=((favourite, bias),))
    tokens = Driver().run(admission(params, ends=[favourite]))
    assert favourite not in tokens[:3]
    assert tokens[3:] == [favourite] * 5


def test_bans_without_min_tokens_and_ids_without_text_do_nothing() -> None:
    params = replace(GREEDY, logit_bias=((NUM_IDS, 100.0), (95, 100.0)))
    assert Driver().run(admission(params, ends=greedy_answer())) == greedy_answer()


def test_ids_without_text_never_come_up() -> None:
    hot = SamplingParams(temperature=2.0, max_tokens=25, seed=1)
    tokens = Driver().run(admission(replace(hot, logit_bias=((3, -50.0),))))
    assert max(tokens) < NUM_IDS


@pytest.mark.parametrize(
    "before",
    [
        replace(GREEDY, repetition_penalty=2.0, presence_penalty=2.0, frequency_penalty=2.0),
        replace(GREEDY, logit_bias=tuple((id_, -100.0) for id_ in range(60))),
        replace(GREEDY, min_tokens=8),
        SamplingParams(temperature=2.0, top_k=3, top_p=0.5, min_p=0.2, seed=4, max_tokens=8),
    ],
    ids=["penalties", "bias", "min-tokens", "noise"],
)
def test_a_slot_keeps_nothing_of_whom_it_held_before(before: SamplingParams) -> None:
    driver = Driver()
    driver.run(admission(before, ends=[5], prompt=PROMPT[::-1]))
    few = replace(GREEDY, logit_bias=((5, 0.0),))
    assert driver.run(admission(few), evicted=[0]) == greedy_answer()
    assert driver.run(admission(), evicted=[0]) == greedy_answer()


def assert_scores(scores: Sequence[TokenLogprobs], text: Sequence[int], count: int) -> None:
    """Check the logprobs of all of ``text`` but its first token against transformers'."""
    exact = expected_logits(text).log_softmax(-1)
    assert [score.token for score in scores] == list(text[1:])
    for score, line in zip(scores, exact, strict=False):
        assert score.logprob == pytest.approx(line[score.token].item(), abs=1e-4)
        values, ids = line.topk(count)
        assert [id_ for id_, _ in score.top] == ids.tolist()
        assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=1e-4)


SCORES = SamplingParams(max_tokens=0, prompt_logprobs=3, seed=0)


@pytest.mark.parametrize("cuts", [(), (4,), (1, 1, 7), (10,)], ids=str)
@pytest.mark.parametrize("bound", [None, 3 * 96], ids=["at once", "in pieces"])
def test_prompt_logprobs_are_transformers_however_the_prompt_is_cut(
    cuts: tuple[int, ...], bound: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bound:
        monkeypatch.setattr(head_module, "MAX_LOGITS", bound)
    driver, admitted = Driver(), [admission(SCORES)]
    scores: list[TokenLogprobs] = []
    starts = [sum(cuts[:index]) for index in range(len(cuts) + 1)]
    for start, end in zip(starts, [*starts[1:], len(PROMPT)], strict=True):
        row = Row(0, start, end - start, samples=end == len(PROMPT), scores=True)
        result = driver.submit(row, admitted=admitted)()
        admitted = []
        (part,) = result.scores
        scores += part
        assert len(result.tokens) == row.samples
    assert_scores(scores, PROMPT, 3)


class Counting:
    """A network that notes how many tokens are wanted, and of how many logits at a time."""

    def __init__(self) -> None:
        self.wanted: list[int | None] = []
        self.asked: list[int] = []

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return ours().embed(tokens, positions)

    def __call__(self, x: Tensor, kv: KVStore, wanted: Tensor | None = None) -> Tensor:
        self.wanted.append(None if wanted is None else len(wanted))
        output: Tensor = ours()(x, kv, wanted)
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        self.asked.append(len(hidden))
        return ours().logits(hidden)


def test_few_logits_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "MAX_LOGITS", 4 * 96 + 50)
    driver = Driver(network := Counting())
    row = Row(0, 0, len(PROMPT), samples=True, scores=True)
    driver.submit(row, admitted=[admission(SCORES)])()
    assert network.asked == [1, 4, 4, 2]


def test_nothing_is_wanted_but_what_logits_are_for() -> None:
    driver = Driver(network := Counting())
    chunks = [Row(0, 0, 4, samples=False), Row(0, 4, len(PROMPT) - 4, samples=True)]
    driver.submit(chunks[0], admitted=[admission(GREEDY)])()
    driver.submit(chunks[1])()
    assert network.wanted == [0, 1]


class Deaf(Counting):
    """A network that does not heed what is wanted."""

    def __call__(self, x: Tensor, kv: KVStore, wanted: Tensor | None = None) -> Tensor:
        output: Tensor = ours()(x, kv)
        return output


def test_a_network_that_returns_more_than_is_wanted_is_found_out() -> None:
    row = Row(0, 0, len(PROMPT), samples=True)
    with pytest.raises(PluginError, match=f"returns {len(PROMPT)} rows where 1 are wanted"):
        Driver(Deaf()).submit(row, admitted=[admission(GREEDY)])


def test_a_prompt_of_all_positions_is_scored() -> None:
    prompt = [2, *range(40, 79)]
    row = Row(0, 0, 40, samples=True, scores=True)
    result = Driver().submit(row, admitted=[admission(SCORES, prompt=prompt)])()
    assert_scores(result.scores[0], prompt, 3)


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    row = Row(0, 0, 1, samples=True, scores=True)
    assert Driver().submit(row, admitted=[admission(SCORES, prompt=[2])])().scores == ((),)


def test_each_row_tells_what_its_slot_asked_for() -> None:
    driver = Driver()
    texts = [PROMPT, PROMPT[:5], PROMPT[:8], PROMPT[:3]]
    asked = [
        replace(GREEDY, logprobs=2, temperature=1.5, repetition_penalty=1.9),
        GREEDY,
        replace(GREEDY, logprobs=0, prompt_logprobs=1),
        replace(GREEDY, prompt_logprobs=0),
    ]
    admitted = [
        admission(params, slot=slot, prompt=text)
        for slot, (params, text) in enumerate(zip(asked, texts, strict=True))
    ]
    rows = [
        Row(slot, 0, len(text), samples=slot != 3, scores=slot >= 2)
        for slot, text in enumerate(texts)
    ]
    result = driver.submit(*rows, admitted=admitted)()
    first, second, third = result.logprobs
    assert second is None
    assert first is not None
    assert third is not None
    for told, text, token, count in (
        (first, texts[0], result.tokens[0][0], 2),
        (third, texts[2], result.tokens[2][0], 0),
    ):
        exact = expected_logits(text)[-1].log_softmax(-1)
        assert told.token == token
        assert told.logprob == pytest.approx(exact[token].item(), abs=1e-4)
        assert [id_ for id_, _ in told.top] == exact.topk(count).indices.tolist()
    assert_scores(result.scores[0], texts[2], 1)
    assert_scores(result.scores[1], texts[3], 0)


def test_logprobs_are_from_before_anything_is_done_to_the_logits() -> None:
    params = replace(GREEDY, logprobs=0, repetition_penalty=2.0, logit_bias=((9, 40.0),))
    row = Row(0, 0, len(PROMPT), samples=True)
    (told,) = Driver().submit(row, admitted=[admission(params)])().logprobs
    exact = expected_logits(PROMPT)[-1].log_softmax(-1)
    assert told is not None
    assert told.token == 9
    assert told.logprob == pytest.approx(exact[9].item(), abs=1e-4)


def test_the_lowest_temperatures_are_greedy() -> None:
    assert Driver().run(admission(replace(GREEDY, temperature=1e-40))) == greedy_answer()


def test_a_step_without_wishes_tells_nothing() -> None:
    row = Row(0, 0, len(PROMPT), samples=True)
    result = Driver().submit(row, admitted=[admission()])()
    assert (result.logprobs, result.scores) == ((), ())


any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-40, 0.7, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 89, 90, 2**31 - 1]),
    top_p=st.sampled_from([0.2, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.7]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, -1.0]),
    logit_bias=st.lists(st.tuples(st.integers(0, 95), st.floats(-100, 100)), max_size=3).map(tuple),
    min_tokens=st.integers(0, 3),
    seed=st.integers(0, 2**63 - 1),
    logprobs=st.sampled_from([None, 0, 2]),
)
prompts = st.lists(st.integers(0, NUM_IDS - 1), min_size=1, max_size=6)


hot = [
    (SamplingParams(temperature=2.0, top_k=top_k, seed=seed), [2])
    for seed, top_k in enumerate((2, 80, 7, 80))
]


@settings(deadline=None)
@example(hot, 0)
@example(hot, 1)
@example(hot, 2)
@given(st.lists(st.tuples(any_params, prompts), min_size=2, max_size=4), st.integers(0, 2**32))
def test_a_token_depends_on_nothing_that_shares_its_step(
    wanted: list[tuple[SamplingParams, list[int]]], seed: int
) -> None:
    logits = torch.randn(4, NUM_IDS, generator=torch.Generator().manual_seed(seed)) * 3
    slots = list(range(len(wanted)))

    def choose(among: Sequence[int]) -> list[int]:
        state = SlotState(SHAPE, NUM_IDS, torch.device("cpu"))
        for slot in among:
            params, prompt = wanted[slot]
            state.admit(admission(params, slot=slot, prompt=prompt, ends=[4, 5, 6]))
        lengths = [len(wanted[slot][1]) for slot in among]
        following = NextTokens(among, max(lengths), torch.tensor(among), torch.tensor(lengths))
        tokens = Sampler(state).choose(logits[list(among)], following)
        assert state.tokens[list(among), lengths].equal(tokens)
        return tokens.tolist()

    alone = [token for slot in slots for token in choose([slot])]
    assert choose(slots) == alone
    assert choose(slots[::-1]) == alone[::-1]


positive = st.floats(0, 1, exclude_min=True)


@given(positive, positive, st.floats(0, 2))
def test_whatever_may_be_asked_for_float32_can_hold(
    top_p: float, repetition: float, temperature: float
) -> None:
    params = SamplingParams(top_p=top_p, repetition_penalty=repetition, temperature=temperature)
    for value in torch.tensor(floats_of(params))[[0, 1, 3]].tolist():
        assert 0 < value < 2.1
        assert math.isfinite(100 / value)


@pytest.mark.parametrize("name", ["top_p", "repetition_penalty", "temperature"])
def test_the_least_of_a_parameter_is_as_good_as_greedy(name: str) -> None:
    """Or, of penalties that favour what was said, takes what was said."""
    least: Any = {"temperature": 1.0, "top_p": 0.9, name: 1e-320}
    tokens = Driver().run(admission(replace(GREEDY, **least)))
    if name == "repetition_penalty":
        assert {*tokens} <= {*PROMPT}
    else:
        assert tokens == greedy_answer()
