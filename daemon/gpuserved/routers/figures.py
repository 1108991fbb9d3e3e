"""The figures of several routers as those of one."""

from __future__ import annotations

import msgspec

from gpuserved.api.routing import KeyStats, RouterStats, RouteStats


def added(routers: list[RouterStats]) -> RouterStats:
    """The figures of several routers as those of one.

    :param routers: at least one. `pid` is the first one's, `table_generation` the oldest.
    """
    if len(routers) == 1:
        return routers[0]
    queued: dict[str, int] = {}
    replicas: dict[tuple[str, int], RouteStats] = {}
    keys: dict[str, KeyStats] = {}
    for stats in routers:
        for model, count in stats.queued_by_model.items():
            queued[model] = queued.get(model, 0) + count
        for route in stats.replicas:
            known = replicas.get((route.id, route.generation))
            replicas[route.id, route.generation] = route if known is None else _routes(known, route)
        for key in stats.keys:
            had = keys.get(key.name)
            keys[key.name] = key if had is None else _keys(had, key)
    return msgspec.structs.replace(
        routers[0],
        table_generation=min(stats.table_generation for stats in routers),
        queued_by_model=queued, replicas=list(replicas.values()), keys=list(keys.values()),
        **{name: sum(getattr(stats, name) for stats in routers) for name in _SUMS},
    )  # fmt: skip


_SUMS = (
    "in_flight", "queued", "requests_total", "replayed_total", "cut_total", "rejected_total", "connections",
)  # fmt: skip
_WORST_FIRST = ("out", "ejected", "probation", "in")


def _routes(one: RouteStats, other: RouteStats) -> RouteStats:
    worse = min(
        one.rotation,
        other.rotation,
        key=lambda word: _WORST_FIRST.index(word) if word in _WORST_FIRST else 0,
    )
    return msgspec.structs.replace(
        one, rotation=worse, in_flight=one.in_flight + other.in_flight,
        requests_total=one.requests_total + other.requests_total,
        failures_total=one.failures_total + other.failures_total,
    )  # fmt: skip


def _keys(one: KeyStats, other: KeyStats) -> KeyStats:
    return msgspec.structs.replace(
        one, requests_total=one.requests_total + other.requests_total,
        limited_total=one.limited_total + other.limited_total,
        prompt_tokens_total=one.prompt_tokens_total + other.prompt_tokens_total,
        completion_tokens_total=one.completion_tokens_total + other.completion_tokens_total,
    )  # fmt: skip


def of_the_past(stats: RouterStats) -> RouterStats:
    """What stays of a router that has ended: its counters, and nothing that is under way."""
    return msgspec.structs.replace(
        stats, in_flight=0, queued=0, connections=0, queued_by_model={}, replicas=[]
    )
