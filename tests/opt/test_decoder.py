"""The decoder against transformers', for every variant, however a text is cut into steps."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import OPTConfig as HuggingFaceConfig
from transformers import OPTForCausalLM

from opt.ranks import run_on_ranks
from opt.reading import Case, Reading, decoder, read_cases, read_cases_in_stages, whole
from opt.variants import VARIANTS, architecture, canonical, hugging_face
from pluribus.step import Row
from pluribus_opt.config import SIZES, OPTConfig
from pluribus_opt.decoder import OPTDecoder, OPTLayer

TEXT = [2, 50, 7, 91, 33, 33, 4, 68, 12, 29, 5]
TEXTS = [TEXT, [2], [2, 11, 80, 3, 45]]
LONGER_TEXTS = [TEXT, TEXT[:6], [2, 80]]

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@cache
def theirs(variant: str) -> OPTForCausalLM:
    return hugging_face(variant)


@cache
def ours(variant: str) -> OPTDecoder:
    return decoder(architecture(theirs(variant)), canonical(theirs(variant)))


def expected(variant: str, text: list[int]) -> Tensor:
    """Return transformers' logits after every token of ``text``."""
    return _expected(variant, tuple(text))


@cache
def _expected(variant: str, text: tuple[int, ...]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = theirs(variant)(torch.tensor([text])).logits[0]
    return logits


def assert_same(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=0)


@every_variant
def test_a_prompt_computed_at_once(variant: str) -> None:
    assert_same(Reading(ours(variant), [TEXT]).step({0: len(TEXT)}), expected(variant, TEXT)[-1:])


@every_variant
def test_a_text_computed_token_by_token(variant: str) -> None:
    reading = Reading(ours(variant), [TEXT])
    logits = torch.cat([reading.step({0: 1}) for _ in TEXT])
    assert_same(logits, expected(variant, TEXT))


@every_variant
def test_a_prompt_computed_in_chunks(variant: str) -> None:
    reading = Reading(ours(variant), [TEXT])
    logits = torch.cat([reading.step({0: count}) for count in (4, 1, 6)])
    assert_same(logits, expected(variant, TEXT)[[3, 4, 10]])


@every_variant
def test_several_texts_in_one_step_are_as_each_alone(variant: str) -> None:
    logits = Reading(ours(variant), TEXTS).step({i: len(text) for i, text in enumerate(TEXTS)})
    assert_same(logits, torch.stack([expected(variant, text)[-1] for text in TEXTS]))


@every_variant
def test_several_texts_in_one_step_are_as_transformers_left_padded_batch(variant: str) -> None:
    width = max(map(len, TEXTS))
    padded = torch.tensor([[1] * (width - len(text)) + text for text in TEXTS])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in TEXTS])
    with torch.inference_mode():
        batch = theirs(variant)(padded, attention_mask=mask).logits[:, -1]
    logits = Reading(ours(variant), TEXTS).step({i: len(text) for i, text in enumerate(TEXTS)})
    assert_same(logits, batch)


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_logits_do_not_depend_on_how_texts_are_cut_into_steps(data: st.DataObject) -> None:
    reading = Reading(ours("pre-norm"), TEXTS)
    left = {slot: len(text) for slot, text in enumerate(TEXTS)}
    while left:
        slots = data.draw(st.lists(st.sampled_from(sorted(left)), min_size=1, unique=True))
        plan = {slot: data.draw(st.integers(1, left[slot])) for slot in slots}
        logits = reading.step(plan)
        ends = [(TEXTS[slot], reading.num_read[slot] - 1) for slot in plan]
        assert_same(logits, torch.stack([expected("pre-norm", text)[end] for text, end in ends]))
        left = {slot: n for slot, count in left.items() if (n := count - plan.get(slot, 0))}


@every_variant
@pytest.mark.parametrize("wanted", [[7, 2], [3, 3, 0], [10], [], None], ids=str)
def test_logits_are_those_that_are_wanted_in_their_order(
    variant: str, wanted: list[int] | None
) -> None:
    network, store = ours(variant), Reading(ours(variant), [TEXT]).store
    layout = store.begin([Row(0, 0, len(TEXT), samples=True)])
    x = network.embed(torch.tensor(TEXT), layout.positions)
    at = None if wanted is None else torch.tensor(wanted, dtype=torch.int64)
    logits = network.logits(network(x, store, at))
    assert_same(logits, expected(variant, TEXT)[list(range(len(TEXT))) if at is None else at])


