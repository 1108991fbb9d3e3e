"""A model's config.json to `ModelFacts`. What is not understood is said to be unknown; nothing is guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpuserved.core.planner.model import LayerKind, Layers, ModelFacts, Unknown, Weights
from gpuserved.core.planner.weights import count, with_beside

KNOWN_TYPES = frozenset({
    "apertus", "arcee", "aria_text", "aya_vision", "baichuan", "bamba", "bloom", "chatglm", "cohere", "cohere2", "dbrx",
    "deepseek", "deepseek_v2", "deepseek_v3", "deepseek_vl_v2", "dots1", "ernie4_5", "ernie4_5_moe", "exaone", "exaone4",
    "falcon", "falcon_h1", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4v", "gpt2",
    "gpt_bigcode", "gpt_neox", "gpt_oss", "granite", "granitemoe", "granitemoehybrid", "helium", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "idefics3", "internlm", "internlm2", "internlm3", "internvl", "internvl_chat", "jamba", "kimi_k2",
    "kimi_vl", "llama", "llama4", "llama4_text", "llava", "llava_next", "llava_onevision", "mamba", "mamba2", "minicpm",
    "mistral", "mistral3", "mixtral", "mllama", "mpt", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmoe", "opt",
    "paligemma", "phi", "phi3", "phimoe", "pixtral", "qwen", "qwen2", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_moe", "qwen2_vl",
    "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl", "qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_vl_text",
    "seed_oss", "smollm3", "solar", "stablelm", "starcoder2", "yi",
})  # fmt: skip
"""Model types whose cache follows from keys that `layers_of` reads."""
_NESTED = ("text_config", "llm_config", "language_config")
_LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""vLLM takes the smallest of these (`derive_max_model_len_and_key`)."""
_PADDED_HIDDEN = 256
"""mxfp4 kernels pad the hidden size to a multiple: gpt-oss-20b's 12.8 GiB of files load as 13.5 (llm-d-planner)."""
_UNPADDED = 1.012
"""What Triton's mxfp4 kernels make of the files' experts on a Hopper card: 13.03 and 61.43 GiB measured (0.26.0)."""
_HIDDEN_HELD = {
    "llama": 3,
    "mistral": 3,
    "mixtral": 3,
    "qwen2": 3,
    "phi3": 3,
    "qwen3": 4,
    "granite": 4,
    "gemma3_text": 5,
}
_HIDDEN_HELD_ELSE = 7
"""Hidden states kept beside a step's widest intermediate, measured (0.26.0); seven with OLMo 2's norms, the most there are."""


@dataclass(frozen=True)
class Files:
    """The weights' files, where they are there."""

    total_bytes: int
    source: str
    """index, headers or hub."""
    has_lm_head: bool = False


