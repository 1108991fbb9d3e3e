"""Which layers a model has, from its configuration: full attention, windows, MLA, Mamba and linear attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gpuserved.core.planner.model import LayerKind, Layers

LAYERS_MAX = 10_000
"""More than any model has; a damaged file must not cost minutes."""
_FULL = "full"
_WINDOWED = "sliding"
_STATEFUL = "state"
_BOTH = "both"
_NONE = "none"
_WORDS = {
    "full_attention": _FULL, "attention": _FULL, "global_attention": _FULL, "sliding_attention": _WINDOWED,
    "chunked_attention": _WINDOWED, "local_attention": _WINDOWED, "linear_attention": _STATEFUL, "mamba": _STATEFUL,
    "mamba2": _STATEFUL, "hybrid": _BOTH, "mlp": _NONE, "moe": _NONE,
}  # fmt: skip
_EVERY_NTH_FULL = {
    "gemma2": 2,
    "gemma3_text": 6,
    "gemma3": 6,
    "cohere2": 4,
    "gpt_oss": 2,
    "llama4_text": 4,
    "llama4": 4,
}
"""Where no pattern is written: one layer in this many attends to everything."""
_STATE_BYTES = 4
"""Of one number of a state; vLLM keeps it in 32 bits for some models, never in more."""


def layers_of(text: Mapping[str, Any], kind: str) -> tuple[tuple[Layers, ...], tuple[str, ...]]:
    """Groups of layers, and what was taken the safe way.

    :raises KeyError: a key that this needs is missing.
    :raises ValueError: it makes no sense.
    """
    total = _integer(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not 1 <= total <= LAYERS_MAX:
        raise ValueError("num_hidden_layers")
    if text.get("kv_lora_rank"):
        width = _integer(text, "kv_lora_rank") + _integer(text, "qk_rope_head_dim")
        indexer = (
            132 if text.get("index_topk") else 0
        )  # sparse MLA: a 128-byte key and its scale, counted in bf16 numbers
        return (Layers(LayerKind.MLA, total, 1, width + indexer),), ()
    kinds, notes = _kinds(text, kind, total)
    found = Counter(kinds)
    groups: list[Layers] = []
    full, windowed = found[_FULL] + found[_BOTH], found[_WINDOWED]
    window = text.get("sliding_window") or text.get("attention_chunk_size") or 0
    if windowed and not isinstance(window, int):
        full, windowed, notes = full + windowed, 0, (*notes, "no window is given: full attention is assumed")
    if full or windowed:
        heads, size, value = _attention(text)
        if full:
            groups.append(Layers(LayerKind.FULL, full, heads, size, value))
        if windowed:
            groups.append(Layers(LayerKind.SLIDING, windowed, heads, size, value, window=int(window)))
    stateful = found[_STATEFUL] + found[_BOTH]
    if stateful:
        groups.append(Layers(LayerKind.STATE, stateful, state_bytes=_state(text)))
    return tuple(groups), notes


def _attention(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """KV heads, size of a key and of a value."""
    heads = _integer(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    size = text.get("head_dim") or text.get("attention_head_dim")
    if not isinstance(size, int):
        size = _integer(text, "hidden_size", "n_embd", "d_model") // heads
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        kv_heads = 1  # Falcon 7B, StarCoder
    elif text.get("multi_query_attention") is True:
        kv_heads = _integer(text, "multi_query_group_num", default=1)
    else:
        kv_heads = _integer(
            text, "num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", default=heads
        )
    value = text.get("v_head_dim")
    return kv_heads, size, value if isinstance(value, int) and value > 0 else size


def _kinds(text: Mapping[str, Any], kind: str, total: int) -> tuple[list[str], tuple[str, ...]]:
    written = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(written, list) and len(written) >= total:
        words = [str(word) for word in written[:total]]
        strange = sorted({word for word in words if word not in _WORDS})
        notes = (f"layer type {', '.join(strange)} is taken for full attention",) if strange else ()
        return _unwindowed([_WORDS.get(word, _FULL) for word in words], text), notes
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return [{"M": _STATEFUL, "*": _FULL}.get(mark, _NONE) for mark in pattern], ()
    if kind in {"mamba", "mamba2"}:
        return [_STATEFUL] * total, ()
    if kind == "falcon_h1":
        return [_BOTH] * total, ()
    if isinstance(text.get("attn_layer_indices"), list):
        attending = set(text["attn_layer_indices"])
        return [_FULL if n in attending else _STATEFUL for n in range(total)], ()
    if text.get("attn_layer_period"):
        period, offset = _integer(text, "attn_layer_period"), _integer(text, "attn_layer_offset", default=0)
        return [_FULL if n % period == offset else _STATEFUL for n in range(total)], ()
    if kind == "qwen3_next":
        nth = _integer(text, "full_attention_interval", default=4)
        return [_FULL if (n + 1) % nth == 0 else _STATEFUL for n in range(total)], ()
    nth = _integer(text, "sliding_window_pattern", default=_EVERY_NTH_FULL.get(kind, 0))
    if nth:
        return _unwindowed([_FULL if (n + 1) % nth == 0 else _WINDOWED for n in range(total)], text), ()
    return _unwindowed([_WINDOWED if text.get("sliding_window") else _FULL] * total, text), ()


def _unwindowed(kinds: list[str], text: Mapping[str, Any]) -> list[str]:
    """Qwen2 writes a window and says beside it that it is not used; a window of null is none either."""
    unused = text.get("use_sliding_window") is False or not (
        text.get("sliding_window") or text.get("attention_chunk_size")
    )
    return [_FULL if unused and kind == _WINDOWED else kind for kind in kinds]


def _state(text: Mapping[str, Any]) -> int:
    """Bytes of one request's state in one layer, convolution and recurrence."""
    if text.get("linear_num_value_heads"):  # gated delta net
        keys = _integer(text, "linear_num_key_heads") * _integer(text, "linear_key_head_dim")
        values = _integer(text, "linear_num_value_heads") * _integer(text, "linear_value_head_dim")
        convolution = (2 * keys + values) * (_integer(text, "linear_conv_kernel_dim", default=4) - 1)
        recurrence = values * _integer(text, "linear_key_head_dim")
        return _STATE_BYTES * (convolution + recurrence)
    states = _integer(text, "mamba_d_state", "ssm_state_size", "state_size")
    kernel = _integer(text, "mamba_d_conv", "conv_kernel")
    heads = _integer(text, "mamba_n_heads", "mamba_num_heads", "num_heads", default=0)
    size = text.get("mamba_d_head") or text.get("mamba_head_dim") or text.get("head_dim") or 0
    hidden = _integer(text, "hidden_size", "d_model")
    inner = heads * size if heads and isinstance(size, int) and size else 0
    inner = inner or _integer(text, "mamba_d_ssm", default=0)
    inner = inner or int(float(text.get("mamba_expand") or text.get("expand") or 2) * hidden)
    groups = _integer(text, "mamba_n_groups", "n_groups", default=0)
    return _STATE_BYTES * ((inner + 2 * groups * states) * (kernel - 1) + inner * states)


def _integer(table: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = table.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if default is None:
        raise KeyError(names[0])
    return default
