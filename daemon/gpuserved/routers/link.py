"""The supervisor's hold on the data plane: the router shim that keeps the port, and the router's control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

import gpuserved
from gpuserved.api.roots import Roots
from gpuserved.api.routing import RouterStats, RoutingTable
from gpuserved.host.deadline import within
from gpuserved.host.failpoint import reach
from gpuserved.host.lock import FolderLock, settle
from gpuserved.host.shimclient import ShimConnection, ShimError
from gpuserved.routers.control import LINE_MAX_BYTES, ask, say
from gpuserved.routers.launch import launch_router
from gpuserved.routers.place import RouterPlace

log = logging.getLogger(__name__)

POLL_S = 1.0
FAST_POLL_S = 0.1
RECONNECT_S = 0.1
LOOK_S = 0.25
"""How long `status` waits for figures of this instant; older ones do where a router is slow."""
STOP_GRACE_S = 30.0
KILL_AFTER_S = 5.0
"""A router ends by itself at its limit; its shim waits for so much longer before it kills."""


class RouterLink:
    """Keeps one router running and told. Calls `on_stats` after each answer."""

    def __init__(
        self,
        roots: Roots,
        place: RouterPlace,
        on_stats: Callable[[], None],
        *,
        access_log: Path | None = None,
        shared: bool = False,
    ) -> None:
        """:param shared: others of its generation take connections from the same socket."""
        self.place = place
        self.stats: RouterStats | None = None
        self.last_stats: RouterStats | None = None
        """The figures it gave last, also where it does not answer any more."""
        self.shim_pid: int | None = None
        self.shim_version: str | None = None
        """Of the shim's code; None: it is from before that was noted."""
        self.draining = False
        """It is told to take no more connections, and to end after its last one."""
        self.listener: socket.socket | None = None
        self.pids: list[int] = []
        self._fast = False
        self._roots = roots
        self._access_log = access_log
        self._shared = shared
        self._on_stats = on_stats
        self._on_gone: Callable[[RouterLink], None] = lambda _link: None
        self._table = RoutingTable()
        self._untold = False
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()
        """Of the question that is on its way; each has its own."""
        self._shim: ShimConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._barred: FolderLock | None = None
        """Held from `adopt`, which found nobody, to `start`: a shim that an earlier supervisor started must not come up."""

    async def adopt(self) -> bool:
        """Take over a router shim that runs already, with its socket. False: there is none, and none will come up."""
        if not self.place.folder.is_dir():
            return False
        self._barred = self._barred or await settle(self.place.folder)
        if self._barred is not None:
            return False
        try:
            self._shim = await ShimConnection.connect(self.place.shim)
            hello = await self._shim.hello("supervisor")
            self.listener = await self._shim.listen_fd()
        except ShimError:
            self._shim = None
            return False
        self.pids, self.shim_pid = [hello.pid], hello.shim_pid
        self.shim_version = self.place.version()
        self.listener.setblocking(False)
        reach("router.found")
        log.info("adopted the router shim (PID %s, router PID %s)", hello.shim_pid, hello.pid)
        return True

    async def start(self, listener: socket.socket) -> None:
        """Start a router on this socket.

        :raises ShimError: it could not be started.
        """
        self.listener = listener
        access_log, row = self._access_log, self.place.row
        if access_log is not None and row:  # `access.log` of router 2 is `access-2.log`
            access_log = access_log.with_name(f"{access_log.stem}-{row}{access_log.suffix}")
        self.place.prepare(gpuserved.__version__)
        self._unbar()
        started = await launch_router(
            self._roots, self.place, listener, access_log=access_log, shared=self._shared
        )
        reach("router.answered")
        self._shim = await ShimConnection.connect(self.place.shim)
        await self._shim.hello("supervisor")
        self.pids, self.shim_pid = [started.pid], started.shim_pid
        self.shim_version = self.place.version()

    def _unbar(self) -> None:
        if self._barred is not None:
            self._barred.release()
            self._barred = None

    def begin(self) -> None:
        """Keep in touch from now on."""
        self._tasks = [asyncio.ensure_future(self._keep_shim()), asyncio.ensure_future(self._keep_told())]

    def tell(self, table: RoutingTable) -> None:
        """Make `table` this router's table, as soon as it listens."""
        self._table = table
        self._untold = True
        self._wake.set()

    @property
    def version(self) -> str | None:
        """Of the router's code; None: it is from before it said so, or has not answered yet."""
        return None if self.last_stats is None else self.last_stats.version

    @property
    def serves(self) -> bool:
        """It answers, and has the table pushed last."""
        return self.stats is not None and self.stats.table_generation == self._table.generation

    async def ended_early(self) -> str | None:
        """How the router ended since its start, if it did: what its shim says; None: it runs its first life."""
        if self._shim is None or self._shim.closed.done():
            return "its shim is gone"
        hello = await self._shim.hello("supervisor")
        if hello.running and not hello.restarts:
            return None
        how = hello.exit
        if how is None:  # its shim has started it again by now
            return "it ended right after its start"
        return (
            f"it was killed by signal {how.signal}" if how.signal else f"it ended with exit code {how.code}"
        )

    def poll_fast(self, fast: bool) -> None:
        """Ask for figures ten times a second, or once: somebody drains, or nobody does."""
        self._fast = fast

    async def look(self) -> None:
        """Ask for figures now, and wait for them for a moment."""
        if self.stats is None:
            return
        self._wake.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._answered.wait(), LOOK_S)

    def in_flight(self, replica: str, generation: int) -> int | None:
        """Requests of one start, as of the table pushed last; None until the router has said so."""
        stats = self.stats
        if stats is None or not self.serves:
            return None
        for route in stats.replicas:
            if route.id == replica and route.generation == generation:
                return route.in_flight
        return 0

    async def _keep_shim(self) -> None:
        while True:
            if self._shim is not None:
                await asyncio.shield(self._shim.closed)
            if self._stopping:
                return
            if self.draining:
                log.info("router %s (%s) has ended after its last request", self.place.row, self.pids)
                self.place.forget()
                reach("router.forgotten")
                self._on_gone(self)
                return
            log.error("the router shim is gone; starting another on the same socket")
            self.stats = None
            try:
                assert self.listener is not None
                await self.start(self.listener)
            except (ShimError, OSError):
                log.exception("the router could not be started; trying again")
                self._shim = None
                await asyncio.sleep(POLL_S)

    async def _keep_told(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(
                    self.place.control_now, limit=LINE_MAX_BYTES
                )
            except OSError:
                self.stats = None
                await asyncio.sleep(RECONNECT_S)
                continue
            try:
                await self._converse(reader, writer)
            except (
                OSError,
                asyncio.TimeoutError,
                ValueError,
                msgspec.MsgspecError,
                ConnectionError,
            ) as error:
                log.info("the router's control connection ended: %s", error or type(error).__name__)
            finally:
                self.stats = None
                writer.close()
            await asyncio.sleep(RECONNECT_S)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._untold = True
        while True:
            self._wake.clear()
            if self._untold:
                self._untold = False
                await ask(reader, writer, {"op": "table", "table": msgspec.to_builtins(self._table)})
            answer = await ask(reader, writer, {"op": "stats"})
            self.stats = self.last_stats = msgspec.convert(answer["stats"], RouterStats)
            self.pids = [self.stats.pid]
            self._answered.set()
            self._answered = asyncio.Event()
            self._on_stats()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._wake.wait(), FAST_POLL_S if self._fast else POLL_S)

    async def drain(self, limit_s: float, on_gone: Callable[[RouterLink], None]) -> None:
        """Another takes its place: it takes no more connections, and ends with its shim after the last of its own, or at the limit.

        :param on_gone: called when both have ended. Said again, to a router that drains already, it changes nothing.
        """
        self.draining = True
        self._on_gone = on_gone
        await self._end(limit_s, keep_idle=True)

    async def _end(self, limit_s: float, *, keep_idle: bool) -> None:
        await say(self.place.control_now, {"op": "drain", "limit_s": limit_s, "keep_idle": keep_idle})
        reach("router.drained")
        if self._shim is not None and not self._shim.closed.done():
            try:
                await self._shim.stop(limit_s + KILL_AFTER_S)
            except ShimError as error:
                log.warning("the router shim was not told to end: %s", error)
        reach("router.ending")

    async def stop(self) -> None:
        """End the router after its requests, and its shim."""
        self._stopping = True
        if self._shim is not None and not self._shim.closed.done():
            await self._end(STOP_GRACE_S, keep_idle=False)
            try:
                await within(asyncio.shield(self._shim.closed), STOP_GRACE_S + 2 * KILL_AFTER_S)
            except asyncio.TimeoutError:
                log.warning("the router shim did not end")
            else:
                self.place.forget()
        await self.detach()

    async def detach(self) -> None:
        """Hang up; the router goes on."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._shim is not None:
            self._shim.close()
        self._unbar()
        if self.listener is not None:
            self.listener.close()
