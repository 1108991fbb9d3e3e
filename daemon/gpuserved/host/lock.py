"""One daemon per root: a lock the kernel drops with its holder, so there is no stale state to clean."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from gpuserved.api.errors import Conflict


class DaemonLock:
    """Held for the daemon's life."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        :raises Conflict: another daemon holds it; its PID is named where the file tells.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown PID"
            os.close(self._fd)
            raise Conflict(
                f"a daemon already runs on this root (PID {holder}, lock {path})",
                hint="use `gpuserve status` to see it, or another GPUSERVE_ROOT for a second daemon",
            ) from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._fd)
