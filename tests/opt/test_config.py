"""The architecture, by size and from config.json."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import OPTConfig as HuggingFaceConfig
from transformers.activations import ACT2FN

from pluribus import CheckpointError
from pluribus_opt.config import ACTIVATIONS, SIZES, OPTConfig

PARAMETERS = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "opt-175b": 174_604_468_224,
}


def read(**changes: Any) -> OPTConfig:
    """Read what transformers writes for a small OPT, with some keys changed."""
    small = HuggingFaceConfig(
        vocab_size=99, hidden_size=16, num_attention_heads=4, num_hidden_layers=2, ffn_dim=32
    )
    return OPTConfig.from_json({**small.to_dict(), **changes}, "model/config.json")


def test_all_nine_sizes_have_the_published_parameter_counts() -> None:
    assert {name: config.num_parameters for name, config in SIZES.items()} == PARAMETERS


def test_what_transformers_writes_is_read() -> None:
    assert read(dtype="float16") == OPTConfig(
        vocab_size=99,
        hidden_size=16,
        num_hidden_layers=2,
        ffn_dim=32,
        num_attention_heads=4,
        max_position_embeddings=2048,
        word_embed_proj_dim=16,
    )


def test_absent_keys_mean_what_they_mean_to_transformers() -> None:
    theirs = OPTConfig.from_json(HuggingFaceConfig().to_dict(), "theirs")
    assert OPTConfig.from_json({"model_type": "opt"}, "empty") == theirs


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"_remove_final_layer_norm": True}, "remove_final_layer_norm", True),
        ({"word_embed_proj_dim": None}, "word_embed_proj_dim", 16),
        ({"word_embed_proj_dim": 8}, "word_embed_proj_dim", 8),
        ({"eos_token_id": [2, 7]}, "eos_token_ids", (2, 7)),
        ({"eos_token_id": None}, "eos_token_ids", ()),
        ({"pad_token_id": None}, "pad_token_id", 1),
        ({"bos_token_id": 0}, "bos_token_id", 0),
        ({"dtype": None, "torch_dtype": "float16"}, "dtype", "float16"),
        ({"dtype": "torch.bfloat16", "torch_dtype": "float16"}, "dtype", "bfloat16"),
        ({"dtype": None}, "dtype", "float32"),
        ({"activation_dropout": 0.0, "prefix": "</s>"}, "vocab_size", 99),
    ],
    ids=str,
)
def test_a_key_is_read(changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(read(**changes), field) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"model_type must be 'opt', got 'gpt2'"),
        ({"model_type": None}, r"model_type must be 'opt', got None"),
        ({"hidden_size": 18}, r"hidden_size \(18\) .* num_attention_heads \(4\)"),
        ({"hidden_size": "16"}, r"hidden_size must be a whole number, got '16'"),
        ({"ffn_dim": True}, r"ffn_dim must be a whole number, got True"),
        ({"vocab_size": None}, r"vocab_size must be a whole number, got None"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be at least 1, got 0"),
        ({"word_embed_proj_dim": 0}, r"word_embed_proj_dim must be at least 1, got 0"),
        ({"enable_bias": "no"}, r"enable_bias must be true or false, got 'no'"),
        ({"_remove_final_layer_norm": 1}, r"_remove_final_layer_norm must be true or false"),
        ({"activation_function": "swiglu"}, r"activation_function .* relu, gelu.*'swiglu'"),
        ({"activation_function": ["relu"]}, r"activation_function must be one of"),
        ({"dtype": "int8"}, r"dtype must be one of float32, float16, bfloat16; got 'int8'"),
        ({"pad_token_id": 99}, r"pad_token_id must be from 0 to vocab_size - 1 = 98, got 99"),
        ({"eos_token_id": [2, "x"]}, r"eos_token_id must be .*'x'"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused_by_file_and_key(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"^model/config.json: {message}"):
        read(**changes)


def test_every_activation_is_one_of_transformers() -> None:
    assert set(ACTIVATIONS) <= set(ACT2FN)
