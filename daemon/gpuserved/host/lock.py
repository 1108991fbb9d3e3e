"""Who has a root, and who has a run folder: locks that the kernel drops with their holder, so that nothing stale is left to clean."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from gpuserved.api.errors import Conflict
from gpuserved.host.shimclient import ShimConnection, ShimError

SETTLE_S = 10.0
"""A shim that holds its folder and takes no connection for so long is stopped or stuck: dealt with as one that answers."""
_POLL_S = 0.02


class DaemonLock:
    """One daemon per root; held for the daemon's life."""

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


class FolderLock:
    """Of one run folder: a shim that lives has it, or nobody ever again.

    A shim locks its folder before it does anything else and holds the lock for its life, so that whoever gets the lock knows that no
    shim is there, and that one which is still on its way (its starter was killed) will find the folder locked, or gone, and end.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Give it back, once the folder is gone or a shim of ours may have it."""
        os.close(self._fd)


async def settle(folder: Path) -> FolderLock | None:
    """Wait until a shim answers in `folder` (None), or make sure that none will.

    :raises FileNotFoundError: the folder is not there.
    """
    deadline = time.monotonic() + SETTLE_S
    while not await _answers(folder / "shim.sock"):
        locked = _lock(folder)
        if locked is not None:
            return FolderLock(locked)
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(_POLL_S)
    return None


async def _answers(path: Path) -> bool:
    try:
        (await ShimConnection.connect(path, timeout_s=_POLL_S)).close()
    except ShimError:
        return False
    return True


def _lock(folder: Path) -> int | None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
