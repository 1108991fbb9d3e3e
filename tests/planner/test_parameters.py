"""Parameters by the configuration, against the numbers that the models' authors publish."""

from __future__ import annotations

from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.planner import weights
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.planner.weights import Count

DEEPSEEK_V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2", "num_hidden_layers": 27, "num_attention_heads": 16, "hidden_size": 2048,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
GEMMA2_2B = configs.llama(
    model_type="gemma2", num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4, head_dim=256, hidden_size=2304,
    intermediate_size=9216, vocab_size=256000, tie_word_embeddings=None,
)  # fmt: skip
del GEMMA2_2B["tie_word_embeddings"]
MIXTRAL_8X7B = configs.llama(model_type="mixtral", num_local_experts=8, vocab_size=32000)
QWEN15_MOE = configs.llama(
    model_type="qwen2_moe", num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16, hidden_size=2048,
    intermediate_size=5632, moe_intermediate_size=1408, shared_expert_intermediate_size=5632, num_experts=60, vocab_size=151936,
)  # fmt: skip
QWEN25_7B = configs.llama(
    model_type="qwen2", num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, hidden_size=3584,
    intermediate_size=18944, vocab_size=152064,
)  # fmt: skip


def counted(config: dict[str, Any], **more: Any) -> Count:
    found = weights.count(config | more, configs.facts(config | more))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (QWEN25_7B, 7_615_616_512),
        (GEMMA2_2B, 2_614_341_888),
        (MIXTRAL_8X7B, 46_702_792_704),
        (QWEN15_MOE, 14_315_784_192),
        (DEEPSEEK_V2_LITE, 15_706_484_224),
        (configs.QWEN3_06B, 596_049_920),
    ],
)
def test_the_total_is_the_published_one(config: dict[str, Any], published: int) -> None:
    assert counted(config).total == published


def test_what_every_gpu_holds_whole_and_what_experts_are() -> None:
    assert counted(configs.LLAMA_8B) == Count(8_030_261_248, 32 * 2 * 4096 + 4096, 0)
    lite = counted(DEEPSEEK_V2_LITE)
    down = 2048 * (512 + 64) + 512
    assert lite.replicated == 27 * (2 * 2048 + down) + 2048 + 26 * 2048 * 64
    assert lite.expert == 26 * 64 * 3 * 2048 * 1408
    assert counted(MIXTRAL_8X7B).expert == 32 * 8 * 3 * 4096 * 14336
    norms = 2 * 128  # of queries and keys
    assert counted(configs.QWEN3_06B).replicated == 28 * (2 * 1024 + norms) + 1024


def test_a_compressed_query_is_a_part_of_what_is_whole() -> None:
    rank, full = 96, counted(DEEPSEEK_V2_LITE)
    low = counted(DEEPSEEK_V2_LITE, q_lora_rank=rank)
    assert low.replicated - full.replicated == 27 * (2048 * rank + rank)
    assert low.total - full.total == 27 * (2048 * rank + rank + rank * 16 * 192 - 2048 * 16 * 192)


@pytest.mark.parametrize(
    ("more", "sparse"),
    [
        ({"decoder_sparse_step": 1}, 24), ({"decoder_sparse_step": 2}, 12), ({"decoder_sparse_step": 5}, 4),
        ({"mlp_only_layers": [0, 23, 99]}, 22), ({"decoder_sparse_step": 2, "mlp_only_layers": [0, 1]}, 11),
        ({"first_k_dense_replace": 3}, 21), ({"first_k_dense_replace": 0}, 24), ({"first_k_dense_replace": 99}, 0),
    ],
)  # fmt: skip
def test_which_layers_have_experts(more: dict[str, Any], sparse: int) -> None:
    found = counted(QWEN15_MOE, **more)
    assert found.expert == sparse * 60 * 3 * 2048 * 1408
    dense = 3 * 2048 * 5632
    sparse_only = 60 * 3 * 2048 * 1408 + 60 * 2048 + 3 * 2048 * 5632 + 2048
    assert found.total - counted(QWEN15_MOE).total == (24 - sparse) * (dense - sparse_only)


def test_experts_that_all_tokens_share() -> None:
    none = counted(MIXTRAL_8X7B).total
    assert counted(MIXTRAL_8X7B, n_shared_experts=2).total - none == 32 * 2 * 3 * 4096 * 14336
    assert counted(QWEN15_MOE, shared_expert_intermediate_size=0).total < counted(QWEN15_MOE).total


def test_biases_and_tied_embeddings() -> None:
    plain = counted(configs.LLAMA_8B).total
    assert counted(configs.LLAMA_8B, attention_bias=True).total - plain == 32 * (4096 + 2 * 1024)
    assert counted(configs.LLAMA_8B, attention_bias=False).total == plain
    assert plain - counted(configs.LLAMA_8B, tie_word_embeddings=True).total == 128_256 * 4096
    assert counted(GEMMA2_2B, tie_word_embeddings=False).total - counted(GEMMA2_2B).total == 256_000 * 2304


def test_another_shape_of_layers_is_not_counted() -> None:
    opt = configs.llama(model_type="opt")
    assert weights.count(opt, configs.facts(opt, 10**9)) is None
    facts = configs.facts(configs.LLAMA_8B)
    stateful = configs.facts(configs.llama(model_type="mamba2", state_size=16, conv_kernel=4), 10**9)
    assert isinstance(stateful, ModelFacts)
    assert weights.count(configs.LLAMA_8B, stateful) is None, "nothing attends"
    assert weights.count(configs.LLAMA_8B, facts) is not None
    for kind in ("gemma3_text", "gpt_oss"):
        text = configs.GPT_OSS_20B | {"model_type": kind}
        assert weights.count(text, configs.facts(text, 10**10)) is not None
