"""From an engine's counters to what an operator reads: rates and percentiles over the last minute. Values in, values out.

Percentiles of several replicas are those of their merged histograms: an average of percentiles is no percentile of anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

LATENCY_WINDOW_S = 60.0
"""Percentiles, hit rates and preemptions look back this far: shorter, and p95 of a calm replica is one request."""
RATE_WINDOW_S = 10.0
"""Token rates look back this far: vLLM's own log line averages over 10 s too."""

Buckets = Mapping[float, float]
"""Upper bound in seconds -> observations at or below it, cumulative as Prometheus writes them; the last bound is inf."""


@dataclass(frozen=True)
class Counters:
    """One scrape's counters since the engine's start; None: the engine does not count it."""

    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    preemptions: float | None = None
    ttft: Buckets = field(default_factory=dict)
    itl: Buckets = field(default_factory=dict)


@dataclass(frozen=True)
class Growth:
    """What was counted within the windows; what figures are made of, and what may be added up over replicas."""

    prompt_tokens_per_s: float | None = None
    generation_tokens_per_s: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    preemptions: float | None = None
    span_s: float = 0.0
    """How much of the latency window is covered."""
    ttft: Buckets = field(default_factory=dict)
    itl: Buckets = field(default_factory=dict)


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
            prompt_tokens_per_s=_rate(recent.prompt_tokens, last.prompt_tokens, elapsed),
            generation_tokens_per_s=_rate(recent.generation_tokens, last.generation_tokens, elapsed),
            prefix_queries=_grown(first.prefix_queries, last.prefix_queries),
            prefix_hits=_grown(first.prefix_hits, last.prefix_hits),
            preemptions=_grown(first.preemptions, last.preemptions),
            span_s=ended - began,
            ttft=_buckets_grown(first.ttft, last.ttft),
            itl=_buckets_grown(first.itl, last.itl),
        )


def merged(parts: Iterable[Growth]) -> Growth:
    """Several replicas as one: sums of what is known, histograms added bucket by bucket."""
    each = list(parts)
    return Growth(
        prompt_tokens_per_s=_sum(one.prompt_tokens_per_s for one in each),
        generation_tokens_per_s=_sum(one.generation_tokens_per_s for one in each),
        prefix_queries=_sum(one.prefix_queries for one in each),
        prefix_hits=_sum(one.prefix_hits for one in each),
        preemptions=_sum(one.preemptions for one in each),
        span_s=max((one.span_s for one in each), default=0.0),
        ttft=_added(one.ttft for one in each),
        itl=_added(one.itl for one in each),
    )


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
    names = ("prompt_tokens", "generation_tokens", "prefix_queries", "preemptions")
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
