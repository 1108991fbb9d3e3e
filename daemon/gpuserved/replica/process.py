"""One start of one replica, seen through its shim: identity, signals, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpuserved.core.cause import ExitInfo
from gpuserved.host.shimclient import (
    Hello,
    Identity,
    ShimConnection,
    ShimError,
    ShimEvent,
    read_exit,
    read_identity,
)
from gpuserved.host.sweep import Sweep
from gpuserved.host.tasks import Tasks
from gpuserved.replica.snapshot import ProcessSnapshot
from gpuserved.replica.start_files import Start

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 0.5


@dataclass(frozen=True)
class Ended:
    """The whole tree is gone. `info` None: its shim was lost before it could write how."""

    info: ExitInfo | None
    shim_lost: bool = False


class ReplicaProcess:
    """Belongs to one controller. `on_dying` and `on_ended` are called on the loop, each at most once."""

    def __init__(
        self,
        start: Start,
        on_dying: Callable[[ExitInfo | None], None],
        on_ended: Callable[[Ended], None],
    ) -> None:
        """:param on_dying: given how the API process ended; None: nobody knows, for the shim was killed."""
        self._folder, nonce = start.folder, start.note.nonce
        self._seen = ProcessSnapshot(
            pid=None, shim_pid=None, started_at=None, shim_version=start.note.version,
            shim_socket=str(start.folder / "shim.sock"), nonce=nonce, folder=start.folder,
        )  # fmt: skip
        self._on_dying = on_dying
        self._on_ended = on_ended
        self._shim: ShimConnection | None = None
        self._sweep = Sweep(nonce)
        self._ended = False
        self._tasks = Tasks(log)

    @property
    def snapshot(self) -> ProcessSnapshot:
        """What is known of it now."""
        return self._seen

    def _know(self, of: Identity | Hello) -> None:
        self._seen = replace(self._seen, pid=of.pid, shim_pid=of.shim_pid, started_at=of.started_at)

    async def attach(self) -> bool:
        """Connect to the shim of a start, new or found. False: there is no shim any more, and `on_ended` will follow."""
        identity = read_identity(self._folder)
        if identity is not None:
            self._know(identity)
        try:
            self._shim = await ShimConnection.connect(self._seen.shim_socket)
            self._know(await self._shim.hello("supervisor"))
            await self._shim.watch(self._event)
        except ShimError:
            if self._shim is not None:
                self._shim.close()
        self._tasks.start(self._wait_for_end(), f"waiting for the end of {self._folder.name}")
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
        record = read_exit(self._folder)
        if record is not None:
            self._finish(Ended(record.info))
            return
        # The shim was killed. PDEATHSIG took the API process along; whatever else carries our mark is swept here.
        self._on_dying(None)
        while not self._swept():
            await asyncio.sleep(SWEEP_EVERY_S)
        self._finish(Ended(None, shim_lost=True))

    def _swept(self) -> bool:
        try:
            if self._sweep.strike() or self._sweep.alive():
                return False
            self._sweep.finish()
        except (
            OSError
        ) as error:  # no descriptors left to look with: whoever waits for this end waits for it alone
            log.warning("what is left of %s cannot be looked for: %s; trying again", self._folder, error)
            return False
        return True

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
            log.info("shim of %s: %s", self._folder.name, error.message)

    def forget(self) -> None:
        """Remove the run folder: the end has been recorded."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def detach(self) -> None:
        """Hang up and leave everything running."""
        await self._tasks.close()
        if self._shim is not None:
            self._shim.close()
