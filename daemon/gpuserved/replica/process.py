"""One start of one replica, seen through its shim: identity, signals, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpuserved.core.cause import ExitInfo
from gpuserved.host.shimclient import (
    ShimConnection,
    ShimError,
    ShimEvent,
    read_exit,
    read_identity,
)
from gpuserved.host.sweep import Sweep

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 0.5


@dataclass(frozen=True)
class Ended:
    """The whole tree is gone. `info` None: its shim was lost before it could write how."""

    info: ExitInfo | None
    shim_lost: bool = False


class ReplicaProcess:
    """Belongs to one owner. `on_dying` and `on_ended` are called on the loop, each at most once."""

    def __init__(
        self,
        folder: Path,
        nonce: str,
        on_dying: Callable[[ExitInfo | None], None],
        on_ended: Callable[[Ended], None],
    ) -> None:
        self.folder = folder
        self.nonce = nonce
        self.pid: int | None = None
        self.shim_pid: int | None = None
        self.started_at: float | None = None
        self.shim_version: str | None = None
        """Of the gpuserve that started the shim."""
        self._on_dying = on_dying
        self._on_ended = on_ended
        self._shim: ShimConnection | None = None
        self._sweep = Sweep(nonce)
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    @property
    def socket(self) -> str:
        """The shim's socket, which the router connects to as well."""
        return str(self.folder / "shim.sock")

    async def attach(self) -> bool:
        """Connect to the shim of a start, new or found. False: there is no shim any more, and `on_ended` will follow."""
        identity = read_identity(self.folder)
        if identity is not None:
            self.pid, self.shim_pid, self.started_at = identity.pid, identity.shim_pid, identity.started_at
        try:
            self._shim = await ShimConnection.connect(self.folder / "shim.sock")
            hello = await self._shim.hello("supervisor")
            self.pid, self.shim_pid, self.started_at = hello.pid, hello.shim_pid, hello.started_at
            await self._shim.watch(self._event)
        except ShimError:
            if self._shim is not None:
                self._shim.close()
        self._task = asyncio.ensure_future(self._wait_for_end())
        return self._shim is not None and not self._shim.closed.done()

    def _event(self, event: ShimEvent) -> None:
        if event.kind == "dying":
            self._on_dying(event.exit)
        elif event.kind == "exited":
            self._finish(Ended(event.exit))

    async def _wait_for_end(self) -> None:
        if self._shim is not None:
            await asyncio.shield(self._shim.closed)
        if self._ended:
            return
        record = read_exit(self.folder)
        if record is not None:
            self._finish(Ended(record.info))
            return
        # The shim was killed. PDEATHSIG took the API process along; whatever else carries our mark is swept here.
        self._on_dying(None)
        while self._sweep.strike() or self._sweep.alive():
            await asyncio.sleep(SWEEP_EVERY_S)
        self._sweep.finish()
        self._finish(Ended(None, shim_lost=True))

    def _finish(self, ended: Ended) -> None:
        if not self._ended:
            self._ended = True
            self._on_ended(ended)

    async def terminate(self) -> None:
        """SIGTERM to the API process; one that is gone already is no error."""
        await self._tell(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL to the tree, which the shim repeats until it is gone."""
        await self._tell(None)

    async def _tell(self, number: signal.Signals | None) -> None:
        if self._shim is None or self._shim.closed.done():
            self._sweep.strike()
            return
        try:
            await (self._shim.kill() if number is None else self._shim.signal(number))
        except ShimError as error:
            log.info("shim of %s: %s", self.folder.name, error.message)

    def forget(self) -> None:
        """Remove the run folder: the end has been recorded."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def detach(self) -> None:
        """Hang up and leave everything running."""
        if self._task is not None:
            self._task.cancel()
        if self._shim is not None:
            self._shim.close()
