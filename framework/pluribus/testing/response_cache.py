"""What every response cache must do."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from types import UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import hypothesis
from hypothesis import assume, given, reject
from hypothesis import strategies as st

from pluribus.errors import RequestError
from pluribus.generation import FinishReason, SamplingParams
from pluribus.interfaces import Answer, Query, ResponseCache

Data = TypeVar("Data", Query, SamplingParams)

ENOUGH = 8
"""How often an answer is put, so that a cache that collects several has enough."""

GREEDY = SamplingParams(temperature=0)
SAMPLED = SamplingParams()

queries = st.builds(
    Query,
    model=st.sampled_from(["opt", "other"]),
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    params=st.sampled_from([GREEDY, SAMPLED]),
)
answers = st.builds(
    Answer,
    tokens=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    finish_reason=st.sampled_from(FinishReason),
)


@st.composite
def changed_queries(draw: st.DrawFn, query: Query) -> Query:
    """Return a query that differs in one thing.

    Fields are found by themselves: a new sampling parameter is covered the day it appears.
    """
    return _with_one_change(draw, query)


def _with_one_change(draw: st.DrawFn, data: Data) -> Data:
    name = draw(st.sampled_from([field.name for field in fields(data)]))
    value = getattr(data, name)
    changed: Any
    if isinstance(value, SamplingParams):
        changed = _with_one_change(draw, value)
    else:
        changed = draw(_values_of(get_type_hints(type(data))[name]))
    assume(changed != value)
    try:
        return replace(data, **{name: changed})
    except RequestError:
        reject()


def _values_of(hint: Any) -> st.SearchStrategy[Any]:
    if isinstance(hint, UnionType):
        return st.one_of([_values_of(choice) for choice in get_args(hint)])
    if hint is int:
        return st.integers(0, 9)
    if hint is float:
        return st.floats(0, 1)
    return st.from_type(hint)


class ResponseCacheContract(ABC):
    """Subclass in a response cache's tests and return it from ``make``.

    Attributes:
        settings: for hypothesis.
    """

    settings: ClassVar[hypothesis.settings] = hypothesis.settings(deadline=None)

    @abstractmethod
    def make(self) -> ResponseCache:
        """Return an empty cache."""

    def test_nothing_is_known_at_first(self) -> None:
        assert self.make().get(Query("opt", (2,), GREEDY)) is None

    def test_queries_that_differ_in_one_thing_share_no_answer(self) -> None:
        @self.settings
        @given(st.data(), queries, answers)
        def check(data: st.DataObject, query: Query, answer: Answer) -> None:
            cache = self.make()
            for _ in range(ENOUGH):
                cache.put(query, answer)
            assert cache.get(data.draw(changed_queries(query))) is None

        check()

    def test_an_answer_was_put_for_that_very_query(self) -> None:
        @self.settings
        @given(st.lists(st.tuples(queries, answers)))
        def check(puts: list[tuple[Query, Answer]]) -> None:
            cache = self.make()
            put = defaultdict(set)
            for query, answer in puts:
                put[query].add(answer)
                cache.put(query, answer)
                assert cache.get(query) in {None, *put[query]}

        check()

    def test_pinning_makes_nothing_up(self) -> None:
        cache = self.make()
        cache.pin(query := Query("opt", (2,), SAMPLED))
        assert cache.get(query) is None

    def test_threads_do_not_get_in_each_others_way(self) -> None:
        cache = self.make()
        texts = [(_Interrupting(number),) for number in range(100)]

        def use(first: int) -> None:
            for text in texts[first:] + texts[:first]:
                query = Query("opt", text, GREEDY)
                cache.put(query, Answer(text, FinishReason.STOP))
                found = cache.get(query)
                assert found is None or found.tokens == text

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(use, range(40)))


class _Interrupting(int):
    """A token id that lets other threads in whenever a query that holds it is looked up."""

    def __hash__(self) -> int:
        time.sleep(0)
        return super().__hash__()