def test_the_last_layer_feeds_forward_nothing_else() -> None:
    network, store = ours("pre-norm"), Reading(ours("pre-norm"), [TEXT]).store
    layout = store.begin([Row(0, 0, len(TEXT), samples=True)])
    x, num_rows = network.embed(torch.tensor(TEXT), layout.positions), list[int]()

    def note(_: nn.Module, given: tuple[Tensor]) -> None:
        num_rows.append(len(given[0]))

    layers = cast(Iterable[OPTLayer], network.layers)
    hooks = [layer.feed_forward.register_forward_pre_hook(note) for layer in layers]
    network(x, store, torch.tensor([7, 2]))
    for hook in hooks:
        hook.remove()
    assert num_rows == [*[len(TEXT)] * (len(network.layers) - 1), 2]


def test_what_is_not_wanted_is_read_all_the_same() -> None:
    network, reading = ours("pre-norm"), Reading(ours("pre-norm"), [TEXT])
    layout = reading.store.begin([Row(0, 0, 6, samples=False)])
    x = network.embed(torch.tensor(TEXT[:6]), layout.positions)
    network(x, reading.store, torch.tensor([], dtype=torch.int64))
    reading.num_read[0] = 6
    assert_same(reading.step({0: 5}), expected("pre-norm", TEXT)[-1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_close_to_single(dtype: torch.dtype) -> None:
    model = theirs("pre-norm")
    half = decoder(architecture(model), canonical(model), dtype=dtype)
    logits = Reading(half, [TEXT]).step({0: len(TEXT)})
    assert logits.dtype == dtype
    wanted = expected("pre-norm", TEXT)[-1:]
    torch.testing.assert_close(logits.float(), wanted, atol=0.05 * wanted.std().item(), rtol=0)


def test_parameters_take_no_gradient() -> None:
    assert not any(parameter.requires_grad for parameter in ours("pre-norm").parameters())


def cases() -> dict[str, Case]:
    return {
        name: Case(architecture(theirs(name)), canonical(theirs(name)), LONGER_TEXTS)
        for name in VARIANTS
    }


@pytest.fixture(scope="module")
def logits_of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return run_on_ranks(2, read_cases, cases(), tmp_path_factory.mktemp("ranks"))


@every_variant
def test_two_ranks_are_as_one(variant: str, logits_of_two_ranks: list[dict[str, Tensor]]) -> None:
    wanted = [expected(variant, text)[-2:] for text in LONGER_TEXTS]
    for logits in logits_of_two_ranks:
        assert_same(logits[variant], torch.stack(wanted, dim=1))


@pytest.fixture(scope="module")
def logits_of_two_stages(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return run_on_ranks(4, read_cases_in_stages, cases(), tmp_path_factory.mktemp("stages"))[2:]


@every_variant
def test_two_stages_of_two_ranks_are_as_one(
    variant: str, logits_of_two_stages: list[dict[str, Tensor]]
) -> None:
    wanted = [expected(variant, text)[-2:] for text in LONGER_TEXTS]
    for logits in logits_of_two_stages:
        assert_same(logits[variant], torch.stack(wanted, dim=1))


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_transformers_tensors(size: str) -> None:
    config = SIZES[size]
    with torch.device("meta"):
        network = OPTDecoder(config, whole(config.num_hidden_layers))
        reference = OPTForCausalLM(_hugging_face_config(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in canonical(reference).items()}
    assert {part.name: part.shape for part in network.parts()} == shapes
    assert sum(p.numel() for p in network.parameters()) == config.num_parameters


def _hugging_face_config(config: OPTConfig) -> HuggingFaceConfig:
    return HuggingFaceConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        ffn_dim=config.ffn_dim,
        num_attention_heads=config.num_attention_heads,
        word_embed_proj_dim=config.word_embed_proj_dim,
        do_layer_norm_before=config.do_layer_norm_before,
    )
