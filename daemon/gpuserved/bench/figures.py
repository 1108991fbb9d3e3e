"""From replies to results, and from results to figures: percentiles, throughput, goodput, loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

import msgspec

from gpuserved.bench.connection import Reply

PERCENTILES = (50, 90, 95, 99)
LATE_WARN_S = 0.01
"""A client later than this measures itself."""
Json = dict[str, Any]


class Outcome(str, Enum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"
    """429 or 503: told to come back later."""
    ERROR = "error"
    """Another status, or an error event in a stream."""
    LOST = "lost"
    """No connection, a cut answer, or no answer in time."""
    UNSENT = "unsent"
    """Too many were in flight already."""


@dataclass(frozen=True)
class Result:
    """Times in seconds. All of them but `itl_s` count from when the request was due, not from when it was sent: a request
    that had to wait in the client waited for the server ("coordinated omission" otherwise).
    """

    outcome: Outcome
    replica: str | None = None
    why: str = ""
    late_s: float = 0.0
    """From due to sent: the client's own delay."""
    ttft_s: float | None = None
    e2e_s: float | None = None
    itl_s: tuple[float, ...] = ()
    """Gaps between two events with text."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    """As the engine counted them; where it did not, the events with text."""

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first."""
        if self.ttft_s is None or self.e2e_s is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Part(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Part | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event)


def read(reply: Reply, *, due: float, sent: float, ended: float) -> Result:
    """The result of one reply.

    :param due, sent, ended: on the clock of the reply's events.
    """
    late_s = sent - due
    if not reply.whole:
        why = "the connection ended early" if reply.status else "no answer"
        return Result(Outcome.LOST, reply.replica, why, late_s)
    if reply.status != 200:
        kind = Outcome.REFUSED if reply.status in {429, 503} else Outcome.ERROR
        return Result(
            kind, reply.replica, f"{reply.status} {bytes(reply.body[:200]).decode(errors='replace')}", late_s
        )
    try:
        if reply.sse:
            return _stream(reply, due, late_s)
        event = _EVENT.decode(reply.body)
    except msgspec.DecodeError as error:
        return Result(Outcome.ERROR, reply.replica, f"no JSON: {error}", late_s)
    usage = event.usage or _Usage()
    return Result(
        Outcome.OK, reply.replica, late_s=late_s, e2e_s=ended - due, prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )  # fmt: skip


def _stream(reply: Reply, due: float, late_s: float) -> Result:
    times: list[float] = []
    usage = _Usage()
    ended = False
    for at, data in reply.events:
        if data == b"[DONE]":
            ended = True
            continue
        event = _EVENT.decode(data)
        if event.error is not None:
            return Result(Outcome.ERROR, reply.replica, f"error event: {event.error}"[:200], late_s)
        usage = event.usage or usage
        if any(
            c.delta and (c.delta.content or c.delta.reasoning_content or c.delta.reasoning)
            for c in event.choices
        ):
            times.append(at)
    if not ended:
        return Result(Outcome.LOST, reply.replica, "a stream without its end mark", late_s)
    return Result(
        Outcome.OK, reply.replica, late_s=late_s,
        ttft_s=times[0] - due if times else None,
        e2e_s=(times[-1] if times else reply.events[-1][0]) - due,
        itl_s=tuple(later - at for at, later in pairwise(times)),
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens if usage.completion_tokens is not None else len(times),
    )  # fmt: skip


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
