"""What vLLM and its look-alike have in common: the names of their figures, and what their logs say."""

from __future__ import annotations

from collections.abc import Sequence

from gpuserved.core.cause import Cause, ExitInfo
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Engine, MetricNames
from gpuserved.engines.tracebacks import first_tracebacks
from gpuserved.engines.vllm import log
from gpuserved.engines.vllm.levers import VLLM

VLLM_METRICS = MetricNames(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    kv_cache_ratio="vllm:kv_cache_usage_perc",
    steps="vllm:iteration_tokens_total_count",
    prompt_tokens="vllm:prompt_tokens_total",
    generation_tokens="vllm:generation_tokens_total",
    prefix_queries="vllm:prefix_cache_queries_total",
    prefix_hits="vllm:prefix_cache_hits_total",
    cache_config="vllm:cache_config_info",
    preemptions="vllm:num_preemptions_total",
    ttft="vllm:time_to_first_token_seconds",
    itl="vllm:inter_token_latency_seconds",
)
"""vLLM's names since 0.26; the look-alike has the same."""


class VllmLike(Engine):
    """An engine that serves and logs as vLLM does."""

    metrics = VLLM_METRICS
    levers = VLLM

    def metrics_path(self, profile: Profile) -> str | None:
        del profile
        return "/metrics"

    def phase(self, line: str) -> str | None:
        return log.phase(line)

    def cause(self, info: ExitInfo | None, tail: list[str]) -> Cause:
        return log.cause(info, tail)

    def tracebacks(self, log_lines: Sequence[str]) -> dict[str, list[str]]:
        return first_tracebacks(log.since_alive(log_lines))
