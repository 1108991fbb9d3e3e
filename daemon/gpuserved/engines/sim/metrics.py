"""The figures behind `/metrics`, kept in the API server from what EngineCore reports, and their text: vLLM's families in its order."""

from __future__ import annotations

import bisect
import gc
import os
import platform
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpuserved.engines.sim.flags import Options

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


@dataclass
class Histogram:
    """Counts by bucket, and the sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`."""
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.total += value * times

    def lines(self, name: str, labels: dict[str, str]) -> Iterator[str]:
        """Buckets, count and sum."""
        seen = 0
        for bound, count in zip([*(repr(float(b)) for b in self.bounds), "+Inf"], self.counts, strict=True):
            seen += count
            yield f"{name}_bucket{_labels({**labels, 'le': bound})} {float(seen)}"
        yield f"{name}_count{_labels(labels)} {float(seen)}"
        yield f"{name}_sum{_labels(labels)} {float(self.total)}"


@dataclass
class RouteStats:
    """What one handler did."""

    count: int = 0
    request_bytes: int = 0
    response_bytes: int = 0


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (key, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
        for key, value in sorted(labels.items())
    )
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped) + "}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


class Metrics:
    """All figures of one server."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._created = time.time()
        self.values: dict[str, float] = {}
        self.histograms = {family.name: Histogram(family.buckets) for family in FAMILIES if family.buckets}
        self.values["engine_sleep_state/awake"] = 1.0
        self.routes: dict[str, RouteStats] = {}
        self.requests: dict[tuple[str, str, str], int] = {}
        self.durations: dict[tuple[str, str], Histogram] = {}
        self.all_durations = Histogram(HTTP_HIGHR)

    def sleep_state(self, level: int | None) -> None:
        """:param level: None: awake, 1: weights offloaded, 2: all is gone."""
        for name, of_level in (("awake", None), ("weights_offloaded", 1), ("discard_all", 2)):
            self.values[f"engine_sleep_state/{name}"] = float(level == of_level)

    def add(self, name: str, amount: float) -> None:
        """Move a counter. `name` may carry `/LABEL VALUE`."""
        self.values[name] = self.values.get(name, 0.0) + amount

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """Feed a histogram."""
        self.histograms[name].observe(value, times)

    def step(self, report: dict[str, Any]) -> None:
        """What EngineCore says with each step: gauges always, the rest only where it computed something."""
        self.values["num_requests_running"] = float(report["running"])
        self.values["num_requests_waiting"] = float(report["waiting"])
        self.values["num_requests_waiting_by_reason/capacity"] = float(report["waiting"])
        self.values["kv_cache_usage_perc"] = float(report["kv"])
        if "decode" not in report:
            return
        computed, cached = report["prefill"], report["cached"]
        self.add("prefix_cache_queries", report["queried"])
        self.add("prefix_cache_hits", cached)
        self.add("prompt_tokens_by_source/local_compute", computed)
        self.add("prompt_tokens_by_source/local_cache_hit", cached)
        self.add("prompt_tokens_cached", cached)
        self.add("prompt_tokens_cached_by_source/device", cached)
        self.add("num_preemptions", report["preempted"])
        self.observe("iteration_tokens_total", computed + report["decode"])

    def request(self, handler: str, method: str, status: int, seconds: float, sizes: tuple[int, int]) -> None:
        """One HTTP exchange; sizes are (request, response) bytes."""
        key = (handler, method, f"{status // 100}xx")
        self.requests[key] = self.requests.get(key, 0) + 1
        route = self.routes.setdefault(handler, RouteStats())
        route.count += 1
        route.request_bytes += sizes[0]
        route.response_bytes += sizes[1]
        self.all_durations.observe(seconds)
        self.durations.setdefault((handler, method), Histogram(HTTP_LOWR)).observe(seconds)

    def text(self) -> str:
        """The Prometheus text."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterable[str]:
        yield from _process_lines()
        for family in FAMILIES:
            yield from self._family(family)
        yield from self._cache_config()
        yield from self._http_lines()

    def _label_sets(self, family: Family) -> Iterator[tuple[str, dict[str, str]]]:
        base = {"model_name": self._options.served_model_name}
        if family.engine:
            base["engine"] = "0"
        if family.label is None:
            yield family.name, base
            return
        for value in family.values:
            yield f"{family.name}/{value}", {**base, family.label: value}

    def _family(self, family: Family) -> Iterator[str]:
        name = "vllm:" + family.name
        exposed = name + "_total" if family.kind == "counter" else name
        yield from _head(exposed, family.kind, family.help)
        for key, labels in self._label_sets(family):
            if family.kind == "histogram":
                yield from self.histograms[family.name].lines(name, labels)
            else:
                yield f"{exposed}{_labels(labels)} {self.values.get(key, 0.0)}"
        if family.kind != "gauge":
            yield from _head(name + "_created", "gauge", family.help)
            for _, labels in self._label_sets(family):
                yield f"{name}_created{_labels(labels)} {self._created!r}"

    def _cache_config(self) -> Iterator[str]:
        options = self._options
        labels = {
            **CACHE_CONFIG,
            "gpu_memory_utilization": str(options.gpu_memory_utilization),
            "kv_cache_size_tokens": str(options.kv_cache_tokens),
            "kv_cache_max_concurrency": str(options.kv_cache_tokens / options.max_model_len),
            "num_gpu_blocks": str(options.kv_cache_tokens // 16),
        }
        yield from _head("vllm:cache_config_info", "gauge", CACHE_CONFIG_HELP)
        yield f"vllm:cache_config_info{_labels(labels)} 1.0"

    def _http_lines(self) -> Iterator[str]:
        yield from self._http_family(
            "http_requests",
            "counter",
            "Total number of requests by method, status and handler.",
            [
                ({"handler": handler, "method": method, "status": status}, float(count))
                for (handler, method, status), count in self.requests.items()
            ],
        )
        for name, what, attribute in (
            ("http_request_size_bytes", "incoming requests", "request_bytes"),
            ("http_response_size_bytes", "outgoing responses", "response_bytes"),
        ):
            text = (
                f"Content length of {what} by handler. Only value of header is respected. Otherwise ignored. "
                "No percentile calculated. "
            )
            rows = [({"handler": handler}, stats) for handler, stats in self.routes.items()]
            yield from _head(name, "summary", text)
            for labels, stats in rows:
                yield f"{name}_count{_labels(labels)} {float(stats.count)}"
                yield f"{name}_sum{_labels(labels)} {float(getattr(stats, attribute))}"
            yield from self._created_lines(name, text, [labels for labels, _ in rows])
        yield from self._http_family(
            "http_request_duration_highr_seconds",
            "histogram",
            "Latency with many buckets but no API specific labels. Made for more accurate percentile calculations. ",
            [({}, self.all_durations)],
        )
        yield from self._http_family(
            "http_request_duration_seconds",
            "histogram",
            "Latency with only few buckets by handler. Made to be only used if aggregation by handler is important. ",
            [
                ({"handler": handler, "method": method}, found)
                for (handler, method), found in self.durations.items()
            ],
        )

    def _http_family(
        self, name: str, kind: str, text: str, rows: Sequence[tuple[dict[str, str], float | Histogram]]
    ) -> Iterator[str]:
        exposed = name + "_total" if kind == "counter" else name
        yield from _head(exposed, kind, text)
        for labels, value in rows:
            if isinstance(value, Histogram):
                yield from value.lines(name, labels)
            else:
                yield f"{exposed}{_labels(labels)} {value}"
        yield from self._created_lines(name, text, [labels for labels, _ in rows])

    def _created_lines(self, name: str, text: str, rows: list[dict[str, str]]) -> Iterator[str]:
        yield from _head(name + "_created", "gauge", text)
        for labels in rows:
            yield f"{name}_created{_labels(labels)} {self._created!r}"


def _process_lines() -> Iterator[str]:
    """What prometheus_client says about the interpreter and the process."""
    stats = gc.get_stats()
    for name, key, text in (
        ("objects_collected", "collected", "Objects collected during gc"),
        ("objects_uncollectable", "uncollectable", "Uncollectable objects found during GC"),
        ("collections", "collections", "Number of times this generation was collected"),
    ):
        yield from _head(f"python_gc_{name}_total", "counter", text)
        for generation, figures in enumerate(stats):
            yield f'python_gc_{name}_total{{generation="{generation}"}} {float(figures[key])}'
    yield from _head("python_info", "gauge", "Python platform information")
    version = platform.python_version_tuple()
    labels = {
        "implementation": platform.python_implementation(), "major": version[0], "minor": version[1],
        "patchlevel": version[2], "version": platform.python_version(),
    }  # fmt: skip
    yield f"python_info{_labels(labels)} 1.0"
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    with open("/proc/stat", encoding="ascii") as stat:
        booted = next(float(line.split()[1]) for line in stat if line.startswith("btime"))
    ticks = os.sysconf("SC_CLK_TCK")
    rows = (
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", float(fields[20])),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", float(fields[21]) * resource.getpagesize()),
        ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", booted + int(fields[19]) / ticks),
        ("cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", time.process_time()),
        ("open_fds", "gauge", "Number of open file descriptors.", float(len(os.listdir("/proc/self/fd")))),
        ("max_fds", "gauge", "Maximum number of open file descriptors.", float(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),
    )  # fmt: skip
    for name, kind, text, value in rows:
        yield from _head(f"process_{name}", kind, text)
        yield f"process_{name} {value}"
