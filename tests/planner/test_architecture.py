from __future__ import annotations

from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.planner import architecture, kv
from gpuserved.core.planner.architecture import Files
from gpuserved.core.planner.kv import KvShape
from gpuserved.core.planner.model import LayerKind, ModelFacts, Unknown
from gpuserved.core.planner.options import divides


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (configs.LLAMA_8B, 16_060_522_496),
        (configs.MISTRAL_7B, 14_483_464_192),
        (configs.QWEN3_30B_A3B, 61_064_245_248),
        (configs.LLAMA_70B, 141_107_412_992),
        (configs.QWEN3_32B, 65_524_246_528),
    ],
)
def test_counted_parameters_are_the_published_sizes(config: dict[str, Any], published: int) -> None:
    found = configs.facts(config)
    assert (found.weights.total_bytes, found.weights.source) == (published, "config")


@pytest.mark.parametrize(
    ("config", "size", "expected"),
    [
        (configs.LLAMA_8B, 1, 128 * 1024),
        (configs.LLAMA_8B, 8, 16 * 1024),
        (configs.LLAMA_8B, 16, 16 * 1024),  # eight KV heads on sixteen GPUs: copies
        (configs.QWEN3_30B_A3B, 1, 96 * 1024),
        (configs.DEEPSEEK_V3, 1, 70_272),
        (configs.DEEPSEEK_V3, 8, 70_272),  # MLA is not divided
        (configs.MISTRAL_7B, 1, 128 * 1024),
    ],
)
def test_bytes_of_a_token(config: dict[str, Any], size: int, expected: int) -> None:
    facts = configs.facts(config, 688_586_727_753)
    assert kv.token_bytes(facts, KvShape(size)) == expected
    assert kv.token_bytes(facts, KvShape(size, value_bytes=1)) == expected // 2


def kinds(config: dict[str, Any]) -> list[tuple[str, int]]:
    return [(group.kind.value, group.count) for group in configs.facts(config, 10**9).layers]


def test_layer_types() -> None:
    assert kinds(configs.GPT_OSS_20B) == [("full", 12), ("sliding", 12)]
    assert kinds(configs.MISTRAL_7B) == [("sliding", 32)]
    gemma = configs.llama(
        model_type="gemma3_text", num_hidden_layers=26, sliding_window=512, sliding_window_pattern=6
    )
    assert kinds({"model_type": "gemma3", "text_config": gemma}) == [("full", 4), ("sliding", 22)]
    assert kinds(configs.llama(model_type="qwen2", sliding_window=4096, use_sliding_window=False)) == [
        ("full", 32)
    ]
    jamba = configs.llama(
        model_type="jamba", attn_layer_period=8, attn_layer_offset=4, mamba_d_state=16, mamba_d_conv=4
    )
    assert kinds(jamba) == [("full", 4), ("state", 28)]
    following = configs.llama(
        model_type="qwen3_next", num_hidden_layers=48, full_attention_interval=4, linear_num_value_heads=32,
        linear_num_key_heads=16, linear_key_head_dim=128, linear_value_head_dim=128,
    )  # fmt: skip
    assert kinds(following) == [("full", 12), ("state", 36)]
    odd = configs.facts(configs.llama(layer_types=["full_attention"] * 31 + ["novel"]), 10**9)
    assert "novel is taken for full attention" in odd.notes[0]
    assert [group.count for group in odd.layers] == [32]


def test_multi_query_is_one_head() -> None:
    falcon = {
        "model_type": "falcon", "architectures": ["FalconForCausalLM"], "num_hidden_layers": 32, "num_attention_heads": 71,
        "hidden_size": 4544, "vocab_size": 65024, "multi_query": True, "new_decoder_architecture": False,
    }  # fmt: skip
    assert kv.token_bytes(configs.facts(falcon, 14 * 10**9), KvShape()) == 2 * 32 * 64 * 2


