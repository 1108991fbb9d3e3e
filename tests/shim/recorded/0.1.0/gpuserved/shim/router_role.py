"""Role router: keeps the listening socket, and a router on it for as long as it is not told to stop.

The router gets PDEATHSIG too: one without its shim would hold the port with nobody to restart or stop it.
"""

from __future__ import annotations

import os
import time

from gpuserved.shim.logpipe import LogPipe
from gpuserved.shim.role import Role
from gpuserved.shim.spawn import StartFailed
from gpuserved.shim.spec import Spec
from gpuserved.shim.tree import kill_descendants

_SHORT_LIFE_S = 1.0
_PAUSE_S = 1.0


class Router(Role):
    """Many lives of one router."""

    def __init__(self, spec: Spec, pipe: LogPipe, umask: int) -> None:
        super().__init__(spec, pipe, umask)
        self._child.listen_fd = spec.listen_fd
        self._stopping = False
        self._restart_at: float | None = None
        self._born = 0.0

    def start(self) -> None:
        """Run a router.

        :raises StartFailed: nothing runs.
        """
        self._born = time.monotonic()
        super().start()

    def discard(self) -> None:
        """After a failed start: end what runs."""
        self._stopping = True
        kill_descendants(os.getpid())

    def stop(self, grace_s: float) -> None:
        """Stop the router for good; the shim ends with it."""
        self._stopping = True
        self._restart_at = None
        super().stop(grace_s)
        if not self.running:
            self._begin_sweep()

    def kill(self) -> None:
        """SIGKILL to the router and what it started; the next life follows."""
        if self.running:
            super().kill()

    def ended(self) -> None:
        """The router is gone: sweep, and plan the next life unless this was the last."""
        if self._stopping:
            self._begin_sweep()
            return
        self._sweeping = False  # a `kill` has done its work; the next life is not its target
        kill_descendants(os.getpid())
        now = time.monotonic()
        self._restart_at = now if now - self._born >= _SHORT_LIFE_S else now + _PAUSE_S

    def reap(self) -> bool:
        """As the base; the end of the tree is the end of this role only when it was told to stop."""
        gone = super().reap()
        if gone and self._stopping and not self.running and not self.finished:
            self.pipe.finish()
            self.finished = True
            self.tell({"event": "exited", "exit": self.exit})
        return gone

    def tick(self, now: float) -> None:
        """Restart when due, beside the base's stop and sweep."""
        if self._restart_at is not None and now >= self._restart_at:
            self._restart(now)
        super().tick(now)

    def _restart(self, now: float) -> None:
        self._restart_at = None
        try:
            self.start()
        except (
            StartFailed
        ) as error:  # its program is being replaced, or the host is out of processes: try again
            self.pipe.log.note(f"the router does not start: {error}")
            self._restart_at = now + _PAUSE_S
            return
        self.restarts += 1
        self.exit = None
        self.tell({"event": "restarted", "pid": self.pid})

    def deadlines(self) -> list[float]:
        """The base's, and the next start."""
        due = super().deadlines()
        if self._restart_at is not None:
            due.append(self._restart_at)
        return due
