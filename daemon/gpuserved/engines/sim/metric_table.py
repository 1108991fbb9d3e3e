"""vLLM's metric families in the order of its `/metrics`: name, kind, labels beside engine and model_name, help."""

from __future__ import annotations

from typing import NamedTuple

TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
PARAM_N = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
TOKEN_GAP = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0,
    7680.0,
)  # fmt: skip
HTTP_HIGHR = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
)  # fmt: skip
HTTP_LOWR = (0.1, 0.5, 1.0)


class Family(NamedTuple):
    """One metric family. Counters are named without `_total`, which their text adds."""

    name: str
    kind: str
    help: str
    buckets: tuple[float, ...] = ()
    label: str | None = None
    values: tuple[str, ...] = ()
    engine: bool = True


_G, _C, _H = "gauge", "counter", "histogram"
_TIERS = ("device", "host", "p2p", "disk", "external_unspecified")

FAMILIES = (
    Family("estimated_flops_per_gpu", _C, "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations)."),
    Family("estimated_read_bytes_per_gpu", _C, "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations)."),
    Family("estimated_write_bytes_per_gpu", _C, "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations)."),
    Family("num_requests_running", _G, "Number of requests in model execution batches."),
    Family("num_requests_waiting", _G, "Number of requests waiting to be processed."),
    Family("num_requests_waiting_by_reason", _G, "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.", label="reason", values=("capacity", "deferred")),
    Family("engine_sleep_state", _G, "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.", label="sleep_state", values=("awake", "weights_offloaded", "discard_all")),
    Family("kv_cache_usage_perc", _G, "KV-cache usage. 1 means 100 percent usage."),
    Family("prefix_cache_queries", _C, "Prefix cache queries, in terms of number of queried tokens."),
    Family("prefix_cache_hits", _C, "Prefix cache hits, in terms of number of cached tokens."),
    Family("external_prefix_cache_queries", _C, "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried tokens."),
    Family("external_prefix_cache_hits", _C, "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached tokens."),
    Family("mm_cache_queries", _C, "Multi-modal cache queries, in terms of number of queried items."),
    Family("mm_cache_hits", _C, "Multi-modal cache hits, in terms of number of cached items."),
    Family("num_preemptions", _C, "Cumulative number of preemption from the engine."),
    Family("prompt_tokens", _C, "Number of prefill tokens processed."),
    Family("prompt_tokens_by_source", _C, "Number of prompt tokens by source.", label="source", values=("local_compute", "local_cache_hit", "external_kv_transfer")),
    Family("prompt_tokens_cached", _C, "Number of cached prompt tokens (local + external)."),
    Family("prompt_tokens_cached_by_source", _C, "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.", label="source", values=_TIERS),
    Family("generation_tokens", _C, "Number of generation tokens processed."),
    Family("request_success", _C, "Count of successfully processed requests.", label="finished_reason", values=("stop", "length", "abort", "error", "repetition")),
    Family("admission_rejections", _C, "Number of admission attempts rejected by a queue limit, by reason.", label="reason", values=("max_num_queued_reqs", "max_num_queued_tokens"), engine=False),
    Family("request_prompt_tokens", _H, "Number of prefill tokens processed.", TOKENS),
    Family("request_generation_tokens", _H, "Number of generation tokens processed.", TOKENS),
    Family("iteration_tokens_total", _H, "Histogram of number of tokens per engine_step.", ITERATION),
    Family("request_max_num_generation_tokens", _H, "Histogram of maximum number of requested generation tokens.", TOKENS),
    Family("request_params_n", _H, "Histogram of the n request parameter.", PARAM_N),
    Family("request_params_max_tokens", _H, "Histogram of the max_tokens request parameter.", TOKENS),
    Family("time_to_first_token_seconds", _H, "Histogram of time to first token in seconds.", FIRST_TOKEN),
    Family("inter_token_latency_seconds", _H, "Histogram of inter-token latency in seconds.", TOKEN_GAP),
    Family("request_time_per_output_token_seconds", _H, "Histogram of time_per_output_token_seconds per request.", TOKEN_GAP),
    Family("e2e_request_latency_seconds", _H, "Histogram of e2e request latency in seconds.", LATENCY),
    Family("request_queue_time_seconds", _H, "Histogram of time spent in WAITING phase for request.", LATENCY),
    Family("request_inference_time_seconds", _H, "Histogram of time spent in RUNNING phase for request.", LATENCY),
    Family("request_prefill_time_seconds", _H, "Histogram of time spent in PREFILL phase for request.", LATENCY),
    Family("request_decode_time_seconds", _H, "Histogram of time spent in DECODE phase for request.", LATENCY),
    Family("request_num_preemptions", _H, "Histogram of the number of times a request was preempted.", PREEMPTIONS),
    Family("request_prefill_kv_computed_tokens", _H, "Histogram of new KV tokens computed during prefill (excluding cached tokens).", TOKENS),
)  # fmt: skip

CACHE_CONFIG_HELP = "Information of the LLMEngine CacheConfig"
# The labels of vllm:cache_config_info whose values the look-alike does not vary.
CACHE_CONFIG = {
    "_block_size_resolved": "True", "block_size": "16", "cache_dtype": "auto", "cache_hit_alignment_tokens": "None",
    "effective_attention_block_size": "16", "enable_mamba_shared_prefix_checkpoint": "False", "enable_prefix_caching": "True",
    "engine": "0", "hash_block_size": "None", "is_attention_free": "False", "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None", "kv_cache_memory_bytes": "None", "kv_offloading_backend": "native", "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False", "mamba_block_size": "None", "mamba_cache_dtype": "auto", "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None", "mamba_ssm_cache_dtype": "auto", "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None", "prefix_cache_retention_interval": "0", "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None", "replayssm_buffer_len": "16", "skip_page_size_padded": "None", "sliding_window": "None",
    "swa_bounded_replay": "True", "use_kda_recoverssm": "False", "use_replayssm": "False", "user_specified_block_size": "False",
}  # fmt: skip
