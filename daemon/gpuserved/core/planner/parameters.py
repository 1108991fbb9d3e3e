"""How many parameters a model has by its configuration, and which of them are experts or held whole on every GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuserved.core.planner.model import LayerKind, ModelFacts

_GATED = frozenset({
    "apertus", "arcee", "deepseek_v2", "deepseek_v3", "ernie4_5", "gemma", "gemma2", "gemma3_text", "glm4_moe", "gpt_oss",
    "granite", "internlm2", "internlm3", "kimi_k2", "llama", "mistral", "mixtral", "olmo", "olmo2", "phi3", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "seed_oss", "smollm3", "yi",
})  # fmt: skip
"""Types whose layers are RMS norms, attention and a gated MLP (three matrices), dense or as experts."""
_QKV_BIAS = frozenset({"qwen2", "qwen2_moe"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})


@dataclass(frozen=True)
class Count:
    """Numbers of parameters."""

    total: int
    replicated: int
    expert: int


def count(text: Mapping[str, Any], facts: ModelFacts) -> Count | None:
    """None where the configuration does not tell: another shape of layers.

    Exact for Llama, Mistral, Qwen2, Qwen3 and their experts, DeepSeek-V2 and V3 without its extra prediction layer.
    """
    kind = str(text.get("model_type", ""))
    attending = {LayerKind.FULL, LayerKind.SLIDING, LayerKind.MLA}
    if kind not in _GATED or facts.hidden_size == 0 or not any(g.kind in attending for g in facts.layers):
        return None
    hidden, layers = facts.hidden_size, int(text["num_hidden_layers"])
    tied = bool(text.get("tie_word_embeddings", kind.startswith("gemma")))  # Gemma's default
    vocabulary = facts.vocab_size * hidden * (1 if tied else 2)
    norms = (4 if kind in _FOUR_NORMS else 2) * hidden
    attention, held = _mla(text, hidden) if facts.mla else _attention(text, facts, kind)
    dense, sparse = _split(text, layers, facts.experts)
    width = int(text.get("moe_intermediate_size") or facts.intermediate_size)
    expert = 3 * hidden * width * facts.experts * sparse
    router = hidden * facts.experts * sparse
    shared = (3 * hidden * _shared_width(text, width) + _shared_gate(text, hidden)) * sparse
    mlp = 3 * hidden * facts.intermediate_size * dense
    replicated = layers * (norms + held) + hidden + router
    total = vocabulary + layers * (norms + attention) + hidden + router + shared + mlp + expert
    return Count(total, replicated, expert)


def _attention(text: Mapping[str, Any], facts: ModelFacts, kind: str) -> tuple[int, int]:
    group = next(g for g in facts.layers if g.kind in {LayerKind.FULL, LayerKind.SLIDING})
    queries = facts.attention_heads * group.head_dim
    keys = group.kv_heads * group.head_dim
    values = group.kv_heads * group.value_dim
    total = facts.hidden_size * (2 * queries + keys + values)
    if kind in _QKV_BIAS or text.get("attention_bias") is True:
        total += queries + keys + values
    norms = 2 * group.head_dim if kind.startswith("qwen3") else 0
    return total + norms, norms


def _mla(text: Mapping[str, Any], hidden: int) -> tuple[int, int]:
    """DeepSeek's attention; its down-projections are on every GPU whole (ReplicatedLinear)."""
    heads = int(text["num_attention_heads"])
    rank, rope, nope = int(text["kv_lora_rank"]), int(text["qk_rope_head_dim"]), int(text["qk_nope_head_dim"])
    value, query_rank = int(text["v_head_dim"]), text.get("q_lora_rank")
    down = hidden * (rank + rope) + rank
    if isinstance(query_rank, int) and query_rank:
        down += hidden * query_rank + query_rank
        queries = query_rank * heads * (nope + rope)
    else:
        queries = hidden * heads * (nope + rope)
    return down + queries + rank * heads * (nope + value) + heads * value * hidden, down


def _split(text: Mapping[str, Any], layers: int, experts: int) -> tuple[int, int]:
    """Layers with a dense MLP, and with experts."""
    if not experts:
        return layers, 0
    if "first_k_dense_replace" in text:
        dense = min(layers, int(text["first_k_dense_replace"]))
        return dense, layers - dense
    step = int(text.get("decoder_sparse_step") or 1)
    only = {int(n) for n in text.get("mlp_only_layers") or []}
    sparse = sum(1 for n in range(layers) if n not in only and (n + 1) % step == 0)
    return layers - sparse, sparse


def _shared_width(text: Mapping[str, Any], width: int) -> int:
    named = text.get("shared_expert_intermediate_size")
    if isinstance(named, int):
        return named
    return int(text.get("n_shared_experts") or 0) * width


def _shared_gate(text: Mapping[str, Any], hidden: int) -> int:
    """Qwen2 weighs its shared expert by a gate of one output."""
    return hidden if text.get("shared_expert_intermediate_size") else 0
