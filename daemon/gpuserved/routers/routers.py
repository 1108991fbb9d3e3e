"""All routers of the machine behind what looks like one: a shim each, one listening socket, one table, figures added up.

Those that run together are a generation. A new one takes the same socket, and once it serves the one before takes no more
connections, ends what it has, and goes: nobody's request fails, and no stream is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

import gpuserved
from gpuserved.api.errors import GpuserveError, Internal
from gpuserved.api.roots import Roots
from gpuserved.api.routing import RouterStats, RoutingTable
from gpuserved.api.types import RouterProcess
from gpuserved.host.failpoint import reach
from gpuserved.host.statefile import write_atomically
from gpuserved.host.tasks import Tasks
from gpuserved.routers.generations import Generations
from gpuserved.routers.link import RouterLink
from gpuserved.routers.place import RouterPlace, places

log = logging.getLogger(__name__)

DRAIN_S = 3600.0
"""Streams of an hour end by themselves when their router is replaced (`[router] drain_s`)."""
SERVES_WITHIN_S = 30.0
"""From a router's start until it has the table; a second on a quiet host."""
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class RoutersSnapshot:
    """The data plane at one moment."""

    pids: tuple[int, ...]
    """Of the router processes that take connections."""
    stats: RouterStats | None
    """All figures together; None while a router does not answer."""
    processes: tuple[RouterProcess, ...]
    """Those that take connections, then those that come and go."""
    trouble: str | None
    """Why the last replacement failed; None: it did not."""


