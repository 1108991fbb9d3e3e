"""From results to figures: percentiles, throughput, goodput, loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuserved.bench.result import Outcome, Result

PERCENTILES = (50, 90, 95, 99)
LATE_WARN_S = 0.01
"""A client later than this measures itself."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """What a request must keep to count as good (DistServe's goodput); None: no goal."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def met(self, result: Result) -> bool:
        """A figure nobody could measure is not met."""
        pairs = ((self.ttft_s, result.ttft_s), (self.tpot_s, result.tpot_s), (self.e2e_s, result.e2e_s))
        return result.outcome is Outcome.OK and all(
            goal is None or (value is not None and value <= goal) for goal, value in pairs
        )


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least `percent` of all do not exceed.

    :param values: ascending, at least one.
    """
    return values[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def spread_ms(values: Iterable[float | None]) -> Json | None:
    """{"mean", "p50", ..., "max"} in milliseconds; None: nothing was measured."""
    known = sorted(value * 1e3 for value in values if value is not None)
    if not known:
        return None
    return {
        "mean": round(sum(known) / len(known), 3),
        **{f"p{percent}": round(percentile(known, percent), 3) for percent in PERCENTILES},
        "max": round(known[-1], 3),
    }


def summary(results: Sequence[Result], elapsed_s: float, offered_per_s: float, goal: Goal) -> Json:
    """Everything of one run. Rates are over the whole time, from the first request's due moment to the last answer's end."""
    counts = Counter(result.outcome.value for result in results)
    good = [result for result in results if result.outcome is Outcome.OK]
    total = len(results)
    failed = total - len(good)
    met = sum(goal.met(result) for result in good)
    has_goal = goal != Goal()
    late = sorted(result.late_s for result in results if result.outcome is not Outcome.UNSENT)
    why = Counter(
        f"{result.outcome.value}: {result.why}" for result in results if result.outcome is not Outcome.OK
    )
    return {
        "requests": total,
        "elapsed_s": round(elapsed_s, 3),
        "offered_per_s": offered_per_s,
        "answered_per_s": round(len(good) / elapsed_s, 3),
        "outcomes": {outcome.value: counts.get(outcome.value, 0) for outcome in Outcome},
        "failed_pct": round(failed / total * 100, 3) if total else None,
        "lost_pct": round(counts.get("lost", 0) / total * 100, 3) if total else None,
        "failures": dict(why.most_common(5)),
        "prompt_tokens": _sum(result.prompt_tokens for result in good),
        "output_tokens": _sum(result.output_tokens for result in good),
        "prompt_tokens_per_s": _rate(_sum(result.prompt_tokens for result in good), elapsed_s),
        "output_tokens_per_s": _rate(_sum(result.output_tokens for result in good), elapsed_s),
        "ttft_ms": spread_ms(result.ttft_s for result in good),
        "itl_ms": spread_ms(gap for result in good for gap in result.itl_s),
        "tpot_ms": spread_ms(result.tpot_s for result in good),
        "e2e_ms": spread_ms(result.e2e_s for result in good),
        "goodput_per_s": round(met / elapsed_s, 3) if has_goal else None,
        "goodput_pct": round(met / total * 100, 3) if has_goal and total else None,
        "client_late_ms": spread_ms(late),
        "replicas": _replicas(results, elapsed_s),
    }


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _rate(count: int | None, elapsed_s: float) -> float | None:
    return None if count is None else round(count / elapsed_s, 3)


def _replicas(results: Sequence[Result], elapsed_s: float) -> Mapping[str, Json]:
    names = sorted({result.replica for result in results if result.replica is not None})
    found = {}
    for name in names:
        mine = [result for result in results if result.replica == name]
        good = [result for result in mine if result.outcome is Outcome.OK]
        found[name] = {
            "requests": len(mine),
            "failed": len(mine) - len(good),
            "output_tokens_per_s": _rate(_sum(result.output_tokens for result in good), elapsed_s),
            "ttft_ms": spread_ms(result.ttft_s for result in good),
        }
    return found
