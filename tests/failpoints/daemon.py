"""A daemon as a process, and which processes belong to a folder."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

from tests.e2e.box import until

from gpuserved.host import procfs

_HANDED_OVER = re.compile(rb"gpuserved\.app\.daemon: .* has taken over$", re.MULTILINE)


class Daemon:
    """One daemon: a child of this process, or the successor of one, which nobody can ask for its exit code."""

    def __init__(self, pid: int, log: Path, child: subprocess.Popen[bytes] | None = None) -> None:
        """:param log: where it writes, and those before it wrote."""
        self.pid = pid
        self._log = log
        self._log_begins = log.stat().st_size
        self._ticks = procfs.start_ticks(pid) or 0
        self._child = child

    @property
    def ended(self) -> bool:
        """Is it gone?"""
        return self.code is not None if self._child else not procfs.is_same(self.pid, self._ticks)

    @property
    def code(self) -> int | None:
        """Its exit code; None: it runs, or nobody knows."""
        return self._child.poll() if self._child else None

    @property
    def handed_over(self) -> bool:
        """Has it said that another serves in its place? It is the last that it says, and behind the last step it can die at."""
        with self._log.open("rb") as log:
            log.seek(self._log_begins)
            return _HANDED_OVER.search(log.read()) is not None

    def kill(self) -> None:
        """kill -9, and wait."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        until(lambda: self.ended, f"daemon {self.pid} is gone", 60)


def argv_of(pid: int) -> list[str]:
    """Its command line; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", errors="replace").split("\0")
    except OSError:
        return []


def pids() -> list[int]:
    """Of every process."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def belongs(pid: int, needle: bytes) -> bool:
    """Has it this folder in its command line or environment, or, being a shim, open?"""
    try:
        for name in ("cmdline", "environ"):
            if needle in Path(f"/proc/{pid}/{name}").read_bytes():
                return True
        if Path(f"/proc/{pid}/comm").read_bytes() != b"gpuserve-shim\n":
            return False
        return any(needle in os.fsencode(os.readlink(fd)) for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
