"""From an engine's counters to what an operator reads: rates and percentiles over the last minute. Values in, values out.

Percentiles of several replicas are those of their merged histograms: an average of percentiles is no percentile of anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any

LATENCY_WINDOW_S = 60.0
"""Percentiles, hit rates and preemptions look back this far: shorter, and p95 of a calm replica is one request."""
RATE_WINDOW_S = 10.0
"""Token rates look back this far: vLLM's own log line averages over 10 s too."""

Buckets = Mapping[float, float]
"""Upper bound in seconds -> observations at or below it, cumulative as Prometheus writes them; the last bound is inf."""


_COUNTER = MappingProxyType({"restarts": True})
_PART = MappingProxyType({"restarts": False})
"""Of another counter, whose going back tells as much."""


@dataclass(frozen=True)
class Counters:
    """What an engine has counted since its start, one field a metric; None, or no buckets: it does not count that.

    A field here is all that the sums below need. What is shown of it stands in `FIGURES`, and each engine's name for it in its
    `Engine.metrics`.
    """

    prompt_tokens: float | None = field(default=None, metadata=_COUNTER)
    generation_tokens: float | None = field(default=None, metadata=_COUNTER)
    prefix_queries: float | None = field(default=None, metadata=_COUNTER)
    """Tokens looked up in the prefix cache."""
    prefix_hits: float | None = field(default=None, metadata=_PART)
    """Tokens found there."""
    preemptions: float | None = field(default=None, metadata=_COUNTER)
    ttft: Buckets = field(default_factory=dict)
    """Seconds to the first token."""
    itl: Buckets = field(default_factory=dict)
    """Seconds between tokens."""


@dataclass(frozen=True)
class Scrape(Counters):
    """All that one scrape of an engine says; None, or no buckets: it does not."""

    running: float | None = None
    """Requests in its batch."""
    waiting: float | None = None
    """Requests in its queue."""
    kv_cache_ratio: float | None = None
    """Of the KV cache that is in use, 0 to 1."""
    steps: float | None = None
    """Moves with every step of the engine; without it there is no hang detection by progress."""

    @property
    def kv_cache_pct(self) -> float | None:
        """The same in percent."""
        return None if self.kv_cache_ratio is None else 100 * self.kv_cache_ratio


HISTOGRAMS = frozenset(each.name for each in fields(Counters) if each.default_factory is dict)
"""The fields whose metric has buckets."""


@dataclass(frozen=True)
class Growth:
    """What was counted within the windows; what figures are made of, and what may be added up over replicas."""

    counted: Counters = Counters()
    """Within the latency window."""
    per_s: Counters = Counters()
    """A second, within the rate window; rates have no buckets."""
    span_s: float = 0.0
    """How much of the latency window is covered."""


@dataclass(frozen=True)
class LoadWindow:
    """The scrapes of the last minute, oldest first: (monotonic seconds, counters)."""

    samples: tuple[tuple[float, Counters], ...] = ()

    def observed(self, now: float, counters: Counters) -> LoadWindow:
        """The window after one more scrape. Counters that went back are another engine's: the past is dropped."""
        if self.samples and _went_back(self.samples[-1][1], counters):
            return LoadWindow(((now, counters),))
        oldest = now - LATENCY_WINDOW_S
        # One sample older than the window stays: growth is measured from the edge, not from the first sample inside.
        first_inside = next((n for n, (at, _) in enumerate(self.samples) if at > oldest), len(self.samples))
        return LoadWindow((*self.samples[max(0, first_inside - 1) :], (now, counters)))

    @cached_property
    def growth(self) -> Growth:
        """What was counted; unknown before the second scrape."""
        if len(self.samples) < 2:
            return Growth()
        (began, first), (ended, last) = self.samples[0], self.samples[-1]
        recent_at, recent = next(
            (s for s in reversed(self.samples[:-1]) if ended - s[0] >= RATE_WINDOW_S), self.samples[0]
        )
        elapsed = ended - recent_at
        return Growth(
            counted=_counters(
                lambda name: _grown(getattr(first, name), getattr(last, name)),
                lambda name: _buckets_grown(getattr(first, name), getattr(last, name)),
            ),
            per_s=_counters(lambda name: _rate(getattr(recent, name), getattr(last, name), elapsed)),
            span_s=ended - began,
        )


