"""A daemon's life: what signals and the control API ask of it, how it ends, and what systemd is told meanwhile."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gpuserved.api.errors import Conflict, GpuserveError, Refused
from gpuserved.api.types import UpgradeAccepted, UpgradeRequest
from gpuserved.app import succession
from gpuserved.app.succession import Successor
from gpuserved.host import systemd
from gpuserved.host.tasks import Tasks

log = logging.getLogger(__name__)

ANSWER_FIRST_S = 0.1
"""Between the answer to an upgrade and the end that it brings."""
LOOP_LAG_MAX_S = 1.0
"""The watchdog is fed only while the loop answers within this."""


@dataclass(frozen=True)
class Stop:
    """How everything is to be stopped."""

    drain: bool
    forget: bool
    """Forget what was wanted: the next daemon starts empty."""


@dataclass(frozen=True)
class Abandoned:
    """The daemon that this one was to replace died before systemd knew of this one, and systemd starts another: two are too many."""


End = Stop | Successor | Abandoned | None
"""Everything stops; another version takes over; the daemon ends alone, as a failure or because it was told to."""


def exit_code(how: Stop | Abandoned | None) -> int:
    """Not 0 after a failure: systemd starts another then, whichever of the two it takes for the main one."""
    return 1 if isinstance(how, Abandoned) else 0


def farewell(how: Stop | Abandoned | None) -> str:
    """For the log and the events."""
    if isinstance(how, Abandoned):
        return "the daemon before this one died in the middle of the upgrade; systemd starts another, and this one ends"
    if how is None:
        return "the daemon ends; replicas and router go on"
    return "stopping everything" if how.drain else "stopping everything at once"


class Lifecycle:
    """The life of one daemon, on one event loop."""

    def __init__(self, args: argparse.Namespace, service: systemd.Service) -> None:
        self._args = args
        self._service = service
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._in_a_hurry = asyncio.Event()
        self._tasks = Tasks(log)

    def begin(self, reload: Callable[[], Awaitable[object]]) -> None:
        """Obey signals from now on, and tell systemd's watchdog that the loop answers.

        :param reload: reads configuration, keys and profiles again.
        """
        loop = asyncio.get_running_loop()
        if self._service.predecessor_fd is not None:
            succession.watch(self._service.predecessor_fd, lambda: self._finish(Abandoned()))
        loop.add_signal_handler(signal.SIGTERM, self._finish, None)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.start(_reload(reload), "reload"))
        # A drain may outlast the watchdog's patience.
        self._tasks.start(self._feed_watchdog(), "the watchdog's pings")

    async def close(self) -> None:
        """Obey nobody any more."""
        await self._tasks.close()

    async def end(self) -> End:
        """Wait until the daemon is to end."""
        return await asyncio.shield(self._end)

    def when_in_a_hurry(self, call: Callable[[], None]) -> None:
        """Call this once somebody wants everything to stop at once that is being stopped already."""

        async def wait() -> None:
            await self._in_a_hurry.wait()
            call()

        self._tasks.start(wait(), "the wait for a second signal")

    def shutdown(self, drain: bool, forget: bool) -> None:
        """Begin to stop everything and the daemon."""
        self._finish(Stop(drain=drain, forget=forget))

    async def upgrade(self, request: UpgradeRequest) -> UpgradeAccepted:
        """Begin to hand over to another version.

        :raises Refused: or Conflict, Invalid: that is not possible; nothing has changed.
        """
        if not self._args.background and self._service.address is None:
            raise Refused(
                "this daemon runs in the foreground: nobody would wait for the one that takes its place",
                "end it with SIGTERM, replicas and routers go on, and start the new version in its place",
            )
        if self._end.done():
            raise Conflict("this daemon is about to end", "look again with gpuserve status")
        successor = await succession.check(request, sys.argv[1:], os.environ)
        asyncio.get_running_loop().call_later(ANSWER_FIRST_S, self._finish, successor)
        return UpgradeAccepted(version=successor.version)

    def _finish(self, how: End) -> None:
        if not self._end.done():
            self._end.set_result(how)
        elif isinstance(how, Stop) and not how.drain:
            self._in_a_hurry.set()

    def _interrupted(self) -> None:
        self._finish(Stop(drain=not self._end.done(), forget=False))

    async def _feed_watchdog(self) -> None:
        """Ping systemd, only while this loop is on time."""
        interval_s = self._service.ping_s
        while interval_s is not None:
            before = time.monotonic()
            await asyncio.sleep(interval_s)
            if time.monotonic() - before - interval_s < LOOP_LAG_MAX_S:
                systemd.notify(self._service.address, "WATCHDOG=1")


async def _reload(reload: Callable[[], Awaitable[object]]) -> None:
    try:
        await reload()
    except GpuserveError as error:
        log.error("reload refused, nothing has changed: %s", error.message)  # noqa: TRY400 - the operator's mistake, not ours
