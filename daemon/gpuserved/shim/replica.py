"""Role replica: one life. Its exit is on disk before anybody is told that the tree is gone."""

from __future__ import annotations

import math
import os
import time

from gpuserved.shim.failpoint import reach
from gpuserved.shim.logpipe import LogPipe
from gpuserved.shim.proc import boot_id, remove, reserve, stat_of, write_atomically
from gpuserved.shim.role import Role
from gpuserved.shim.spec import Spec
from gpuserved.shim.wire import VERSION, encode

IDENTITY = "replica.json"
EXIT = "exit.json"
_EXIT_BYTES = 512
# Segments appear while an engine loads, few later; the scans only matter to what the API process alone maps when it is killed.
LEARN_AFTER_S = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, *(float(age) for age in range(10, 300, 5)))
_LEARN_EVERY_S = 300.0


class Replica(Role):
    """Runs the engine, sweeps its tree when the API process ends, keeps the exit status."""

    def __init__(self, spec: Spec, pipe: LogPipe, umask: int) -> None:
        super().__init__(spec, pipe, umask)
        now = time.monotonic()
        self._born = now
        self._was_kept = False
        self._kept_at = now
        self._cause = "exited"
        self._learn_at = now + LEARN_AFTER_S[0]

    def start(self) -> None:
        """Run the engine and write who it is.

        :raises StartFailed: it does not run.
        :raises OSError: the start cannot be recorded; the engine may run.
        """
        if self.cgroup is not None:
            self.cgroup.make()
        remove(f"{self.spec.dir}/{EXIT}")
        reserve(self.spec.dir, EXIT, _EXIT_BYTES)
        super().start()
        reach("shim.started")
        shim = stat_of(os.getpid())
        identity = {
            "v": VERSION, "id": self.spec.id, "generation": self.spec.generation, "nonce": self.spec.nonce,
            "shim_pid": os.getpid(), "shim_start_ticks": shim.start_ticks if shim is not None else 0,
            "pid": self.pid, "pid_start_ticks": self.start_ticks, "started_at": self.started_at, "boot_id": boot_id(),
        }  # fmt: skip
        write_atomically(self.spec.dir, IDENTITY, encode(identity))
        reach("shim.named")
        self._child.env.clear()  # may hold secrets, and is not needed again
        self.spec.env.clear()

    def discard(self) -> None:
        """After a failed start: end what runs, leave nothing behind."""
        self.kill()
        while not super().reap():
            time.sleep(0.01)
            super().tick(time.monotonic())
        for name in (IDENTITY, EXIT):
            remove(f"{self.spec.dir}/{name}")
            remove(f"{self.spec.dir}/.{name}.reserved")
        if self.cgroup is not None:
            self.cgroup.remove()

    def kill(self) -> None:
        """SIGKILL to the tree; the cause on disk says so where the API process was still running."""
        if self.running and self._cause == "exited":
            self._cause = "killed"
        super().kill()

    def ended(self) -> None:
        """The API process is gone: tell, and sweep what it left."""
        reach("shim.ended")
        self.tell({"event": "dying", "exit": self.exit})
        self.learn()
        self._begin_sweep()

    def reap(self) -> bool:
        """As the base; the end of the tree is the end of this role."""
        gone = super().reap()
        if gone and not self.running and self.exit is not None and not self.finished:
            self._finish()
        return gone

    def tick(self, now: float) -> None:
        """Orphan rule and memory scans, beside the base's stop and sweep."""
        if self.kept != self._was_kept:
            self._was_kept = self.kept
            self._kept_at = now
        if self.running and self._kill_at is None and now >= self._orphan_at():
            self._cause = "orphaned"
            self.pipe.log.note(f"neither supervisor nor router for {self.spec.orphan_ttl_s:g} s: stopping")
            self.stop(self.spec.term_grace_s)
        if now >= self._learn_at and self.running:
            self.learn()
            age = now - self._born
            self._learn_at = next((self._born + at for at in LEARN_AFTER_S if at > age), now + _LEARN_EVERY_S)
        super().tick(now)

    def _orphan_at(self) -> float:
        ttl_s = self.spec.orphan_ttl_s
        return math.inf if ttl_s is None or self.kept else self._kept_at + ttl_s

    def deadlines(self) -> list[float]:
        """The base's, and this role's own."""
        due = super().deadlines()
        if self.running:
            due.append(self._learn_at)
            if self._kill_at is None:
                due.append(self._orphan_at())
        return due

    def _finish(self) -> None:
        self.pipe.finish()
        self.leftovers.remove()
        assert self.exit is not None
        record = {"v": VERSION, **self.exit, "cause": self._cause}
        try:
            write_atomically(self.spec.dir, EXIT, encode(record))
        except OSError:  # the folder was removed or the disk died; the watchers are told all the same
            pass
        reach("shim.recorded")
        if self.cgroup is not None:
            self.cgroup.remove()
        self.finished = True
        self.tell({"event": "exited", "exit": self.exit})
