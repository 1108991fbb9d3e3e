"""All routers of the machine behind what looks like one: a shim each, one listening socket, one table, figures added up."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from gpuserved.api.roots import Roots
from gpuserved.api.routing import KeyStats, RouterStats, RouteStats, RoutingTable
from gpuserved.host.statefile import write_atomically
from gpuserved.supervisor.router_link import RouterLink

log = logging.getLogger(__name__)


class Routers:
    """Router 0 holds the socket for all; the others are started beside it."""

    def __init__(
        self,
        roots: Roots,
        on_stats: Callable[[], None],
        *,
        access_log: Path | None = None,
        count: int = 1,
    ) -> None:
        self._roots = roots
        self._table = RoutingTable()
        shared = count > 1
        self._links = [
            RouterLink(roots, on_stats, access_log=access_log, row=row, shared=shared) for row in range(count)
        ]

    @property
    def listener(self) -> socket.socket | None:
        """The public port."""
        return self._links[0].listener

    @property
    def pids(self) -> list[int]:
        """Of the router processes."""
        return [pid for link in self._links for pid in link.pids]

    @property
    def stats(self) -> RouterStats | None:
        """All figures together; None while a router does not answer: a sum without it would be a lie."""
        known = [link.stats for link in self._links]
        answered = [stats for stats in known if stats is not None]
        return added(answered) if answered and len(answered) == len(known) else None

    @property
    def fast(self) -> bool:
        """Poll ten times a second: somebody drains."""
        return self._links[0].fast

    @fast.setter
    def fast(self, fast: bool) -> None:
        for link in self._links:
            link.fast = fast

    def table_on_disk(self) -> RoutingTable | None:
        """What the last supervisor wrote."""
        return self._links[0].table_on_disk()

    @property
    def was_here(self) -> bool:
        """True where an earlier supervisor has had a router here, or has begun to start one."""
        return self._links[0].was_here

    async def adopt(self) -> bool:
        """Take over the router shims that run already, start those that are missing, end those too many.

        :raises ShimError: one that was missing does not start.
        """
        first, *others = self._links
        if not await first.adopt():
            return False
        for link in others:
            if not await link.adopt():
                await link.start(self._copy())
        await self._end_surplus()
        return True

    async def _end_surplus(self) -> None:
        """Routers of a setting that was larger."""
        row = len(self._links)
        while True:
            link = RouterLink(self._roots, lambda: None, row=row)
            if not await link.adopt():
                await link.detach()
                return
            log.info("router %d is one too many; it ends after its requests", row)
            await link.stop()
            row += 1

    async def start(self, listener: socket.socket) -> None:
        """Start all routers on this socket.

        :raises ShimError: one could not be started.
        """
        first, *others = self._links
        await first.start(listener)
        for link in others:
            await link.start(self._copy())

    def _copy(self) -> socket.socket:
        assert self.listener is not None
        copy = self.listener.dup()
        copy.setblocking(False)
        return copy

    def begin(self) -> None:
        """Keep in touch from now on."""
        for link in self._links:
            link.begin()

    def push(self, table: RoutingTable) -> None:
        """Make `table` the routers' table: on disk now, by socket as soon as they listen."""
        self._table = table
        try:
            write_atomically(self._roots.run / "routing.json", msgspec.json.encode(table))
        except OSError as error:
            log.error("routing.json could not be written: %s", error)  # noqa: TRY400 - the reason is in the error
        for link in self._links:
            link.tell(table)

    async def look(self) -> None:
        """Have figures of this instant, where the routers answer at once."""
        await asyncio.gather(*(link.look() for link in self._links))

    def in_flight(self, replica: str, generation: int) -> int | None:
        """Requests of one start in all routers, as of the table pushed last; None until each has said so."""
        counts = [link.in_flight(replica, generation) for link in self._links]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    async def stop(self) -> None:
        """End the routers after their requests, and their shims; the port is free then."""
        await asyncio.gather(*(link.stop() for link in self._links))

    async def detach(self) -> None:
        """Hang up; the routers go on."""
        for link in self._links:
            await link.detach()


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
