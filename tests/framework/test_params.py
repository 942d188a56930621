"""What a sampling parameter may be: the wrong type or value is refused by the field's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pluribus import RequestError, SamplingParams
from pluribus.generation import MAX_IDS

WHOLE = ("max_tokens", "top_k", "seed", "min_tokens", "logprobs", "prompt_logprobs")
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
OPTIONAL = {"seed", "logprobs", "prompt_logprobs"}


def refusal(**params: Any) -> str:
    """Return what refuses these parameters, after making sure that it names the field."""
    with pytest.raises(RequestError) as caught:
        SamplingParams(**params)
    assert [caught.value.param] == list(params)
    return str(caught.value)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [2.5, 2.0, True, "2", None, [2], np.int64(2)], ids=repr)
def test_a_whole_number_is_nothing_else(name: str, value: Any) -> None:
    given: dict[str, Any] = {name: value}
    if value is None and name in OPTIONAL:
        assert getattr(SamplingParams(**given), name) is None
    else:
        assert refusal(**given).startswith(f"{name} must be a whole number")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", True, None, [1.0], 1j, np.float64(1)], ids=repr)
def test_a_number_is_nothing_else(name: str, value: object) -> None:
    assert refusal(**{name: value}) == f"{name} must be a number, got {value!r}"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400], ids=str)
def test_a_number_is_finite(name: str, value: float) -> None:
    assert refusal(**{name: value}).startswith(f"{name} must be ")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("ignore_eos", 1, "True or False"),
        ("ignore_eos", None, "True or False"),
        ("stop", "abc", "a tuple of texts"),
        ("stop", ["a", 5], "a tuple of texts"),
        ("stop", None, "a tuple of texts"),
        ("stop", ("a", ""), "texts of at least one character"),
        ("stop_token_ids", 5, "a tuple of whole numbers"),
        ("stop_token_ids", [True], "a tuple of whole numbers"),
        ("stop_token_ids", {5}, "a tuple of whole numbers"),
        ("logit_bias", 5, "a tuple of (id, number) pairs"),
        ("logit_bias", [5], "a tuple of (id, number) pairs"),
        ("logit_bias", [(1, 2, 3)], "a tuple of (id, number) pairs"),
        ("logit_bias", {"5": 1.0}, "a tuple of (id, number) pairs"),
        ("logit_bias", {5: "1"}, "a tuple of (id, number) pairs"),
    ],
)
def test_collections_hold_what_they_should(name: str, value: object, rule: str) -> None:
    assert refusal(**{name: value}) == f"{name} must be {rule}, got {value!r}"


def test_a_bias_out_of_range_names_its_id() -> None:
    assert refusal(logit_bias={7: 200}) == "logit_bias.7 must be from -100 to 100, got 200"


@pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
def test_no_request_makes_the_table_of_biases_as_wide_as_it_likes(name: str) -> None:
    def ids(count: int) -> Any:
        return dict.fromkeys(range(count), 1.0) if name == "logit_bias" else [*range(count)]

    assert refusal(**{name: ids(MAX_IDS + 1)}) == f"{name} may name 300 ids, got 301"
    assert len(getattr(SamplingParams(**{name: ids(MAX_IDS)}), name)) == MAX_IDS


def test_lists_and_mappings_are_taken_for_tuples() -> None:
    given: dict[str, Any] = {"stop": ["a"], "stop_token_ids": [5], "logit_bias": {9: 1, 5: -1.0}}
    params = SamplingParams(**given)
    assert (params.stop, params.stop_token_ids) == (("a",), (5,))
    assert params.logit_bias == ((5, -1.0), (9, 1))
    assert hash(params) == hash(SamplingParams(**given))
    given["logit_bias"] = [[9, 1], [5, -1]]
    assert SamplingParams(**given) == params
