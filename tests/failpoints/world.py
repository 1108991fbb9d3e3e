"""One root with its GPUs on paper, its profiles, and the lives of its daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.e2e.box import GPUSERVED, REPOSITORY, free_port, until
from tests.e2e.texts import toml
from tests.failpoints.daemon import Daemon, argv_of, belongs, pids

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import GpuserveError
from gpuserved.api.roots import from_environment
from gpuserved.api.types import ReplicaView, Status
from gpuserved.engines.sim.flags import VLLM_VERSION
from gpuserved.host.failpoint import VARIABLE

GPUS = 4
PATIENCE_S = 90.0
"""For one thing to happen on a machine that many such runs share."""
SWEEP_S = 10.0
LOG_MAX_BYTES = 2048
"""So small that a start alone rotates the log."""
A, B = "a", "b"
"""Profiles: operators change A, and leave B alone."""
T = TypeVar("T")


_open: set[World] = set()
_ending = threading.Event()


class Stuck(AssertionError):
    """Something did not happen."""


def end_all() -> None:
    """The program was interrupted: all that any world has running is killed, and nothing is begun any more."""
    _ending.set()
    for each in tuple(_open):
        each.sweep()


def profile(name: str, replicas: int, gpus: list[int], mark: str = "1", more: tuple[str, ...] = ()) -> str:
    """A profile of the look-alike as a command: so it is placed on GPUs that can be leased.

    :param mark: a variable of its environment; another one makes another process necessary.
    """
    argv = [
        *GPUSERVED[:1], "-m", "gpuserved.engines.sim", "serve", "{model}", "--uds", "{socket}",
        "--served-model-name", "{served_name}", "--step-ms", "20", *more,
    ]  # fmt: skip
    return toml(
        {
            "command": {"argv": argv},
            "env": {"PYTHONPATH": str(REPOSITORY / "daemon"), "MARK": mark},
            "limits": {"drain_s": 5, "rolling_drain_s": 5, "term_grace_s": 5},
            "restart": {"backoff_s": 0.05, "backoff_max_s": 0.5, "budget": 100, "stable_s": 1},
            "health": {"interval_s": 0.5},
        },
        model=f"sim/{VLLM_VERSION}", served_name=name, engine="command", replicas=replicas, gpus=gpus,
    )  # fmt: skip


def write_inventory(path: Path, count: int) -> list[str]:
    """So many GPUs on paper; their UUIDs."""
    gpus = [
        {
            "index": n, "uuid": _uuid(n), "name": "On paper", "memory_total_bytes": 80 << 30, "memory_used_bytes": 0,
            "nvlink": [],
        }
        for n in range(count)
    ]  # fmt: skip
    path.write_text(json.dumps({"gpus": gpus}))
    return [_uuid(n) for n in range(count)]


def _uuid(index: int) -> str:
    return f"GPU-paper-{index}"


class World:
    """A root, and whichever daemon has it now."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="gsf-"))
        _open.add(self)
        self.log = self.top / "daemon.log"
        """Of all its daemons."""
        self.locks = self.top / "locks"
        root = self.top / "root"
        for folder in (root, self.locks):
            folder.mkdir()
        write_inventory(root / "gpus.json", GPUS)
        (root / "gpuserved.toml").write_text(f'[gpus]\nprovider = "{root}/gpus.json"\n')
        kept = {key: environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in environ}
        self.env = kept | {
            "HOME": str(self.top),
            "GPUSERVE_ROOT": str(root),
            "GPUSERVE_LOCK_DIR": str(self.locks),
            "GPUSERVE_LOG_MAX_BYTES": str(LOG_MAX_BYTES),
            "PYTHONPATH": str(REPOSITORY / "daemon"),
        }
        self.roots = from_environment(self.env, uid=os.getuid())
        self.roots.log.mkdir(parents=True, mode=0o700)
        (self.roots.log / "daemon.log").symlink_to(self.log)  # beside what else is said there
        self.port = free_port()
        self.client = ControlClient(self.roots.control_socket)
        self.daemon: Daemon | None = None
        self.lives = 0

    @staticmethod
    def uuid(index: int) -> str:
        """Of a GPU."""
        return _uuid(index)

    def say(self, what: str) -> None:
        """A line between those of the daemon."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%H:%M:%S')}.{int(time.time() * 1000) % 1000:03d} ---- {what}\n")

    # --- lives

    def alive(self) -> bool:
        """Is there a daemon?"""
        return self.daemon is not None and not self.daemon.ended

    def heir(self) -> Daemon | None:
        """The successor that a daemon has started and not lived to see, or has handed over to."""
        for pid in self.strangers():
            argv = argv_of(pid)
            if "gpuserved.app.main" in argv and "--check" not in argv:
                return Daemon(pid, self.log)
        return None

    def succeed(self, heir: Daemon) -> None:
        """It is the daemon now, and answers or ends."""
        self.lives += 1
        self.say(f"life {self.lives}, PID {heir.pid}, started by the daemon before")
        self.daemon = heir
        self.until(lambda: not self.alive() or self.answers(), "the successor answers")

    def begin(self, armed: str) -> None:
        """A new life of the daemon, which may end before it is up."""
        assert not self.alive()
        _go_on()
        self.lives += 1
        self.say(f"life {self.lives}, {armed or 'not armed'}")
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [*GPUSERVED, "--background", "--listen", f"127.0.0.1:{self.port}"], env=self.env | {VARIABLE: armed}, cwd="/",
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.daemon = Daemon(child.pid, self.log, child)
        self.until(lambda: not self.alive() or self.answers(), "the daemon answers")

    def answers(self) -> bool:
        """Does it?"""
        try:
            self.client.version()
        except GpuserveError:
            return False
        return True

    def kill(self) -> None:
        """kill -9."""
        if self.daemon is not None:
            self.say("kill -9 of the supervisor")
            self.daemon.kill()

    def forget(self) -> None:
        """Its end has been noted."""
        self.daemon = None

    def wait_ended(self) -> int:
        """The exit code of a daemon that is about to end, and that nobody started but this process."""
        assert self.daemon is not None
        self.until(lambda: not self.alive(), "the daemon ends")
        assert self.daemon.code is not None
        return self.daemon.code

    def until(self, probe: Callable[[], T | None], what: str, limit_s: float = PATIENCE_S) -> T:
        """The first answer of `probe` that is neither None nor False.

        :raises Stuck: there was none.
        """

        def look() -> T | None:
            _go_on()
            return probe()

        try:
            return until(look, what, limit_s, every_s=0.03)
        except AssertionError as late:
            raise Stuck(f"{late}; {self.rows_in_words()}") from None

    # --- what the daemon says

    def status(self) -> Status | None:
        """None: no daemon answers."""
        try:
            return self.client.status()
        except GpuserveError:
            return None

    def rows(self) -> dict[str, ReplicaView]:
        """The replicas by name; empty where no daemon answers."""
        status = self.status()
        return {} if status is None else {row.id: row for row in status.replicas}

    def rows_in_words(self) -> str:
        """For a message."""
        return "; ".join(
            f"{r.id} {r.state} gen {r.generation} {r.reason or ''}" for r in self.rows().values()
        )

    def settled(self) -> bool | None:
        """True: nothing is under way; None: something is; False: there is no daemon."""
        status = self.status()
        if status is None:
            return False if not self.alive() else None
        calm = all(row.state in {"READY", "STOPPED"} or held(row) for row in status.replicas)
        return True if calm and all(roll.outcome for roll in status.rollouts) else None

    def refused_since(self, at: float) -> bool:
        """Has an upgrade failed since that Unix time, and this daemon gone on?"""
        status = self.status()
        failed = None if status is None else status.supervisor.failed_upgrade
        return failed is not None and failed.at >= at

    def routers_settled(self) -> bool:
        """No router comes or goes, or the new ones did not serve; True where the daemon is gone."""
        status = self.status()
        if status is None:
            return not self.alive()
        processes = status.router.processes
        present = all(each.version == status.version and not each.draining for each in processes)
        return bool(processes) and (present or status.router.trouble is not None)

    # --- the end

    def remove(self) -> None:
        """Everything of it, also what should not be there any more."""
        self.sweep()
        shutil.rmtree(self.top, ignore_errors=True)
        shutil.rmtree(self.roots.run, ignore_errors=True)
        _open.discard(self)

    def sweep(self) -> None:
        """Kill every process of it, and what those that were not seen have started meanwhile."""
        if self.alive():
            self.kill()
        deadline = time.monotonic() + SWEEP_S
        while (left := self.strangers()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def strangers(self) -> list[int]:
        """Every process that has this root in its command line, its environment, or open: shims have it only there."""
        needle = str(self.top).encode()
        return [
            pid for pid in pids() if pid != os.getpid() and not self._is_daemon(pid) and belongs(pid, needle)
        ]

    def keeps_a_router(self, pid: int) -> bool:
        """True for a shim whose folder is a router's."""
        try:
            opened = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            return False
        return any(name.startswith(f"{self.roots.run}/router") for name in opened)

    def _is_daemon(self, pid: int) -> bool:
        return self.daemon is not None and pid == self.daemon.pid


def _go_on() -> None:
    if _ending.is_set():
        raise Stuck("interrupted")


def held(row: ReplicaView) -> bool:
    """Drained by an operator."""
    return row.state == "DRAINING" and row.reason == "drained by operator"