def test_windows_and_states_cost_a_request_less_than_full_attention() -> None:
    shape = KvShape(in_flight_tokens=2048)
    windowed = configs.facts(configs.MISTRAL_7B, 10**9)
    full = configs.facts(configs.MISTRAL_7B | {"sliding_window": None}, 10**9)
    block = 32 * 16 * 4096
    short = kv.request_bytes(full, shape, 4096) + block  # a window may begin in the midst of a block
    assert kv.request_bytes(windowed, shape, 4096) == short
    assert kv.request_bytes(windowed, shape, 32768) < kv.request_bytes(full, shape, 32768) / 4
    oss = configs.facts(configs.GPT_OSS_20B, 10**9)
    each = 12 * 2 * 8 * 64 * 2 * 16  # one group of twelve layers, one block
    assert kv.request_bytes(oss, shape, 16 * 1024) == each * (1024 + 137)
    state = configs.facts(
        configs.llama(model_type="mamba2", state_size=128, conv_kernel=4, n_groups=1), 10**9
    )
    assert kv.request_bytes(state, shape, 100) == kv.request_bytes(state, shape, 100_000) > 0


def test_quantised_and_tied_checkpoints_count_what_is_loaded() -> None:
    fp8 = configs.facts(configs.LLAMA_8B | {"quantization_config": {"quant_method": "fp8"}}, 9_000_000_000)
    assert (fp8.weights.total_bytes, fp8.quantization) == (9_000_000_000, "fp8")
    tied = configs.facts(configs.QWEN3_06B, 1_503_264_768, head=True)
    assert tied.weights.total_bytes == 1_503_264_768 - 151_936 * 1024 * 2
    single = configs.facts(configs.LLAMA_8B | {"torch_dtype": "float32"}, 32_121_044_992)
    assert single.weights.total_bytes == 16_060_522_496, "loaded as 16-bit numbers"
    whole = architecture.read(
        configs.LLAMA_8B | {"torch_dtype": "float32"}, Files(32_121_044_992, "index"), "a", dtype="float32"
    )
    assert isinstance(whole, ModelFacts)
    assert whole.weights.total_bytes == 32_121_044_992


def test_experts_and_replicated_parts_are_known() -> None:
    deepseek = configs.facts(configs.DEEPSEEK_V3, 688_586_727_753)
    assert deepseek.mla
    assert deepseek.layers[0].kind is LayerKind.MLA
    assert 0.95 < deepseek.weights.expert_bytes / deepseek.weights.total_bytes < 0.98
    assert 0 < deepseek.weights.replicated_bytes < 3 * configs.GIB


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (configs.llama("NovelForCausalLM", model_type="novel"), "NovelForCausalLM: model type 'novel'"),
        ({"model_type": "llama", "hidden_size": 4096}, "lacks or misstates 'num_hidden_layers'"),
        (configs.llama(num_attention_heads="many"), "num_attention_heads"),
        ({}, "model type ''"),
    ],
)
def test_what_is_not_understood_is_unknown(config: dict[str, Any], says: str) -> None:
    found = architecture.read(config, Files(10**9, "index"), "a")
    assert isinstance(found, Unknown)
    assert found.code == "unknown_architecture"
    assert says in found.message


def test_weights_that_are_not_there_and_cannot_be_counted_are_unknown() -> None:
    found = architecture.read(configs.LLAMA_8B | {"quantization_config": {"quant_method": "awq"}}, None, "a")
    assert isinstance(found, Unknown)
    assert "no weights" in found.message


def test_the_longest_context() -> None:
    assert configs.facts(configs.LLAMA_8B).max_length == 131_072
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert configs.facts(configs.llama(rope_scaling=yarn)).max_length == 131_072
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    assert configs.facts(configs.llama(rope_scaling=llama3)).max_length == 131_072


@pytest.mark.parametrize(
    ("config", "size", "divisible"),
    [
        (configs.LLAMA_8B, 3, False),
        (configs.LLAMA_8B, 8, True),
        (configs.LLAMA_8B, 16, True),
        (configs.LLAMA_70B, 6, False),
        (configs.DEEPSEEK_V3, 16, True),
        (configs.DEEPSEEK_V3, 32, False),  # 2048 / 128 blocks are sixteen
        (configs.GPT_OSS_20B, 8, True),
        (configs.llama(num_key_value_heads=6, num_attention_heads=24), 4, False),
    ],
)
def test_which_sizes_divide(config: dict[str, Any], size: int, divisible: bool) -> None:
    assert (divides(configs.facts(config, 10**9), size) is None) == divisible
