"""config.json of published models, and the hosts of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpuserved.core.placement import Gpu
from gpuserved.core.planner import architecture
from gpuserved.core.planner.architecture import Files
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.profile import Profile

GIB = 1024**3
TOTALS_GIB = {24: 23.99, 48: 44.99, 80: 79.65, 141: 140.40}
"""What NVML shows of an RTX 4090, an L40S, an H100 and an H200."""
NAMES = {24: "NVIDIA GeForce RTX 4090", 48: "NVIDIA L40S", 80: "NVIDIA H100 80GB HBM3", 141: "NVIDIA H200"}


def llama(name: str = "LlamaForCausalLM", **more: Any) -> dict[str, Any]:
    return {
        "architectures": [name], "model_type": "llama", "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    } | more  # fmt: skip


LLAMA_8B = llama()
LLAMA_70B = llama(num_hidden_layers=80, num_attention_heads=64, hidden_size=8192, intermediate_size=28672)
MISTRAL_7B = llama(
    "MistralForCausalLM", model_type="mistral", vocab_size=32000, sliding_window=4096, max_position_embeddings=32768
)  # fmt: skip
QWEN3_30B_A3B = llama(
    "Qwen3MoeForCausalLM", model_type="qwen3_moe", num_hidden_layers=48, num_key_value_heads=4, head_dim=128,
    hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_experts=128, vocab_size=151936,
    max_position_embeddings=40960, decoder_sparse_step=1, mlp_only_layers=[], sliding_window=None,
)  # fmt: skip
QWEN3_32B = llama(
    "Qwen3ForCausalLM", model_type="qwen3", num_hidden_layers=64, num_attention_heads=64, hidden_size=5120,
    intermediate_size=25600, head_dim=128, vocab_size=151936, max_position_embeddings=40960,
)  # fmt: skip
QWEN3_06B = llama(
    "Qwen3ForCausalLM", model_type="qwen3", num_hidden_layers=28, num_attention_heads=16, hidden_size=1024,
    intermediate_size=3072, head_dim=128, vocab_size=151936, max_position_embeddings=40960, tie_word_embeddings=True,
)  # fmt: skip
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "first_k_dense_replace": 3,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "max_position_embeddings": 163840, "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_hidden_layers": 24, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 32,
    "vocab_size": 201088, "sliding_window": 128, "max_position_embeddings": 131072, "tie_word_embeddings": False,
    "attention_bias": True, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
GPT_OSS_120B = GPT_OSS_20B | {
    "num_hidden_layers": 36, "num_local_experts": 128, "layer_types": ["sliding_attention", "full_attention"] * 18,
}  # fmt: skip
MISTRAL_SMALL_24B = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "vision_config": {"hidden_size": 1024},
    "text_config": llama(
        model_type="mistral", num_hidden_layers=40, hidden_size=5120, intermediate_size=32768, head_dim=128,
        vocab_size=131072, sliding_window=None,
    ),
}  # fmt: skip


def facts(config: dict[str, Any], size_bytes: int | None = None, *, head: bool = False) -> ModelFacts:
    files = None if size_bytes is None else Files(size_bytes, "index", head)
    found = architecture.read(config, files, "a-model")
    assert isinstance(found, ModelFacts), found
    return found


def host(count: int, size: int = 80, *, linked: bool = True, first: int = 0) -> list[Gpu]:
    indexes = range(first, first + count)
    return [
        Gpu(
            n, f"GPU-{n}", NAMES[size], int(TOTALS_GIB[size] * GIB),
            tuple(m for m in indexes if m != n) if linked else (), numa_node=0, memory_used_bytes=0,
        )
        for n in indexes
    ]  # fmt: skip


def profile(**more: Any) -> Profile:
    given: dict[str, Any] = {"name": "p", "model": "a/b", "served_name": "p", "max_model_len": 8192} | more
    return Profile(**given)


def write_model(folder: Path, config: dict[str, Any], size_bytes: int | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if size_bytes is not None:
        index = {
            "metadata": {"total_size": size_bytes},
            "weight_map": {"model.embed_tokens.weight": "model-00001.safetensors"},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_inventory(path: Path, count: int, size: int) -> Path:
    gpus = [
        {
            "index": gpu.index, "uuid": gpu.uuid, "name": gpu.name, "memory_total_bytes": gpu.memory_total_bytes,
            "memory_used_bytes": 0, "nvlink": list(gpu.nvlink),
        }
        for gpu in host(count, size)
    ]  # fmt: skip
    path.write_text(json.dumps({"gpus": gpus}))
    return path
