"""A model's config.json to `ModelFacts`. What is not understood is said to be unknown; nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpuserved.core.planner.beside import with_beside
from gpuserved.core.planner.layers import layers_of
from gpuserved.core.planner.model import ModelFacts, Unknown, Weights
from gpuserved.core.planner.parameters import count

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
