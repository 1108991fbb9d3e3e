"""Flags of older vLLM versions that 0.26 to 0.33 do not take, or take without effect, and what to write instead.

From the argument parsers of vLLM 0.5 to 0.32. What the installed version really takes is asked of itself
(`vllm_flags`); this table only makes its refusals useful, and lets files written for vLLM 0.11 be imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Renamed:
    """One flag that is gone, or on its way out."""

    becomes: str | None
    """The flag with the same values; None: there is none."""
    advice: str
    still_taken: bool = False
    """True where supported versions still take it, with a warning."""


_V1 = "the engine of today does this by itself: leave it out"
_SPECULATIVE = 'write speculative_config = { model = "...", num_speculative_tokens = N }'
_STRUCTURED = 'write structured_outputs_config = { backend = "..." }'

RENAMED: dict[str, Renamed] = {
    "device_memory_utilization": Renamed("gpu_memory_utilization", "the same flag under its first name", still_taken=True),
    "cuda_graph_sizes": Renamed("cudagraph_capture_sizes", "write cudagraph_capture_sizes"),
    "mm_preprocessor_cache_gb": Renamed("mm_processor_cache_gb", "write mm_processor_cache_gb"),
    "override_pooler_config": Renamed("pooler_config", "write pooler_config"),
    "override_neuron_config": Renamed("additional_config", "write additional_config"),
    "max_seq_len_to_capture": Renamed(None, "write max_cudagraph_capture_size, which counts tokens of a batch"),
    "disable_log_requests": Renamed(None, "requests are not logged unless enable_log_requests = true"),
    "rope_scaling": Renamed(None, "write hf_overrides = { rope_scaling = { ... } }"),
    "rope_theta": Renamed(None, "write hf_overrides = { rope_theta = N }"),
    "guided_decoding_backend": Renamed(None, _STRUCTURED),
    "guided_decoding_disable_fallback": Renamed(None, "write structured_outputs_config = { disable_fallback = true }"),
    "guided_decoding_disable_any_whitespace": Renamed(None, "write structured_outputs_config = { disable_any_whitespace = true }"),
    "speculative_model": Renamed(None, _SPECULATIVE),
    "num_speculative_tokens": Renamed(None, _SPECULATIVE),
    "speculative_draft_tensor_parallel_size": Renamed(None, _SPECULATIVE),
    "ngram_prompt_lookup_max": Renamed(None, 'write speculative_config = { method = "ngram", prompt_lookup_max = N }'),
    "enable_reasoning": Renamed(None, "reasoning_parser alone switches it on"),
    "task": Renamed(None, 'write runner = "pooling", and convert = "embed" or "classify" where it is needed'),
    "worker_use_ray": Renamed(None, 'write distributed_executor_backend = "ray"'),
    "engine_use_ray": Renamed(None, _V1),
    "use_v2_block_manager": Renamed(None, _V1),
    "num_lookahead_slots": Renamed(None, _V1),
    "num_scheduler_steps": Renamed(None, _V1),
    "multi_step_stream_outputs": Renamed(None, _V1),
    "preemption_mode": Renamed(None, _V1),
    "swap_space": Renamed(None, "preempted requests are computed again; kv_offloading_size keeps KV blocks in CPU memory"),
    "scheduler_delay_factor": Renamed(None, _V1),
    "disable_async_output_proc": Renamed(None, _V1),
    "disable_frontend_multiprocessing": Renamed(None, _V1),
    "tokenizer_pool_size": Renamed(None, "write renderer_num_workers"),
    "tokenizer_pool_type": Renamed(None, _V1),
    "device": Renamed(None, "the installed build of vLLM decides"),
    "quantization_param_path": Renamed(None, "the checkpoint itself holds its scales"),
    "calculate_kv_scales": Renamed(None, "the checkpoint itself holds its scales"),
    "lora_extra_vocab_size": Renamed(None, "adapters that add tokens must be merged"),
    "long_lora_scaling_factors": Renamed(None, "there is no replacement"),
    "enable_lora_bias": Renamed(None, "there is no replacement"),
    "enable_prompt_adapter": Renamed(None, "there is no replacement"),
    "max_prompt_adapters": Renamed(None, "there is no replacement"),
    "max_prompt_adapter_token": Renamed(None, "there is no replacement"),
    "logits_processor_pattern": Renamed(None, "write logits_processors"),
    "max_num_partial_prefills": Renamed(None, _V1),
    "max_long_partial_prefills": Renamed(None, _V1),
    "disable_mm_preprocessor_cache": Renamed(None, "write mm_processor_cache_gb = 0"),
    "log_config_file": Renamed(None, 'write logging_config = { pylogging_config_file = "..." }', still_taken=True),
    "disable_cascade_attn": Renamed(None, "it has no effect any more: leave it out", still_taken=True),
}  # fmt: skip
"""Name with underscores -> its fate."""