def merged(parts: Iterable[Growth]) -> Growth:
    """Several replicas as one: sums of what is known, histograms added bucket by bucket."""
    each = list(parts)
    return Growth(
        counted=_counters(
            lambda name: _sum(getattr(one.counted, name) for one in each),
            lambda name: _added(getattr(one.counted, name) for one in each),
        ),
        per_s=_counters(lambda name: _sum(getattr(one.per_s, name) for one in each)),
        span_s=max((one.span_s for one in each), default=0.0),
    )


def _counters(
    number: Callable[[str], float | None], buckets: Callable[[str], Buckets] = lambda _: {}
) -> Counters:
    """Each field by its name."""
    values: dict[str, Any] = {
        each.name: buckets(each.name) if each.name in HISTOGRAMS else number(each.name)
        for each in fields(Counters)
    }
    return Counters(**values)


def quantile(buckets: Buckets, q: float) -> float | None:
    """The value below which a share `q` of the observations lies, in the buckets' unit; None: there are none.

    Linear within a bucket, and the last finite bound for what lies above it: as Prometheus' histogram_quantile does.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank = q * total
    below_bound, below = 0.0, 0.0
    for bound in bounds:
        here = buckets[bound]
        if here >= rank and here > below:
            if bound == float("inf"):
                return below_bound
            return below_bound + (bound - below_bound) * (rank - below) / (here - below)
        if bound != float("inf"):
            below_bound = bound
        below = max(below, here)
    return below_bound


def _went_back(old: Counters, new: Counters) -> bool:
    names = [each.name for each in fields(Counters) if each.metadata.get("restarts")]
    pairs = [(getattr(old, name), getattr(new, name)) for name in names]
    return any(before is not None and after is not None and after < before for before, after in pairs)


def _rate(old: float | None, new: float | None, elapsed_s: float) -> float | None:
    grown = _grown(old, new)
    return None if grown is None or elapsed_s <= 0 else grown / elapsed_s


def _grown(old: float | None, new: float | None) -> float | None:
    return None if old is None or new is None else max(0.0, new - old)


def _buckets_grown(old: Buckets, new: Buckets) -> Buckets:
    return {bound: max(0.0, count - old.get(bound, 0.0)) for bound, count in new.items()}


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _added(parts: Iterable[Buckets]) -> Buckets:
    """Bucket by bucket. Where the bounds differ (another release), a bound that one lacks counts as its next lower one."""
    each = [part for part in parts if part]
    bounds = sorted({bound for part in each for bound in part})
    return {bound: sum(_at(part, bound) for part in each) for bound in bounds}


def _at(buckets: Buckets, bound: float) -> float:
    return (
        buckets[bound] if bound in buckets else max((c for b, c in buckets.items() if b < bound), default=0.0)
    )


def _hit_pct(growth: Growth) -> float | None:
    hits, queries = growth.counted.prefix_hits, growth.counted.prefix_queries
    return 100 * hits / queries if hits is not None and queries else None


def _per_min(count: float | None, span_s: float) -> float | None:
    return None if count is None else count * 60 / span_s


FIGURES: Mapping[str, Callable[[Growth], float | None]] = MappingProxyType({
    "prompt_tokens_per_s": lambda growth: growth.per_s.prompt_tokens,
    "generation_tokens_per_s": lambda growth: growth.per_s.generation_tokens,
    "ttft_p50_s": lambda growth: quantile(growth.counted.ttft, 0.5),
    "ttft_p95_s": lambda growth: quantile(growth.counted.ttft, 0.95),
    "itl_p50_s": lambda growth: quantile(growth.counted.itl, 0.5),
    "itl_p95_s": lambda growth: quantile(growth.counted.itl, 0.95),
    "prefix_hit_pct": _hit_pct,
    "preemptions_per_min": lambda growth: _per_min(growth.counted.preemptions, growth.span_s),
})  # fmt: skip
"""What is shown of a replica or a model, by the wire's names (`LoadView`), and how it is made."""


def figures(growth: Growth) -> dict[str, float | None] | None:
    """All of them; None before there is any growth."""
    return {name: of(growth) for name, of in FIGURES.items()} if growth.span_s > 0 else None
