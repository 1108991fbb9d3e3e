"""What lies on the GPU beside a checkpoint's own bytes: rotary tables, MLA's second copies, the allocator's rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpuserved.core.planner.model import LayerKind, ModelFacts, Weights

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