def read(
    config: Mapping[str, Any], files: Files | None, identity: str, *, dtype: str | None = None
) -> ModelFacts | Unknown:
    """The facts of one model.

    :param config: the parsed config.json.
    :param files: None: sizes are counted from the configuration, where that is possible.
    :param dtype: vLLM's `--dtype`, where the profile sets it.
    """
    text = text_part(config)
    kind = str(text.get("model_type") or config.get("model_type") or "")
    names = config.get("architectures") or text.get("architectures") or [kind]
    architecture = str(names[0]) if isinstance(names, list) and names else kind
    if kind not in KNOWN_TYPES:
        return _unknown(architecture, f"model type {kind!r} is not one that the planner knows")
    try:
        layers, notes = layers_of(text, kind)
        facts = _facts(config, text, architecture, identity, layers, notes, dtype)
        weights = _weights(config, text, facts, files)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        return _unknown(architecture, f"its config.json lacks or misstates {error}")
    if weights is None:
        return _unknown(
            architecture,
            "there are no weights beside its config.json, and their size does not follow from it",
        )
    return replace(facts, weights=with_beside(weights, text, facts))


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration that nests it; its keys win over those around it."""
    inner: Any = next((config[name] for name in _NESTED if isinstance(config.get(name), dict)), None)
    thinker = config.get("thinker_config")
    if inner is None and isinstance(thinker, dict):
        return text_part(thinker)
    return {**config, **(inner or {})}


def _unknown(architecture: str, why: str) -> Unknown:
    return Unknown(
        "unknown_architecture",
        f"{architecture or 'the model'}: {why}; its memory cannot be planned",
        "it is started with --max-model-len auto, and vLLM finds the length itself",
    )


def _facts(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    architecture: str,
    identity: str,
    layers: Any,
    notes: tuple[str, ...],
    dtype: str | None,
) -> ModelFacts:
    heads = integer(text, "num_attention_heads", "n_head", "n_heads", "num_heads", default=0)
    experts = integer(
        text, "n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", default=0
    )
    hidden = integer(text, "hidden_size", "n_embd", "d_model")
    wide = integer(text, "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden)
    narrow = integer(text, "moe_intermediate_size", default=0)
    divisible = [("intermediate_size", wide)] if not narrow else [("moe_intermediate_size", narrow)]
    quantized = config.get("quantization_config") or text.get("quantization_config")
    block = quantized.get("weight_block_size") if isinstance(quantized, dict) else None
    if isinstance(block, list) and block and isinstance(block[0], int) and block[0] > 0:
        name, size = divisible[0]
        divisible = [(f"{name} in blocks of {block[0]}", max(1, size // block[0]))]
    if kind_of(text) == "gpt_oss":
        divisible = []  # its kernels pad
    lengths = [text[key] for key in _LENGTH_KEYS if isinstance(text.get(key), int)]
    limit = text.get("model_max_length")
    longest = _stretched(text, limit if isinstance(limit, int) else min(lengths, default=None))
    group = next((g for g in layers if g.kv_heads), None)
    return ModelFacts(
        identity=identity, architecture=architecture, layers=layers, attention_heads=heads,
        kv_heads=group.kv_heads if group else 0, hidden_size=hidden, vocab_size=integer(text, "vocab_size"),
        weights=Weights(0), divisible=tuple(divisible), intermediate_size=wide, experts=experts,
        experts_per_token=integer(text, "num_experts_per_tok", "experts_per_token", "moe_topk", "top_k_experts", default=0),
        expert_width=narrow or wide, hidden_held=_HIDDEN_HELD.get(kind_of(text), _HIDDEN_HELD_ELSE),
        logits_held=2 if text.get("final_logit_softcapping") else 1,
        max_length=longest if longest and longest > 0 else None,
        dtype_bytes=4 if dtype in {"float32", "float"} else 2, quantization=_quantization(config, text),
        multimodal=any(key in config for key in ("vision_config", "audio_config", "thinker_config")), notes=notes,
    )  # fmt: skip


def kind_of(text: Mapping[str, Any]) -> str:
    """The model type."""
    return str(text.get("model_type", ""))


def _stretched(text: Mapping[str, Any], length: int | None) -> int | None:
    """What a rotary embedding's scaling makes of it (`_get_and_verify_max_len`); llama3 and longrope name the whole length."""
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    if length is None or not isinstance(scaling, dict):
        return length
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if not isinstance(factor, (int, float)) or kind not in {"yarn", "linear", "dynamic"}:
        return length
    if kind == "yarn":
        first = scaling.get("original_max_position_embeddings")
        return int(first * factor) if isinstance(first, int) else length
    return int(length * factor)


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    found = config.get("quantization_config") or text.get("quantization_config")
    return str(found.get("quant_method") or "unnamed") if isinstance(found, dict) else None


