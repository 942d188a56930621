"""However an answer comes, and whenever it is told of, a worker has of it what there is."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from framework.front import NumberTokenizer
from pluribus import EngineError, FinishReason, Query, SamplingParams, TokenLogprobs
from pluribus.detokenizer import Detokenizer, Unread
from pluribus.engine.messages import Output, Submit
from pluribus.flight import Flight
from pluribus.reply import Reply
from pluribus.server.workers.desk import Relay
from pluribus.server.workers.messages import FromFirst, Told
from pluribus.server.workers.remote import RemoteDraft
from pluribus.stop_strings import StopStrings
from pluribus.tenants import ANONYMOUS

PROMPT = (0, 11, 12)
TOKENS = st.lists(st.integers(1000, 1020), max_size=4)
HAPPENINGS = st.lists(st.one_of(TOKENS, st.sampled_from(["restart", "tell"])), max_size=20)
DECODER = msgspec.msgpack.Decoder(FromFirst)


def told(token: int) -> TokenLogprobs:
    return TokenLogprobs(token, -1.0, ((token, -1.0),))


def flight_of(params: SamplingParams) -> tuple[Flight, RemoteDraft]:
    """Return an answer in the first process, and a worker's copy that knows nothing yet."""
    query = Query("", PROMPT, params)
    text = Detokenizer(cast(Any, NumberTokenizer()), PROMPT, StopStrings(params.stop))
    submit = Submit(1, PROMPT, params, "", 1.0, "")
    flight = Flight(
        query=query, tenant=ANONYMOUS, submit=submit, detokenizer=text if params.stop else Unread()
    )
    copy = RemoteDraft(id=5, send=lambda _: None, query=query, detokenizer=text.fresh())
    return flight, copy


def output(tokens: list[int], reason: FinishReason | None, *, is_first: bool) -> Output:
    scores = tuple(map(told, PROMPT[1:])) if is_first else ()
    return Output(1, tuple(tokens), tuple(map(told, tokens)), scores, reason, None)


@given(HAPPENINGS, st.sampled_from([(), ("07",), ("7 10", "1012")]), st.booleans())
def test_a_copy_becomes_what_the_answer_is(
    happenings: list[Any], stops: tuple[str, ...], fails: bool
) -> None:
    params = SamplingParams(max_tokens=90, stop=stops, logprobs=1, prompt_logprobs=1)
    flight, copy = flight_of(params)
    relay = Relay(5, Reply(flight, lambda: None), lambda _: None)

    def tell() -> None:
        message = DECODER.decode(msgspec.msgpack.encode(Told((relay.take(),))))
        assert isinstance(message, Told)
        [gain] = message.gains
        copy.take(gain)

    for happening in happenings:
        if happening == "tell":
            tell()
        elif flight.is_over:
            break
        elif happening == "restart":
            flight.restart()
        else:
            flight.extend(output(happening, None, is_first=not flight.prompt_logprobs))
    if not flight.is_over:
        if fails:
            flight.fail(EngineError("gone"))
        else:
            is_first = not flight.prompt_logprobs
            flight.extend(output([1019], FinishReason.LENGTH, is_first=is_first))
    if not copy.is_over:
        tell()
    assert copy.is_over
    assert copy.finish_reason is flight.finish_reason
    assert str(copy.error) == str(flight.error)
    if flight.error is None:
        assert copy.answer() == flight.answer()
        text = flight.detokenizer.text if stops else NumberTokenizer().decode(copy.tokens)
        assert copy.detokenizer.text == text
