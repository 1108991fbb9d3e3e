"""Which routers there are: those that take connections, those that come, those that go, and what is left of the gone."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpuserved.api.routing import KeyStats, RouterStats, RouteStats
from gpuserved.routers.link import RouterLink


class Generations:
    """Their links and, of all together, the figures."""

    def __init__(self, present: Sequence[RouterLink]) -> None:
        self._present = tuple(present)
        self._fresh: tuple[RouterLink, ...] = ()
        self._former: tuple[RouterLink, ...] = ()
        self._past: RouterStats | None = None
        """Counters of those that have ended."""

    @property
    def present(self) -> tuple[RouterLink, ...]:
        """Those that take connections."""
        return self._present

    @property
    def fresh(self) -> tuple[RouterLink, ...]:
        """Of the next generation, until they serve."""
        return self._fresh

    @property
    def former(self) -> tuple[RouterLink, ...]:
        """Of earlier generations, until they have ended."""
        return self._former

    @property
    def links(self) -> tuple[RouterLink, ...]:
        """Those that serve, then those that come and go."""
        return (*self._present, *self._fresh, *self._former)

    @property
    def newest(self) -> int:
        """The number of the latest generation."""
        return max(link.place.generation for link in self.links)

    @property
    def stats(self) -> RouterStats | None:
        """All figures together; None while a router does not answer: a sum without it would be a lie."""
        answered = [link.stats for link in self._present if link.stats is not None]
        if not answered or len(answered) != len(self._present):
            return None
        others = [link.stats for link in (*self._fresh, *self._former) if link.stats is not None]
        if self._past is not None:
            others.append(msgspec.structs.replace(self._past, table_generation=answered[0].table_generation))
        return added([*answered, *others])

    def in_flight(self, replica: str, generation: int) -> int | None:
        """Requests of one start in all routers, those that are being replaced too, as of the table pushed last; None until each
        has said so.
        """
        counts = [link.in_flight(replica, generation) for link in self.links]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def found(self, present: Sequence[RouterLink], former: Sequence[RouterLink]) -> None:
        """What a supervisor finds: those that take connections, and those that others have replaced."""
        self._present, self._former = tuple(present), tuple(former)

    def propose(self, fresh: Sequence[RouterLink]) -> None:
        """These are to be the next generation."""
        self._fresh = tuple(fresh)

    def dismiss(self) -> tuple[RouterLink, ...]:
        """The next generation is none; returns those that would have been."""
        failed, self._fresh = self._fresh, ()
        return failed

    def promote(self) -> tuple[RouterLink, ...]:
        """The next generation is the present one; returns those that were, which go."""
        before, self._present, self._fresh = self._present, self._fresh, ()
        self._former += before
        return before

    def back(self, count: int) -> tuple[RouterLink, ...]:
        """The latest generation that was replaced is the present one again, where `count` of its routers still take connections and
        the present one does not serve; returns those that did not. Empty: nothing has changed.
        """
        latest = max((link.place.generation for link in self._former), default=0)
        able = tuple(
            link
            for link in self._former
            if link.place.generation == latest and link.stats is not None and not link.stats.draining
        )
        if self._present[0].serves or len(able) != count:
            return ()
        broken, self._present = self._present, able
        self._former = tuple(link for link in self._former if link not in able)
        return broken

    def gone(self, link: RouterLink) -> None:
        """One that was replaced has ended: its counters stay."""
        self._former = tuple(each for each in self._former if each is not link)
        if link.last_stats is not None:
            past = of_the_past(link.last_stats)
            self._past = past if self._past is None else added([self._past, past])


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