class Routers:
    """Router 0 holds the socket for all; the others are started beside it."""

    def __init__(
        self,
        roots: Roots,
        *,
        access_log: Path | None = None,
        count: int = 1,
        drain_s: Callable[[], float] = lambda: DRAIN_S,
    ) -> None:
        """:param count: routers that run together.
        :param drain_s: the longest that a router which is replaced goes on with what it has; asked at each replacement.
        """
        self._roots = roots
        self._access_log = access_log
        self._count = count
        self._drain_s = drain_s
        self._trouble: str | None = None
        self._table = RoutingTable()
        self._fast = False
        self._of = Generations(self._generation(1))
        self._adopted = False
        self._barred: list[RouterLink] = []
        self._replacing = asyncio.Lock()
        self._tasks = Tasks(log)

    def _generation(self, number: int) -> list[RouterLink]:
        return [self._link(RouterPlace(self._roots.run, row, number)) for row in range(self._count)]

    def _link(self, place: RouterPlace) -> RouterLink:
        shared = self._count > 1
        return RouterLink(self._roots, place, self._gone, access_log=self._access_log, shared=shared)

    @property
    def snapshot(self) -> RoutersSnapshot:
        """All that is known of them now."""
        return RoutersSnapshot(
            pids=self._pids,
            stats=self._of.stats,
            processes=tuple(link.process for link in self._of.links),
            trouble=self._trouble,
        )

    @property
    def _pids(self) -> tuple[int, ...]:
        found = (link.process.pid for link in self._of.present)
        return tuple(pid for pid in found if pid is not None)

    @property
    def listener(self) -> socket.socket | None:
        """The public port."""
        return self._of.present[0].listener

    @property
    def stats(self) -> RouterStats | None:
        """All figures together; None while a router does not answer."""
        return self._of.stats

    def poll_fast(self, fast: bool) -> None:
        """Ask for figures ten times a second, or once: somebody drains, or nobody does."""
        self._fast = fast
        for link in self._of.links:
            link.poll_fast(fast)

    def table_on_disk(self) -> RoutingTable | None:
        """What the last supervisor wrote."""
        try:
            return msgspec.json.decode((self._roots.run / "routing.json").read_bytes(), type=RoutingTable)
        except (OSError, msgspec.DecodeError):
            return None

    @property
    def was_here(self) -> bool:
        """True where an earlier supervisor has had a router here, or has begun to start one."""
        return bool(places(self._roots.run))

    async def adopt(self) -> bool:
        """Take over the router shims that run already, and start those that are missing. False: none runs.

        :raises ShimError: one that was missing does not start.
        """
        known = [self._link(place) for place in places(self._roots.run)]
        alive = [link for link in known if await link.adopt()]
        newest = alive[0].place.generation if alive else 1
        there = {link.place: link for link in known}
        present = [there.get(made.place, made) for made in self._generation(newest)]
        # In the places of the others nobody will come up any more, while this supervisor lives.
        self._barred = [link for link in known if link not in alive and link not in present]
        for link in self._barred:
            link.place.forget()
        # The others are of an earlier generation, or of a setting that was larger.
        self._of.found(present, [link for link in alive if link not in present])
        if not alive:
            return False
        for link in present:
            if link not in alive:
                await link.start(_copy(alive[0].listener))
        self._adopted = True
        return True

    async def start(self, listener: socket.socket) -> None:
        """Start all routers on this socket.

        :raises ShimError: one could not be started.
        """
        first, *others = self._of.present
        await first.start(listener)
        for link in others:
            await link.start(_copy(listener))

    def begin(self) -> None:
        """Keep in touch from now on, and bring to an end what a supervisor before began."""
        for link in self._of.links:
            link.begin()
        if self._adopted:
            self._tasks.start(self._settle(), "settling the routers that were found")

    async def _settle(self) -> None:
        """Adopted routers that others have replaced end; those of another version are replaced."""
        try:
            await self._until_serving(self._of.present)
            await self._retire(self._of.former)
            if any(link.version != gpuserved.__version__ for link in self._of.present):
                await self.replace()
        except GpuserveError as error:
            log.error("%s", error.message)  # noqa: TRY400 - the sentence is for the operator
            await self._fall_back()

    async def _fall_back(self) -> None:
        """A supervisor that died in the middle may leave new routers that do not serve: those before them, if they still take
        connections, are the present ones again.
        """
        broken = self._of.back(self._count)
        if broken:
            these = [link.place.folder.name for link in broken]
            log.warning("%s do not serve and are ended; routers %s serve again", these, self._pids)
        await asyncio.gather(*(link.stop() for link in broken))

    async def replace(self) -> None:
        """Another generation of routers, of this version, takes the socket; the present one ends after its last request.

        :raises Internal: they do not serve; they are gone then, and the present ones go on as if nothing had been.
        """
        async with self._replacing:
            self._trouble = None
            self._of.propose(self._generation(self._of.newest + 1))
            try:
                for link in self._of.fresh:
                    await link.start(_copy(self.listener))
                    reach("router.fresh")
                    link.poll_fast(True)
                    link.tell(self._table)
                    link.begin()
                await self._until_serving(self._of.fresh)
                reach("router.serving")
            except (GpuserveError, OSError) as error:
                await asyncio.gather(*(link.stop() for link in self._of.dismiss()))
                reach("router.failed")
                why = error.message if isinstance(error, GpuserveError) else str(error)
                where = self._roots.log / "router.log"
                self._trouble = (
                    f"the routers could not be replaced, and those from before go on: {why}; see {where}"
                )
                raise Internal(self._trouble) from None
            before = self._of.promote()
            self.poll_fast(self._fast)
            log.info("routers %s take the place of %s", self._pids, [link.process.pid for link in before])
            await self._retire(before)

    async def _until_serving(self, links: Sequence[RouterLink]) -> None:
        """:raises Internal: one of them does not serve, and why."""
        deadline = time.monotonic() + SERVES_WITHIN_S
        while not all(link.serves for link in links):
            for link in self._of.fresh:
                ended = await link.ended_early()
                if ended is not None:
                    raise Internal(f"a new router does not stay up: {ended}")
            if time.monotonic() > deadline:
                raise Internal(f"a router does not answer within {SERVES_WITHIN_S:g} s")
            await asyncio.sleep(_POLL_S)

    async def _retire(self, links: Sequence[RouterLink]) -> None:
        """Let these end; the control sockets' names lead to those that serve."""
        await asyncio.gather(*(link.drain(self._drain_s()) for link in links))
        for link in self._of.present:
            with contextlib.suppress(OSError):
                link.place.take_name()
        reach("router.renamed")

    def _gone(self, link: RouterLink) -> None:
        self._of.gone(link)
        self._tasks.start(link.detach(), f"hanging up on {link.place.folder.name}")

    def push(self, table: RoutingTable) -> None:
        """Make `table` the routers' table: on disk now, by socket as soon as they listen."""
        self._table = table
        try:
            write_atomically(self._roots.run / "routing.json", msgspec.json.encode(table))
        except OSError as error:
            log.error("routing.json could not be written: %s", error)  # noqa: TRY400 - the reason is in the error
        for link in self._of.links:
            link.tell(table)

    async def look(self) -> None:
        """Have figures of this instant, where the routers answer at once."""
        await asyncio.gather(*(link.look() for link in self._of.links))

    def in_flight(self, replica: str, generation: int) -> int | None:
        """Requests of one start in all routers, as of the table pushed last; None until each has said so."""
        return self._of.in_flight(replica, generation)

    async def stop(self) -> None:
        """End all routers after their requests, and their shims; the port is free then."""
        await self._tasks.close()
        await asyncio.gather(*(link.stop() for link in self._of.links))

    async def detach(self) -> None:
        """Hang up; the routers go on."""
        await self._tasks.close()
        for link in (*self._of.links, *self._barred):
            await link.detach()


def _copy(listener: socket.socket | None) -> socket.socket:
    assert listener is not None
    copy = listener.dup()
    copy.setblocking(False)
    return copy
