"""What a model's weights take: parameters counted from its configuration, what lies on the GPU beside them, what flags change of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpuserved.core.planner.model import LayerKind, ModelFacts, Weights
from gpuserved.core.planner.releases import GIB
from gpuserved.core.profile import FlagValue

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


_ROUNDED_FROM_BYTES = 10 * 1024**2
_ROUNDED_TO_BYTES = 2 * 1024**2
"""PyTorch's caching allocator: blocks of 10 MiB and more are whole multiples of 2 MiB (`kMinLargeAlloc`, `kRoundLarge`)."""


def with_beside(weights: Weights, text: Mapping[str, Any], facts: ModelFacts) -> Weights:
    """The same weights with what is held beside them. A key that makes no sense counts nothing."""
    return replace(
        weights,
        beside_bytes=_rotary(text, facts),
        copied_bytes=_up_projections(text, facts) if facts.mla else 0,
        matrices=tuple(sorted(_matrices(facts).items())),
    )


def rounding(weights: Weights, tensor_parallel_size: int) -> int:
    """Bytes by which the allocator may round the matrices of one GPU up: 2 MiB for each that is no multiple of it."""
    parts = ((size // tensor_parallel_size, count) for size, count in weights.matrices)
    return sum(
        count * _ROUNDED_TO_BYTES
        for size, count in parts
        if size >= _ROUNDED_FROM_BYTES and size % _ROUNDED_TO_BYTES
    )


def _rotary(text: Mapping[str, Any], facts: ModelFacts) -> int:
    """Cosines and sines of every position; models with windows may have a second table for those layers."""
    width = text.get("qk_rope_head_dim") if facts.mla else max((g.head_dim for g in facts.layers), default=0)
    if not isinstance(width, int) or width <= 0 or not facts.max_length:
        return 0
    parameters = text.get("rope_parameters")
    nested = isinstance(parameters, dict) and any(isinstance(each, dict) for each in parameters.values())
    tables = 2 if nested or text.get("rope_local_base_freq") else 1
    return tables * facts.max_length * width * (4 if facts.mla else facts.dtype_bytes)


def _up_projections(text: Mapping[str, Any], facts: ModelFacts) -> int:
    sizes = [text.get(name) for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")]
    rank, nope, value = (each if isinstance(each, int) and each > 0 else 0 for each in sizes)
    layers = sum(group.count for group in facts.layers if group.kind is LayerKind.MLA)
    return layers * rank * facts.attention_heads * (nope + value) * facts.dtype_bytes


def _matrices(facts: ModelFacts) -> Counter[int]:
    """The attention's two, and the MLP's two, of each layer; experts lie in two matrices a layer, too large to matter."""
    found: Counter[int] = Counter()
    hidden, size = facts.hidden_size, facts.dtype_bytes
    for group in facts.layers:
        if group.kind in {LayerKind.FULL, LayerKind.SLIDING}:
            queries = facts.attention_heads * group.head_dim
            keys = group.kv_heads * (group.head_dim + group.value_dim)
            found[hidden * (queries + keys) * size] += group.count
            found[hidden * queries * size] += group.count
        if not facts.experts:
            found[2 * hidden * facts.intermediate_size * size] += group.count
            found[hidden * facts.intermediate_size * size] += group.count
    return found


_WHILE_LOADING = {
    "fp8": 0.5,
    "ptpc_fp8": 0.5,
    "fp8_per_tensor": 0.5,
    "fp8_per_block": 0.52,
    "bitsandbytes": 0.3,
}
"""Part that is left of a 16-bit matrix: 8 bits, or 4 with scales and what stays unquantised; embeddings stay as they are."""
_DEFAULT_RANK = 16
_NO_DRAFT_MODEL = frozenset({"ngram", "ngram_gpu", "suffix"})


def as_started(facts: ModelFacts, flags: Mapping[str, FlagValue]) -> ModelFacts:
    """The facts of the model as these flags start it."""
    name = str(flags.get("quantization", ""))
    if facts.quantization is None and name in _WHILE_LOADING:
        facts = quantised(facts, _WHILE_LOADING[name])
    weights, uncounted = facts.weights, []
    if flags.get("enable_lora") is True:
        size = adapter_bytes(
            facts, _whole(flags, "max_lora_rank", _DEFAULT_RANK), _whole(flags, "max_loras", 1)
        )
        weights = replace(
            weights, total_bytes=weights.total_bytes + size, replicated_bytes=weights.replicated_bytes + size
        )
        if facts.experts:
            uncounted.append("adapters of experts (enable_lora)")
    offload = flags.get("cpu_offload_gb")
    if isinstance(offload, (int, float)):
        weights = replace(weights, offloaded_bytes=int(offload * GIB))
    speculative = flags.get("speculative_config")
    if isinstance(speculative, dict) and str(speculative.get("method", "")) not in _NO_DRAFT_MODEL:
        uncounted.append("the draft model of speculative_config and its cache")
    return replace(facts, weights=weights, uncounted=tuple(uncounted))


def quantised(facts: ModelFacts, left: float) -> ModelFacts:
    """The model with its matrices quantised while it is loaded; for a moment the whole of it is on the GPU."""
    weights = facts.weights
    plain = min(weights.total_bytes, 2 * facts.vocab_size * facts.hidden_size * facts.dtype_bytes)
    return replace(
        facts,
        quantization="while loading",
        weights=replace(
            weights,
            total_bytes=plain + int((weights.total_bytes - plain) * left),
            expert_bytes=int(weights.expert_bytes * left),
            loading_bytes=weights.total_bytes,
        ),
    )


def adapter_bytes(facts: ModelFacts, rank: int, slots: int) -> int:
    """What vLLM reserves for `slots` LoRA adapters: two matrices beside each of a layer's seven, the
    embedding and the output layer. Not divided by tensor parallel.
    """
    hidden = facts.hidden_size
    total = 2 * (hidden + facts.vocab_size)  # the embedding and the output layer
    for group in facts.layers:
        if group.kind is LayerKind.STATE:
            continue
        queries = facts.attention_heads * group.head_dim
        keys, values = group.kv_heads * group.head_dim, group.kv_heads * group.value_dim
        attention = 2 * (hidden + queries) + (hidden + keys) + (hidden + values)
        total += group.count * (attention + 3 * (hidden + facts.intermediate_size))
    return total * rank * slots * facts.dtype_bytes


def _whole(flags: Mapping[str, FlagValue], name: str, default: int) -> int:
    value = flags.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
