"""The figures behind `/metrics`, kept in the API server from what EngineCore reports, and their text."""

from __future__ import annotations

import bisect
import gc
import os
import platform
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpuserved.engines.sim.flags import Options
from gpuserved.engines.sim.metric_table import (
    CACHE_CONFIG,
    CACHE_CONFIG_HELP,
    FAMILIES,
    HTTP_HIGHR,
    HTTP_LOWR,
    Family,
)


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
