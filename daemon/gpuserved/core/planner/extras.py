"""What flags of vLLM change of a model's weights: quantisation while loading, adapters, parts kept in host memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gpuserved.core.planner.model import LayerKind, ModelFacts
from gpuserved.core.profile import FlagValue

GIB = 1024**3
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
