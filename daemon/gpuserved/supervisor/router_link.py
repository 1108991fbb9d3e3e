"""The supervisor's hold on the data plane: the router shim that keeps the port, and the router's control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

import gpuserved
from gpuserved.api.roots import Roots
from gpuserved.api.routing import RouterStats, RoutingTable
from gpuserved.host.deadline import within
from gpuserved.host.failpoint import reach
from gpuserved.host.folderlock import FolderLock, settle
from gpuserved.host.shimclient import ShimConnection, ShimError, launch, router_spec
from gpuserved.supervisor.surroundings import LOG_KEEP, LOG_MAX_BYTES

log = logging.getLogger(__name__)

POLL_S = 1.0
FAST_POLL_S = 0.1
RECONNECT_S = 0.1
ANSWER_S = 5.0
LOOK_S = 0.25
"""How long `status` waits for figures of this instant; older ones do where a router is slow."""
STOP_GRACE_S = 30.0
LINE_MAX_BYTES = 4 * 1024 * 1024


class RouterLink:
    """Keeps one router running and told. Calls `on_stats` after each answer."""

    def __init__(
        self,
        roots: Roots,
        on_stats: Callable[[], None],
        *,
        access_log: Path | None = None,
        row: int = 0,
        shared: bool = False,
    ) -> None:
        """:param row: which router this is; :param shared: others take connections from the same socket."""
        self.stats: RouterStats | None = None
        self.listener: socket.socket | None = None
        self.pids: list[int] = []
        self.fast = False
        """Poll ten times a second: somebody drains."""
        self._roots = roots
        self._access_log = access_log if access_log is None or not row else _numbered(access_log, row)
        self._row = row
        self._shared = shared
        self._folder = roots.run / (f"router-{row}" if row else "router")
        self._control = roots.run / "router" / (f"ctl-{row}.sock" if row else "ctl.sock")
        self._on_stats = on_stats
        self._table = RoutingTable()
        self._untold = False
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()
        """Of the question that is on its way; each has its own."""
        self._shim: ShimConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._barred: FolderLock | None = None
        """Held between `adopt`, which found nobody, and `start`: a shim that an earlier supervisor started must not come up."""

    @property
    def was_here(self) -> bool:
        """True where an earlier supervisor has had this router, or has begun to start it."""
        return self._folder.is_dir()

    def table_on_disk(self) -> RoutingTable | None:
        """What the last supervisor wrote."""
        try:
            return msgspec.json.decode((self._roots.run / "routing.json").read_bytes(), type=RoutingTable)
        except (OSError, msgspec.DecodeError):
            return None

    async def adopt(self) -> bool:
        """Take over a router shim that runs already, with its socket. False: there is none, and none will come up."""
        if not self.was_here:
            return False
        self._barred = self._barred or await settle(self._folder)
        if self._barred is not None:
            return False
        try:
            self._shim = await ShimConnection.connect(self._folder / "shim.sock")
            hello = await self._shim.hello("supervisor")
            self.listener = await self._shim.listen_fd()
        except ShimError:
            self._shim = None
            return False
        self.pids = [hello.pid]
        self.listener.setblocking(False)
        reach("router.found")
        log.info("adopted the router shim (PID %s, router PID %s)", hello.shim_pid, hello.pid)
        return True

    async def start(self, listener: socket.socket) -> None:
        """Start a router on this socket.

        :raises ShimError: it could not be started.
        """
        self.listener = listener
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / "shim.sock").unlink(missing_ok=True)
        program = [sys.executable, "-m", "gpuserved.router", "--fd", "3"]
        files = [
            "--table",
            str(self._roots.run / "routing.json"),
            "--control",
            str(self._control),
        ]
        if self._shared:
            files += ["--counts", str(self._roots.run / "router" / "counts"), "--row", str(self._row)]
        if self._access_log is not None:
            files += ["--access-log", str(self._access_log)]
        spec = router_spec(
            name=f"router-{self._row}",
            nonce=secrets.token_hex(6),
            folder=self._folder,
            argv=(*program, *files),
            env=_environment(),
            cwd="/",
            log_path=self._roots.log / (f"router-{self._row}.log" if self._row else "router.log"),
            log_max_bytes=LOG_MAX_BYTES,
            log_keep=LOG_KEEP,
            listen_fd=listener.fileno(),
        )
        self._unbar()
        started = await launch(spec, pass_fds=(listener.fileno(),))
        reach("router.answered")
        self._shim = await ShimConnection.connect(self._folder / "shim.sock")
        await self._shim.hello("supervisor")
        self.pids = [started.pid]

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
        if stats is None or stats.table_generation != self._table.generation:
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
                reader, writer = await asyncio.open_unix_connection(self._control, limit=LINE_MAX_BYTES)
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
                await _ask(reader, writer, {"op": "table", "table": msgspec.to_builtins(self._table)})
            answer = await _ask(reader, writer, {"op": "stats"})
            self.stats = msgspec.convert(answer["stats"], RouterStats)
            self.pids = [self.stats.pid]
            self._answered.set()
            self._answered = asyncio.Event()
            self._on_stats()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._wake.wait(), FAST_POLL_S if self.fast else POLL_S)

    async def stop(self) -> None:
        """End the router after its requests, and its shim; the port is free then."""
        self._stopping = True
        if self._shim is not None and not self._shim.closed.done():
            try:
                await self._shim.stop(STOP_GRACE_S)
                await within(asyncio.shield(self._shim.closed), STOP_GRACE_S + 5)
            except (ShimError, asyncio.TimeoutError) as error:
                log.warning("the router shim did not end: %s", error)
            else:
                # A router leaves its path to its successor; here there is none.
                self._control.unlink(missing_ok=True)
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


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, Any]
) -> dict[str, Any]:
    writer.write(msgspec.json.encode(request) + b"\n")
    line = await within(reader.readline(), ANSWER_S)
    if not line:
        raise ConnectionError("end of stream")
    answer: dict[str, Any] = msgspec.json.decode(line)
    if answer.get("ok") is not True:
        raise ValueError(f"the router refused {request['op']}: {answer.get('error')}")
    return answer


def _numbered(path: Path, row: int) -> Path:
    """`access.log` of router 2 is `access-2.log`."""
    return path.with_name(f"{path.stem}-{row}{path.suffix}")


def _environment() -> dict[str, str]:
    """What the router's interpreter needs to find itself; nothing else of ours, no secret."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
        if name in os.environ
    }
    source = os.path.dirname(os.path.dirname(gpuserved.__file__))
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))}
