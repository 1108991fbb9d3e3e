"""What vLLM and its look-alike have in common: the names of their figures, and what their logs say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from gpuserved.api.routing import CacheMetrics
from gpuserved.core.cause import Cause, ExitInfo
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Engine
from gpuserved.engines.tracebacks import first_tracebacks
from gpuserved.engines.vllm import log
from gpuserved.engines.vllm.levers import VLLM

VLLM_METRICS: Mapping[str, str] = MappingProxyType({
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_cache_ratio": "vllm:kv_cache_usage_perc",
    "steps": "vllm:iteration_tokens_total_count",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
    "ttft": "vllm:time_to_first_token_seconds",
    "itl": "vllm:inter_token_latency_seconds",
})  # fmt: skip
"""vLLM's names since 0.26; the look-alike has the same."""
CACHE_CONFIG = "vllm:cache_config_info"
"""Its labels say how many tokens the KV cache holds."""


def vllm_cache_metrics(path: str) -> CacheMetrics:
    """What a router reads of the prefix cache in the text at `path`."""
    return CacheMetrics(
        path=path, hits=VLLM_METRICS["prefix_hits"], queries=VLLM_METRICS["prefix_queries"], config=CACHE_CONFIG
    )  # fmt: skip


class VllmLike(Engine):
    """An engine that serves and logs as vLLM does."""

    metrics = VLLM_METRICS
    levers = VLLM

    def metrics_path(self, profile: Profile) -> str | None:
        del profile
        return "/metrics"

    def cache_metrics(self, profile: Profile) -> CacheMetrics | None:
        path = self.metrics_path(profile)
        return vllm_cache_metrics(path) if path else None

    def phase(self, line: str) -> str | None:
        return log.phase(line)

    def cause(self, info: ExitInfo | None, tail: list[str]) -> Cause:
        return log.cause(info, tail)

    def tracebacks(self, log_lines: Sequence[str]) -> dict[str, list[str]]:
        return first_tracebacks(log.since_alive(log_lines))
