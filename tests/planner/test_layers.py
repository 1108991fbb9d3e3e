"""What a configuration says of its layers, in all the words that published models use for it."""

from __future__ import annotations

from typing import Any

import pytest

from gpuserved.core.planner.architecture import LAYERS_MAX, layers_of
from gpuserved.core.planner.model import LayerKind, Layers

FULL, SLIDING, MLA, STATE = LayerKind.FULL, LayerKind.SLIDING, LayerKind.MLA, LayerKind.STATE
PLAIN: dict[str, Any] = {
    "num_hidden_layers": 12, "num_attention_heads": 8, "hidden_size": 512, "num_key_value_heads": 2,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "num_hidden_layers": 12, "hidden_size": 512, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_heads": 8, "mamba_d_head": 64,
    "mamba_n_groups": 2,
}  # fmt: skip
MAMBA_BYTES = 4 * ((512 + 2 * 2 * 16) * 3 + 512 * 16)
"""Convolution over 512 channels and two groups of keys and queries, three tokens of it; recurrence of 512 by 16."""


def groups(text: dict[str, Any], kind: str = "llama") -> tuple[Layers, ...]:
    return layers_of(text, kind)[0]


def full(count: int) -> Layers:
    return Layers(FULL, count, 2, 64, 64)


def sliding(count: int, window: int = 128) -> Layers:
    return Layers(SLIDING, count, 2, 64, 64, window=window)


def state(count: int, size: int = MAMBA_BYTES) -> Layers:
    return Layers(STATE, count, state_bytes=size)


def renamed(text: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in text.items()}


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("num_hidden_layers", "n_layer"), ("num_hidden_layers", "n_layers"), ("num_hidden_layers", "num_layers"),
        ("num_attention_heads", "n_head"), ("num_attention_heads", "n_heads"), ("num_attention_heads", "num_heads"),
        ("hidden_size", "n_embd"), ("hidden_size", "d_model"),
        ("num_key_value_heads", "num_kv_heads"), ("num_key_value_heads", "n_head_kv"), ("num_key_value_heads", "kv_n_heads"),
    ],
)  # fmt: skip
def test_the_older_names_of_the_keys(key: str, other: str) -> None:
    assert groups(renamed(PLAIN, **{key: other})) == groups(PLAIN) == (full(12),)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"num_key_value_heads": None}, (8, 64, 64)),
        ({"head_dim": 80}, (2, 80, 80)),
        ({"attention_head_dim": 96}, (2, 96, 96)),
        ({"v_head_dim": 32}, (2, 64, 32)),
        ({"v_head_dim": 1}, (2, 64, 1)),
        ({"v_head_dim": 0}, (2, 64, 64)),
        ({"v_head_dim": "wide"}, (2, 64, 64)),
        ({"multi_query": True}, (1, 64, 64)),
        ({"multi_query": False}, (2, 64, 64)),
        ({"multi_query": True, "new_decoder_architecture": True}, (2, 64, 64)),
        ({"multi_query_attention": True, "multi_query_group_num": 4}, (4, 64, 64)),
        ({"multi_query_attention": True}, (1, 64, 64)),
        ({"multi_query_attention": False, "multi_query_group_num": 4}, (2, 64, 64)),
    ],
)
def test_heads_and_their_sizes(more: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert groups(PLAIN | more) == (Layers(FULL, 12, *expected),)


def test_compressed_attention_keeps_one_vector() -> None:
    deepseek = PLAIN | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert groups(deepseek) == (Layers(MLA, 12, 1, 576),)
    # DeepSeek-V3.2: 128 bytes in 8 bits and a scale of four beside them.
    assert groups(deepseek | {"index_topk": 2048}) == (Layers(MLA, 12, 1, 576 + 132),)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("full_attention", (full(12),)), ("attention", (full(12),)), ("global_attention", (full(12),)),
        ("sliding_attention", (full(6), sliding(6))), ("chunked_attention", (full(6), sliding(6))),
        ("local_attention", (full(6), sliding(6))), ("linear_attention", (full(6), state(6))), ("mamba", (full(6), state(6))),
        ("mamba2", (full(6), state(6))), ("hybrid", (full(12), state(6))), ("mlp", (full(6),)), ("moe", (full(6),)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["layer_types", "layers_block_type"])
def test_layers_that_are_named_one_by_one(key: str, word: str, expected: tuple[Layers, ...]) -> None:
    named = PLAIN | MAMBA | {"sliding_window": 128, key: [word, "full_attention"] * 6}
    assert layers_of(named, "llama") == (expected, ())
    assert groups(named | {key: [word, "full_attention"] * 20}) == expected, "more than there are"
    assert groups(named | {key: [word] * 11, "sliding_window": None}) == (full(12),), "fewer say nothing"


def test_a_word_that_nobody_knows_is_full_attention_and_noted() -> None:
    found, notes = layers_of(PLAIN | {"layer_types": ["zeta", "alpha", "full_attention"] * 4}, "llama")
    assert found == (full(12),)
    assert notes == ("layer type alpha, zeta is taken for full attention",)


@pytest.mark.parametrize(
    ("kind", "every"),
    [("gemma2", 2), ("gemma3_text", 6), ("gemma3", 6), ("cohere2", 4), ("gpt_oss", 2), ("llama4_text", 4), ("llama4", 4)],
)  # fmt: skip
def test_one_layer_in_some_attends_to_everything(kind: str, every: int) -> None:
    whole = 12 // every
    assert groups(PLAIN | {"sliding_window": 128}, kind) == (full(whole), sliding(12 - whole))
    assert groups(PLAIN | {"attention_chunk_size": 96}, kind) == (full(whole), sliding(12 - whole, 96))
    assert groups(PLAIN | {"sliding_window": 128, "sliding_window_pattern": 3}, kind) == (full(4), sliding(8))
    assert groups(PLAIN, kind) == (full(12),), "without a window"
    # The last of each round is the full one: of seven layers in rounds of three, two are.
    seven = PLAIN | {"num_hidden_layers": 7, "sliding_window": 128, "sliding_window_pattern": 3}
    assert groups(seven, kind) == (full(2), sliding(5))


def test_a_window_that_is_not_used_or_not_a_number() -> None:
    windowed = PLAIN | {"sliding_window": 128}
    assert groups(windowed) == (sliding(12),)
    assert groups(windowed | {"use_sliding_window": False}) == (full(12),)
    assert groups(windowed | {"use_sliding_window": True}) == (sliding(12),)
    found, notes = layers_of(PLAIN | {"sliding_window": "long"}, "llama")
    assert (found, notes) == ((full(12),), ("no window is given: full attention is assumed",))


@pytest.mark.parametrize(
    ("more", "kind", "expected"),
    [
        ({"hybrid_override_pattern": "M*-MM*-MM"}, "nemotron_h", (full(2), state(5))),
        ({}, "mamba", (state(12),)),
        ({}, "mamba2", (state(12),)),
        ({}, "falcon_h1", (full(12), state(12))),
        ({"attn_layer_indices": [1, 5, 9]}, "bamba", (full(3), state(9))),
        ({"attn_layer_period": 5, "attn_layer_offset": 2}, "jamba", (full(2), state(10))),
        ({"attn_layer_period": 5}, "jamba", (full(3), state(9))),
        ({"full_attention_interval": 6}, "qwen3_next", (full(2), state(10))),
        ({}, "qwen3_next", (full(3), state(9))),
    ],
)
def test_which_layers_keep_a_state(more: dict[str, Any], kind: str, expected: tuple[Layers, ...]) -> None:
    assert groups(PLAIN | MAMBA | more, kind) == expected


def test_the_last_layer_of_a_round_attends() -> None:
    five = PLAIN | MAMBA | {"num_hidden_layers": 5}
    assert groups(five, "qwen3_next") == (full(1), state(4))
    assert groups(five | {"num_hidden_layers": 3}, "qwen3_next") == (state(3),)


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("mamba_d_state", "ssm_state_size"), ("mamba_d_state", "state_size"), ("mamba_d_conv", "conv_kernel"),
        ("mamba_n_heads", "mamba_num_heads"), ("mamba_n_heads", "num_heads"), ("mamba_d_head", "mamba_head_dim"),
        ("mamba_d_head", "head_dim"), ("mamba_n_groups", "n_groups"), ("hidden_size", "d_model"),
    ],
)  # fmt: skip
def test_a_state_under_its_other_names(key: str, other: str) -> None:
    assert groups(renamed(MAMBA, **{key: other}), "mamba2") == (state(12),)


