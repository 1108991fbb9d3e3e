"""The supervisor's hold on one router: the shim that keeps the port, and the router's control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import gpuserved
from gpuserved.api.roots import Roots
from gpuserved.api.routing import RouterStats, RoutingTable
from gpuserved.api.types import RouterProcess
from gpuserved.host.deadline import within
from gpuserved.host.failpoint import reach
from gpuserved.host.lock import FolderLock, settle
from gpuserved.host.shimclient import ShimConnection, ShimError
from gpuserved.host.tasks import Tasks
from gpuserved.routers.launch import launch_router
from gpuserved.routers.place import RouterPlace

log = logging.getLogger(__name__)

ANSWER_S = 5.0
LINE_MAX_BYTES = 4 * 1024 * 1024
"""A table of thousands of replicas fits."""
POLL_S = 1.0
FAST_POLL_S = 0.1
RECONNECT_S = 0.1
LOOK_S = 0.25
"""How long `status` waits for figures of this instant; older ones do where a router is slow."""
STOP_GRACE_S = 30.0
KILL_AFTER_S = 5.0
"""A router ends by itself at its limit; its shim waits for so much longer before it kills."""
_HUNG_UP = (OSError, asyncio.TimeoutError, ValueError, msgspec.MsgspecError)


class RouterLink:
    """Keeps one router running and told."""

    def __init__(
        self,
        roots: Roots,
        place: RouterPlace,
        on_gone: Callable[[RouterLink], None],
        *,
        access_log: Path | None = None,
        shared: bool = False,
    ) -> None:
        """:param on_gone: called when a router that drains has ended, and its shim with it.
        :param shared: others of its generation take connections from the same socket.
        """
        self.place = place
        self._roots = roots
        self._access_log = access_log
        self._shared = shared
        self._on_gone = on_gone
        self._stats: RouterStats | None = None
        self._last_stats: RouterStats | None = None
        self._pid: int | None = None
        self._shim_pid: int | None = None
        self._shim_version: str | None = None
        self._listener: socket.socket | None = None
        self._draining = False
        self._poll_s = POLL_S
        self._table = RoutingTable()
        self._untold = False
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()
        """Of the question that is on its way; each has its own."""
        self._shim: ShimConnection | None = None
        self._tasks = Tasks(log)
        self._stopping = False
        self._barred: FolderLock | None = None
        """Held from `adopt`, which found nobody, to `start`: a shim that an earlier supervisor started must not come up."""

    @property
    def stats(self) -> RouterStats | None:
        """Its figures; None while it does not answer."""
        return self._stats

    @property
    def last_stats(self) -> RouterStats | None:
        """The figures it gave last, also where it does not answer any more."""
        return self._last_stats

    @property
    def listener(self) -> socket.socket | None:
        """The public port."""
        return self._listener

    @property
    def process(self) -> RouterProcess:
        """The router and its shim, as `status` shows them."""
        stats = self._stats
        return RouterProcess(
            router=self.place.row,
            generation=self.place.generation,
            pid=self._pid,
            shim_pid=self._shim_pid,
            version=self.version,
            shim_version=self._shim_version,
            draining=self._draining,
            in_flight=None if stats is None else stats.in_flight,
            connections=None if stats is None else stats.connections,
        )

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
            self._listener = await self._shim.listen_fd()
        except ShimError:
            self._shim = None
            return False
        self._pid, self._shim_pid = hello.pid, hello.shim_pid
        self._shim_version = self.place.version()
        self._listener.setblocking(False)
        reach("router.found")
        log.info("adopted the router shim (PID %s, router PID %s)", hello.shim_pid, hello.pid)
        return True

    async def start(self, listener: socket.socket) -> None:
        """Start a router on this socket.

        :raises ShimError: it could not be started.
        """
        self._listener = listener
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
        self._pid, self._shim_pid = started.pid, started.shim_pid
        self._shim_version = self.place.version()

    def _unbar(self) -> None:
        if self._barred is not None:
            self._barred.release()
            self._barred = None

    def begin(self) -> None:
        """Keep in touch from now on."""
        self._tasks.start(self._keep_shim(), f"keeping the shim of router {self.place.row}")
        self._tasks.start(self._keep_told(), f"keeping router {self.place.row} told")

    def poll_fast(self, fast: bool) -> None:
        """Ask for figures ten times a second, or once: somebody drains, or nobody does."""
        self._poll_s = FAST_POLL_S if fast else POLL_S

    def tell(self, table: RoutingTable) -> None:
        """Make `table` this router's table, as soon as it listens."""
        self._table = table
        self._untold = True
        self._wake.set()

    @property
    def version(self) -> str | None:
        """Of the router's code; None: it is from before it said so, or has not answered yet."""
        return None if self._last_stats is None else self._last_stats.version

    @property
    def serves(self) -> bool:
        """It answers, and has the table pushed last."""
        return self._stats is not None and self._stats.table_generation == self._table.generation

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

    async def look(self) -> None:
        """Ask for figures now, and wait for them for a moment."""
        if self._stats is None:
            return
        self._wake.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._answered.wait(), LOOK_S)

    def in_flight(self, replica: str, generation: int) -> int | None:
        """Requests of one start, as of the table pushed last; None until the router has said so."""
        stats = self._stats
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
            if self._draining:
                log.info("router %s (PID %s) has ended after its last request", self.place.row, self._pid)
                self.place.forget()
                reach("router.forgotten")
                self._on_gone(self)
                return
            log.error("the router shim is gone; starting another on the same socket")
            self._stats = None
            try:
                assert self._listener is not None
                await self.start(self._listener)
            except Exception:  # whatever it is: nobody else starts it again
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
                self._stats = None
                await asyncio.sleep(RECONNECT_S)
                continue
            try:
                await self._converse(reader, writer)
            except _HUNG_UP as error:
                log.info("the router's control connection ended: %s", error or type(error).__name__)
            except Exception:  # whatever it is: nobody else tells it
                log.exception("the router's control connection failed")
            finally:
                self._stats = None
                writer.close()
            await asyncio.sleep(RECONNECT_S)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._untold = True
        while True:
            self._wake.clear()
            if self._untold:
                self._untold = False
                await _ask(reader, writer, {"op": "table", "table": msgspec.to_builtins(self._table)})
            answer = await _ask(reader, writer, {"op": "stats"})
            self._stats = self._last_stats = msgspec.convert(answer["stats"], RouterStats)
            self._pid = self._stats.pid
            self._answered.set()
            self._answered = asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._wake.wait(), self._poll_s)

    async def drain(self, limit_s: float) -> None:
        """Another takes its place: it takes no more connections, and ends with its shim after the last of its own, or at the limit.
        Said again, to a router that drains already, it changes nothing.
        """
        self._draining = True
        await self._end(limit_s, keep_idle=True)

    async def _end(self, limit_s: float, *, keep_idle: bool) -> None:
        await _say(self.place.control_now, {"op": "drain", "limit_s": limit_s, "keep_idle": keep_idle})
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
        await self._tasks.close()
        if self._shim is not None:
            self._shim.close()
        self._unbar()
        if self._listener is not None:
            self._listener.close()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, Any]
) -> dict[str, Any]:
    """The answer to one request.

    :raises asyncio.TimeoutError: there is none in time; :raises ConnectionError: the router hung up.
    :raises ValueError: it refused; :raises MsgspecError: its answer is no object.
    """
    writer.write(msgspec.json.encode(request) + b"\n")
    line = await within(reader.readline(), ANSWER_S)
    if not line:
        raise ConnectionError("end of stream")
    answer: dict[str, Any] = msgspec.json.decode(line)
    if answer.get("ok") is not True:
        raise ValueError(f"the router refused {request['op']}: {answer.get('error')}")
    return answer


async def _say(path: Path, request: dict[str, Any]) -> None:
    """One request on a connection of its own. A router that does not understand goes by what it has."""
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        log.warning("the router was not told to %s: %s", request["op"], error)
        return
    try:
        await _ask(reader, writer, request)
    except (OSError, asyncio.TimeoutError, ValueError, msgspec.MsgspecError) as error:
        log.warning("the router was not told to %s: %s", request["op"], error)
    finally:
        writer.close()
