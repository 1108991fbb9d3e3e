"""What both roles share: one child, its end, its tree, and how it is stopped."""

from __future__ import annotations

import os
import signal
import time

from gpuserved.shim.logpipe import LogPipe
from gpuserved.shim.proc import stat_of
from gpuserved.shim.shm import Leftovers
from gpuserved.shim.spawn import Child, spawn
from gpuserved.shim.spec import Spec, seconds
from gpuserved.shim.tree import Cgroup, descendants, kill_descendants
from gpuserved.shim.wire import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SWEEP_FIRST_S = 0.02
_SWEEP_MOST_S = 1.0
_LONGEST_SIGNAL = 64  # SIGRTMAX on Linux


def refusal(sentence: str) -> dict[str, Any]:
    """An answer that says no."""
    return {"ok": False, "error": sentence}


class Role:
    """One child process and its tree. Times are of the monotonic clock, except those that are shown."""

    def __init__(self, spec: Spec, pipe: LogPipe, umask: int) -> None:
        self.spec = spec
        self.pipe = pipe
        self.tell: Callable[[dict[str, Any]], None] = lambda _event: None
        """Sends an event to all watchers; the server puts itself here."""
        self.finished = False
        self.kept = False
        """A supervisor or a router holds a connection; kept up to date by the server."""
        self.pid = 0
        self.start_ticks = 0
        self.started_at = 0.0
        self.running = False
        self.exit: dict[str, Any] | None = None
        self.restarts = 0
        self.cgroup = Cgroup(spec.cgroup) if spec.cgroup is not None else None
        self.leftovers = Leftovers()
        self._child = Child(
            spec.argv, spec.env | {"GPUSERVE_NONCE": spec.nonce}, spec.cwd, pipe.write_fd, umask
        )
        # setproctitle (vLLM uses it) writes titles over the environment, and with it over the nonce, unless told not to.
        self._child.env.setdefault("SPT_NOENV", "1")
        self._child.cgroup = spec.cgroup
        self._kill_at: float | None = None
        self._sweeping = False
        self._sweep_at = 0.0
        self._sweep_step_s = _SWEEP_FIRST_S

    def start(self) -> None:
        """Run the child.

        :raises StartFailed: nothing runs.
        """
        self.pid = spawn(self._child)
        found = stat_of(self.pid)
        self.start_ticks = found.start_ticks if found is not None else 0
        self.started_at = time.time()
        self.running = True

    def describe(self, log_dropped_bytes: int) -> dict[str, Any]:
        """The answer to hello."""
        return {
            "ok": True, "v": VERSION, "role": self.spec.role, "id": self.spec.id,
            "generation": self.spec.generation, "nonce": self.spec.nonce, "shim_pid": os.getpid(),
            "pid": self.pid, "pid_start_ticks": self.start_ticks, "started_at": self.started_at,
            "running": self.running, "exit": self.exit, "restarts": self.restarts,
            "log_dropped_bytes": log_dropped_bytes,
        }  # fmt: skip

    def obey(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a client asks and answer it."""
        op = request.get("op")
        if op == "signal":
            return self._signal(request.get("signal"))
        if op == "kill":
            self.kill()
            return {"ok": True}
        if op == "stop":
            grace_s = seconds(request.get("grace_s"))
            if grace_s is None:
                return refusal("grace_s: seconds from 0 to a year are needed")
            self.stop(grace_s)
            return {"ok": True}
        return refusal(f"this shim (version {VERSION}, role {self.spec.role}) knows no such op")

    def _signal(self, number: object) -> dict[str, Any]:
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _LONGEST_SIGNAL:
            return refusal(f"signal: a number from 1 to {_LONGEST_SIGNAL} is needed")
        if not self.running:
            return refusal("the process has ended")
        self.learn()  # most signals end it, and its tree may be gone before anybody can look again
        try:
            os.kill(self.pid, number)  # ours and not yet reaped: the pid cannot be anybody else's
        except OSError as error:
            return refusal(os.strerror(error.errno or 0))
        return {"ok": True}

    def stop(self, grace_s: float) -> None:
        """SIGTERM to the child; SIGKILL to the tree where it still runs after `grace_s`. A later call may only shorten."""
        self.learn()
        if self.running:
            try:
                os.kill(self.pid, signal.SIGTERM)
            except OSError:
                pass
        kill_at = time.monotonic() + grace_s
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)

    def kill(self) -> None:
        """SIGKILL to the tree, again and again until it is gone."""
        self.learn()
        self._begin_sweep()

    def learn(self) -> None:
        """Note what shared memory the tree maps, while it can still be asked."""
        self.leftovers.learn([found.pid for found in descendants(os.getpid())])

    def _begin_sweep(self) -> None:
        self._sweeping = True
        self._sweep_step_s = _SWEEP_FIRST_S
        self._sweep(time.monotonic())

    def _sweep(self, now: float) -> None:
        if self.cgroup is not None:
            self.cgroup.kill()
        kill_descendants(os.getpid())
        self._sweep_at = now + self._sweep_step_s
        self._sweep_step_s = min(self._sweep_step_s * 2, _SWEEP_MOST_S)

    def reap(self) -> bool:
        """Collect every child that ended. True where none is left and the cgroup is empty: the tree is gone."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self.cgroup is None or not self.cgroup.populated()
            if pid == 0:
                return False
            if pid == self.pid and self.running:
                self.running = False
                self.exit = _exit_record(status)
                self.ended()

    def ended(self) -> None:
        """The child has ended and `exit` says how."""
        raise AssertionError("a role decides what the end of its child means")

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self._kill_at is not None and now >= self._kill_at and self.running and not self._sweeping:
            self.overdue()
            self.kill()
        if self._sweeping and now >= self._sweep_at:
            self._sweep(now)

    def overdue(self) -> None:
        """The grace period is over and the child still runs."""
        self.pipe.log.note("still running after its grace period: killing every process of it")

    def deadlines(self) -> list[float]:
        """When `tick` must run next, at the latest."""
        due = [self._sweep_at] if self._sweeping else []
        if self._kill_at is not None and self.running and not self._sweeping:
            due.append(self._kill_at)
        return due


def _exit_record(status: int) -> dict[str, Any]:
    signaled = os.WIFSIGNALED(status)
    return {
        "code": None if signaled else os.WEXITSTATUS(status),
        "signal": os.WTERMSIG(status) if signaled else None,
        "at": time.time(),
    }