def _weights(
    config: Mapping[str, Any], text: Mapping[str, Any], facts: ModelFacts, files: Files | None
) -> Weights | None:
    counted = count(text, facts)
    if files is None:
        if counted is None or facts.quantization is not None:
            return None
        size = facts.dtype_bytes
        return Weights(
            counted.total * size, counted.replicated * size, counted.expert * size, source="config"
        )
    total = files.total_bytes
    stored = str(text.get("dtype") or text.get("torch_dtype") or "")
    if stored == "float32" and facts.dtype_bytes == 2 and facts.quantization is None:
        total //= 2  # vLLM's dtype auto loads them as 16-bit numbers
    if files.has_lm_head and bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))):
        total -= facts.vocab_size * facts.hidden_size * 2  # stored twice, loaded once
    if counted is None:
        return Weights(total, source=files.source)
    share = counted.expert / counted.total
    if facts.quantization in {"mxfp4", "gpt_oss_mxfp4"}:
        plain = 2 * (counted.total - counted.expert)
        experts = max(0, total - plain)
        padded = -(-facts.hidden_size // _PADDED_HIDDEN) * _PADDED_HIDDEN
        loaded = experts * padded // facts.hidden_size
        spare = max(0, loaded - int(experts * _UNPADDED))
        return Weights(
            plain + loaded, 2 * counted.replicated, loaded, padding_bytes=spare, source=files.source
        )
    replicated = counted.replicated * 2 if counted.replicated * 2 < total else 0
    return Weights(total, replicated, int(total * share), source=files.source)


def integer(table: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these keys that is set.

    :raises KeyError: none is, and there is no default.
    :raises TypeError: it is not a number.
    """
    for name in names:
        value = table.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise TypeError(name)
        return int(value)
    if default is None:
        raise KeyError(names[0])
    return default


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
    total = _first_whole(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if not 1 <= total <= LAYERS_MAX:
        raise ValueError("num_hidden_layers")
    if text.get("kv_lora_rank"):
        width = _first_whole(text, "kv_lora_rank") + _first_whole(text, "qk_rope_head_dim")
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
    heads = _first_whole(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    size = text.get("head_dim") or text.get("attention_head_dim")
    if not isinstance(size, int):
        size = _first_whole(text, "hidden_size", "n_embd", "d_model") // heads
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        kv_heads = 1  # Falcon 7B, StarCoder
    elif text.get("multi_query_attention") is True:
        kv_heads = _first_whole(text, "multi_query_group_num", default=1)
    else:
        kv_heads = _first_whole(
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
        period, offset = (
            _first_whole(text, "attn_layer_period"),
            _first_whole(text, "attn_layer_offset", default=0),
        )
        return [_FULL if n % period == offset else _STATEFUL for n in range(total)], ()
    if kind == "qwen3_next":
        nth = _first_whole(text, "full_attention_interval", default=4)
        return [_FULL if (n + 1) % nth == 0 else _STATEFUL for n in range(total)], ()
    nth = _first_whole(text, "sliding_window_pattern", default=_EVERY_NTH_FULL.get(kind, 0))
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
        keys = _first_whole(text, "linear_num_key_heads") * _first_whole(text, "linear_key_head_dim")
        values = _first_whole(text, "linear_num_value_heads") * _first_whole(text, "linear_value_head_dim")
        convolution = (2 * keys + values) * (_first_whole(text, "linear_conv_kernel_dim", default=4) - 1)
        recurrence = values * _first_whole(text, "linear_key_head_dim")
        return _STATE_BYTES * (convolution + recurrence)
    states = _first_whole(text, "mamba_d_state", "ssm_state_size", "state_size")
    kernel = _first_whole(text, "mamba_d_conv", "conv_kernel")
    heads = _first_whole(text, "mamba_n_heads", "mamba_num_heads", "num_heads", default=0)
    size = text.get("mamba_d_head") or text.get("mamba_head_dim") or text.get("head_dim") or 0
    hidden = _first_whole(text, "hidden_size", "d_model")
    inner = heads * size if heads and isinstance(size, int) and size else 0
    inner = inner or _first_whole(text, "mamba_d_ssm", default=0)
    inner = inner or int(float(text.get("mamba_expand") or text.get("expand") or 2) * hidden)
    groups = _first_whole(text, "mamba_n_groups", "n_groups", default=0)
    return _STATE_BYTES * ((inner + 2 * groups * states) * (kernel - 1) + inner * states)


def _first_whole(table: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = table.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if default is None:
        raise KeyError(names[0])
    return default
