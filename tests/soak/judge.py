"""What a soak must not show: growth, leaks, lost requests. Figures in, complaints out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WARM_UP = 1 / 3
"""Of the time: caches fill, pools and tables find their size."""
GROWTH_MAX = 0.04
"""Of the median, over the rest of the time."""
MEMORY_NOISE_BYTES = 1_500_000
"""Less growth than this is the allocator's: it takes memory from the kernel in pieces of up to 1 MiB."""
FDS_NOISE = 12


@dataclass(frozen=True)
class Sample:
    """The router at one moment."""

    at_s: float
    pss_bytes: int
    fds: int
    connections: int
    in_flight: int
    requests_total: int


@dataclass(frozen=True)
class Rest:
    """The router once all clients have gone, and what it was before they came."""

    fds_before: int
    fds: int
    connections: int
    in_flight: int
    queued: int
    busy_replicas: Mapping[str, int]
    """In-flight counts that are not 0."""
    busy_engines: Mapping[str, int]
    """Running and waiting requests that the engines themselves report, where not 0."""
    pid_before: int
    pid: int


def growth_per_s(points: Sequence[tuple[float, float]]) -> float:
    """Slope by Theil and Sen: the median of the slopes between all pairs, which a third of outliers does not move.

    :param points: (seconds, value).
    """
    slopes = [
        (later - value) / (then - at)
        for index, (at, value) in enumerate(points)
        for then, later in points[index + 1 :]
        if then > at
    ]
    return statistics.median(slopes) if slopes else 0.0


def settled(samples: Sequence[Sample]) -> list[Sample]:
    """Those after the warm-up."""
    end = samples[-1].at_s
    return [one for one in samples if one.at_s >= end * WARM_UP]


def _grown(samples: Sequence[Sample], values: Sequence[float], noise: float) -> float | None:
    """Growth over the whole time, where it is more than may be."""
    slope = growth_per_s([(one.at_s, value) for one, value in zip(samples, values, strict=True)])
    grown = slope * (samples[-1].at_s - samples[0].at_s)
    return grown if grown > max(noise, statistics.median(values) * GROWTH_MAX) else None


def complaints(
    samples: Sequence[Sample], outcomes: Mapping[str, int], kills: int, back: int, rest: Rest
) -> list[str]:
    """Everything that is wrong; empty: passed."""
    found = []
    steady = settled(samples)
    grown = _grown(steady, [one.pss_bytes for one in steady], MEMORY_NOISE_BYTES)
    if grown is not None:
        found.append(f"memory grew by {grown / 1e6:.1f} MB after the warm-up")
    grown = _grown(steady, [one.fds for one in steady], FDS_NOISE)
    if grown is not None:
        found.append(f"{grown:.0f} more file descriptors after the warm-up")
    if not outcomes.get("whole"):
        found.append("not one request was answered")
    found += [f"{outcomes[name]} requests were {name}" for name in ("lost", "refused") if outcomes.get(name)]
    if not kills:
        found.append("no replica was killed")
    if back < kills:
        found.append(f"{kills - back} of {kills} killed replicas did not come back")
    if rest.pid != rest.pid_before:
        found.append("the router was restarted")
    for what, count in (
        ("connections", rest.connections), ("requests in flight", rest.in_flight), ("requests queued", rest.queued),
        ("file descriptors more than before", max(0, rest.fds - rest.fds_before)),
    ):  # fmt: skip
        if count:
            found.append(f"{count} {what} after all clients had gone")
    for what, counts in (("in flight", rest.busy_replicas), ("in the engine", rest.busy_engines)):
        found += [f"{name}: {count} {what} after all clients had gone" for name, count in counts.items()]
    return found


FLEET_NOISE_BYTES = {"supervisor": 3_000_000, "routers": 3_000_000, "a shim, at most": 500_000}
"""As above, by role: of processes that are killed now and then, so that young and old ones follow each other."""
FLEET_FDS_NOISE = 40
"""Descriptors come and go with clients, replicas and probes."""


@dataclass(frozen=True)
class Point:
    """The fleet's own processes at one moment, by role."""

    at_s: float
    pss_bytes: Mapping[str, int]
    fds: Mapping[str, int]
    routers: int
    """How many there were: while one is being restarted, sums say nothing."""


def _steady(points: Sequence[Point]) -> list[Point]:
    """After the warm-up, and with every router there."""
    most = max((point.routers for point in points), default=0)
    return [point for point in points if point.at_s >= points[-1].at_s * WARM_UP and point.routers == most]


def grown(points: Sequence[Point]) -> list[tuple[str, list[int], float, float]]:
    """Of each role: its values after the warm-up, by how much they have grown over that time, by how much they may."""
    steady = _steady(points)
    found = []
    for role, noise in FLEET_NOISE_BYTES.items():
        values = [point.pss_bytes[role] for point in steady]
        growth = _growth(steady, values)
        found.append((role, values, growth, max(float(noise), statistics.median(values) * GROWTH_MAX)))
    return found


def fleet_complaints(points: Sequence[Point]) -> list[str]:
    """What grows; empty: nothing."""
    if len(_steady(points)) < 3:
        return ["there are too few samples to tell of memory"]
    found = [
        f"memory of {role} grew by {growth / 1e6:.1f} MB after the warm-up"
        for role, _, growth, limit in grown(points)
        if growth > limit
    ]
    steady = _steady(points)
    for role in ("supervisor", "routers"):
        growth = _growth(steady, [point.fds[role] for point in steady])
        if growth > FLEET_FDS_NOISE:
            found.append(f"{growth:.0f} more file descriptors of {role} after the warm-up")
    return found


def _growth(points: Sequence[Point], values: Sequence[float]) -> float:
    slope = growth_per_s([(one.at_s, value) for one, value in zip(points, values, strict=True)])
    return slope * (points[-1].at_s - points[0].at_s)