@pytest.mark.parametrize(
    ("more", "inner"),
    [
        ({"mamba_d_head": 32}, 256),
        ({"mamba_n_heads": None}, 1024),  # twice the hidden size where nothing is said
        ({"mamba_n_heads": None, "mamba_expand": 3}, 1536),
        ({"mamba_n_heads": None, "expand": 4}, 2048),
        ({"mamba_n_heads": None, "mamba_d_ssm": 768}, 768),
        ({"mamba_d_ssm": 768}, 512),  # heads say it first
        ({"mamba_d_head": None}, 1024),
    ],
)
def test_how_wide_a_state_is(more: dict[str, Any], inner: int) -> None:
    assert groups(MAMBA | more, "mamba2") == (state(12, 4 * ((inner + 64) * 3 + inner * 16)),)


def test_the_state_of_a_gated_delta_net() -> None:
    """Qwen3-Next: a convolution over queries, keys and values, and a matrix of 128 by 128 for each of 32 heads."""
    net = PLAIN | {
        "linear_num_value_heads": 32, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_key_head_dim": 64,
    }  # fmt: skip
    recurrence = 32 * 128 * 64
    assert groups(net, "qwen3_next")[1] == state(9, 4 * ((2 * 1024 + 4096) * 3 + recurrence))
    assert groups(net | {"linear_conv_kernel_dim": 6}, "qwen3_next")[1] == state(
        9, 4 * ((2 * 1024 + 4096) * 5 + recurrence)
    )


@pytest.mark.parametrize("count", [0, -1, LAYERS_MAX + 1])
def test_a_number_of_layers_that_makes_no_sense(count: int) -> None:
    with pytest.raises(ValueError, match="num_hidden_layers"):
        layers_of(PLAIN | {"num_hidden_layers": count}, "llama")


@pytest.mark.parametrize("count", [1, LAYERS_MAX])
def test_any_other_number_of_layers(count: int) -> None:
    assert groups(PLAIN | {"num_hidden_layers": count}) == (full(count),)


@pytest.mark.parametrize(
    ("text", "kind", "missing"),
    [
        ({}, "llama", "num_hidden_layers"),
        ({"num_hidden_layers": True}, "llama", "num_hidden_layers"),
        ({"num_hidden_layers": 2}, "llama", "num_attention_heads"),
        ({"num_hidden_layers": 2, "num_attention_heads": 2}, "llama", "hidden_size"),
        ({"num_hidden_layers": 2, "kv_lora_rank": 8}, "deepseek_v3", "qk_rope_head_dim"),
        ({"num_hidden_layers": 2}, "mamba", "mamba_d_state"),
        ({"num_hidden_layers": 2, "mamba_d_state": 2}, "mamba", "mamba_d_conv"),
    ],
)
def test_what_is_missing_is_named(text: dict[str, Any], kind: str, missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        layers_of(text, kind)
